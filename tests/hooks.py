"""A little HTTP server that takes what is posted to it, as a webhook does."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Hook", "hook"]


class Hook:
    """What came in; ``failures`` more requests are answered 500."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.requests = 0
        self.failures = 0
        self.delay_s = 0.0
        self.port = 0

    @property
    def url(self) -> str:
        """For Apprise; its password is a secret."""
        return f"json://ann:s3cret@127.0.0.1:{self.port}/hook"

    def wait_for(self, count: int, seconds: float = 60.0) -> list[dict[str, Any]]:
        """At least so many messages."""
        deadline = time.monotonic() + seconds
        while len(self.messages) < count and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.messages


@contextmanager
def hook() -> Iterator[Hook]:
    """On a free port of the loopback."""
    found = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            found.requests += 1
            time.sleep(found.delay_s)
            if found.failures > 0:
                found.failures -= 1
                self.send_response(500)
            else:
                found.messages.append(json.loads(body))
                self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
