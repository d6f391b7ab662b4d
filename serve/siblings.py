"""All gateways of a route on one node, in one answer to whoever reads their metrics.

They share a port, so a scrape meets any of them. Each also listens on a unix socket of its own,
beside the others', where it tells its counts; the one that is scraped asks the others and puts all
in one answer. A gateway that does not answer in time, or is dead, is left out.

Example::

    siblings = Siblings(private_folder(folder), "gateway-1", own=lambda: exposition(router))
    await siblings.start()
    body = await siblings.all()
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

__all__ = ["Siblings", "merged"]

_ANSWER_S = 1.0
_MOST_BYTES = 4 << 20


class Siblings:
    """See the module.

    Args:
        folder: Of the sockets of these gateways, and of no others; this user's alone.
        source: This gateway's name.
        own: Its metrics in Prometheus' text format.
    """

    def __init__(self, folder: Path, source: str, own: Callable[[], bytes]) -> None:
        self._folder = folder
        self._path = folder / f"{source.removeprefix('gateway-')}.sock"
        self._own = own
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Answer the others.

        The socket appears under its name only when it listens: whoever finds it and is refused
        knows that its process is dead.
        """
        hidden = self._path.with_suffix(".new")
        hidden.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._tell, hidden)
        hidden.rename(self._path)

    async def _tell(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            writer.write(self._own())
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    async def all(self) -> bytes:
        """Everybody's metrics."""
        others = sorted(path for path in self._folder.glob("*.sock") if path != self._path)
        found = await asyncio.gather(*map(_ask, others))
        return merged([self._own(), *(told for told in found if told)])

    async def close(self) -> None:
        """Be there no more."""
        self._path.unlink(missing_ok=True)
        if self._server is not None:
            self._server.close()


async def _ask(path: Path) -> bytes:
    """What one tells; nothing if it does not."""
    try:
        async with asyncio.timeout(_ANSWER_S):
            reader, writer = await asyncio.open_unix_connection(path, limit=_MOST_BYTES)
            try:
                parts, size = [], 0
                while (part := await reader.read(1 << 16)) and size <= _MOST_BYTES:
                    parts.append(part)
                    size += len(part)
                return b"".join(parts) if size <= _MOST_BYTES else b""
            finally:
                writer.close()
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)  # its process is dead
    except (OSError, TimeoutError):
        pass
    return b""


def merged(expositions: Iterable[bytes]) -> bytes:
    """Several texts as one: the samples of a metric stand together, as the format wants it."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for text in expositions:
        family = ""
        told: set[str] = set()
        for line in text.decode().splitlines():
            if line.startswith("# HELP ") or line.startswith("# TYPE "):
                family = line.split(" ", 3)[2]
                if family not in samples:
                    samples[family], heads[family] = [], []
                    told.add(family)
                if family in told:
                    heads[family].append(line)
            elif line:
                samples.setdefault(family, []).append(line)
    lines = [line for name, found in samples.items() for line in (*heads.get(name, ()), *found)]
    return ("\n".join(lines) + "\n").encode()
