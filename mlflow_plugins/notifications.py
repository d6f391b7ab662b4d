"""Tells people of alerts, through Apprise: mail, Slack, webhooks, and whatever else it speaks.

After the commit, in a thread of its own, so nobody waits for it; a few attempts with pauses
between, and what could not be told is in the log, and on the ledger as the alert it is about.
The queue is bounded, and what does not fit is counted in the log.

URLs hold passwords: what is logged is whose they are and which service, nothing else, and Apprise's
own log, which spells URLs out, is off.

Example::

    notifier = Notifier(AddressBook(everybody=("mailto://user:pass@example.com",)))
    notifier.tell(alert)
    notifier.close()
"""

from __future__ import annotations

import logging
import queue
import re
import threading
from dataclasses import dataclass

from governance.alert_records import Alert
from governance.drift_settings import AddressBook

__all__ = ["Notifier", "message_of"]

_log = logging.getLogger(__name__)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,31}(?=://)")


@dataclass(frozen=True, slots=True)
class _Letter:
    url: str
    owner: str
    title: str
    body: str

    @property
    def service(self) -> str:
        """What may be logged of the URL."""
        found = _SCHEME.match(self.url)
        return found[0] if found else "unknown service"


def message_of(alert: Alert) -> tuple[str, str]:
    """Title and text."""
    one = alert.identity
    columns = ", ".join(str(column.get("name", "")) for column in alert.worst[:5])
    lines = [
        f"Owner: {one.owner}. {alert.windows} windows so far.",
        *alert.reasons[:5],
        *([f"Worst columns: {columns}."] if columns else []),
        *(f"Slice: {found.get('text', '')}" for found in alert.slices[:3]),
        *(f"Quarantine proposed: {reason}" for reason in alert.quarantine[:3]),
        *([str(alert.retrain["text"])] if alert.retrain.get("text") else []),
        f"chancery drift acknowledge {one.alert_id[:12]}",
        *([f"chancery drift quarantine {one.alert_id[:12]}"] if alert.quarantine else []),
    ]
    return alert.headline, "\n".join(lines)


class Notifier:
    """See the module. Its thread starts with the first letter.

    Args:
        addresses: Where people are told.
        attempts: How often each is tried.
        pause_s: Before the second attempt; twice as long before each further one.
        most: Letters that wait at once.
    """

    def __init__(
        self, addresses: AddressBook, *, attempts: int = 4, pause_s: float = 2.0, most: int = 256
    ) -> None:
        self._addresses = addresses
        self._attempts = attempts
        self._pause_s = pause_s
        self._letters: queue.Queue[_Letter | None] = queue.Queue(most)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def tell(self, alert: Alert) -> None:
        """Let the owner know. Returns at once, and raises nothing."""
        urls = self._addresses.urls_for(alert.owner)
        if not urls:
            return
        title, body = message_of(alert)
        for url in urls:
            letter = _Letter(url, alert.owner, title, body)
            try:
                self._letters.put_nowait(letter)
            except queue.Full:
                _log.error(
                    "alert %s: %s is not told by %s: too many wait",
                    alert.alert_id[:12], letter.owner, letter.service,
                )  # fmt: skip
        self._start()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name="chancery-notify", daemon=True
                )
                self._thread.start()

    def close(self, timeout_s: float = 10.0) -> None:
        """Give what waits a last chance, and stop."""
        self._stop.set()
        thread = self._thread
        if thread is not None and thread.is_alive():
            try:
                self._letters.put(None, timeout=timeout_s)
            except queue.Full:
                return
            thread.join(timeout_s)

    def _run(self) -> None:
        while (letter := self._letters.get()) is not None:
            try:
                self._deliver(letter)
            except Exception as error:  # noqa: BLE001 - a service's mistake ends no thread
                _log.error("%s: %s is not told", type(error).__name__, letter.owner)

    def _deliver(self, letter: _Letter) -> None:
        pause = self._pause_s
        for attempt in range(1, self._attempts + 1):
            outcome = _send(letter)
            if outcome is None:
                return
            if attempt == self._attempts or outcome.final:
                _log.error(
                    "%s is not told by %s after %d attempts: %s",
                    letter.owner, letter.service, attempt, outcome.why,
                )  # fmt: skip
                return
            _log.warning("%s is not told by %s yet: %s", letter.owner, letter.service, outcome.why)
            self._stop.wait(pause)
            pause *= 2


@dataclass(frozen=True, slots=True)
class _Failure:
    why: str
    final: bool = False


def _send(letter: _Letter) -> _Failure | None:
    """None: it was told."""
    try:
        import apprise
    except ImportError:
        return _Failure("install mlflow-chancery[notify]", final=True)
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)  # it spells URLs out
    service = apprise.Apprise()
    if not service.add(letter.url):
        return _Failure("Apprise does not understand its URL", final=True)
    try:
        # Text, not what a service takes by itself: clients' values are in it, and a mail is HTML.
        told = service.notify(
            title=letter.title, body=letter.body, body_format=apprise.NotifyFormat.TEXT
        )
    except Exception as error:  # noqa: BLE001 - its words may hold the URL
        return _Failure(type(error).__name__)
    return None if told else _Failure("the service did not take it")
