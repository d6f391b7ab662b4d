"""Owners are told through Apprise: after a failure again, never for ever, and no secret is told."""

from __future__ import annotations

import email
import logging
import socketserver
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from governance.alert_records import Alert, AlertIdentity, AlertLevel, Sighting
from governance.drift_alerts import AlertRules, opened
from governance.drift_settings import AddressBook, DriftSettings
from governance.errors import ConfigurationError
from mlflow_plugins.notifications import Notifier, message_of
from tests.hooks import Hook, hook

WHO = AlertIdentity("a" * 32, 1, "m1", "v3", "fraud", 3, "fraud", "ann")


def alert() -> Alert:
    seen = Sighting(
        AlertLevel.QUARANTINE,
        50,
        reasons=("eSR is 4e+03",),
        worst=({"name": "age"},),
        slices=({"text": "age > 52.5"},),
        quarantine=("accuracy fell",),
    )
    step = opened(WHO, seen, AlertRules(), now_ms=100)
    assert step is not None
    return step.alert


@pytest.fixture
def inbox() -> Iterator[Hook]:
    with hook() as found:
        yield found


def test_the_owner_and_everybody_are_told_what_and_what_to_do(inbox: Hook) -> None:
    book = AddressBook((inbox.url,), {"ann": (inbox.url + "/ann",), "bob": (inbox.url + "/bob",)})
    notifier = Notifier(book, pause_s=0.01)
    notifier.tell(alert())
    assert len(inbox.wait_for(2)) == 2
    notifier.close()
    assert len(inbox.messages) == 2
    message = inbox.messages[0]
    assert "models:/fraud/3 on the route 'fraud'" in message["title"]
    for words in ("Owner: ann", "age > 52.5", "chancery drift quarantine aaaaaaaaaaaa"):
        assert words in message["message"]


class Postbox(socketserver.StreamRequestHandler):
    """Takes mail, as far as ``smtplib`` asks."""

    letters: list[bytes]

    def handle(self) -> None:
        self.wfile.write(b"220 postbox\r\n")
        for line in self.rfile:
            word = line[:4].upper()
            self.wfile.write(b"354 go on\r\n" if word == b"DATA" else b"250 well\r\n")
            if word == b"DATA":
                self.letters.append(b"".join(iter(self.rfile.readline, b".\r\n")))
                self.wfile.write(b"250 taken\r\n")
            if word == b"QUIT":
                return


def test_a_mail_shows_what_clients_sent_and_is_none_of_it() -> None:
    """A client's category is in a slice's text: no link of theirs is in a mail of ours."""
    Postbox.letters = []
    link = '<a href="http://evil.example/">log in</a>'
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Postbox) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        url = f"mailto://127.0.0.1:{port}?from=us@example.org&to=ann@example.org"
        book = AddressBook((f"{url}&format=html", f"{url}&format=text"))
        notifier = Notifier(book, attempts=1)
        notifier.tell(replace(alert(), slices=({"text": f"town = {link}"},)))
        notifier.close(60)
        server.shutdown()
    parts = [
        part
        for letter in Postbox.letters
        for part in email.message_from_bytes(letter).walk()
        if not part.is_multipart()
    ]
    pages, texts = [], []
    for part in parts:
        text = part.get_payload(decode=True)
        assert isinstance(text, bytes)
        (pages if part.get_content_subtype() == "html" else texts).append(text.decode())
    assert pages
    assert all("evil.example" in page and "<a" not in page for page in pages)
    assert any(link in text for text in texts)


def test_a_failure_is_tried_again(inbox: Hook) -> None:
    inbox.failures = 2
    notifier = Notifier(AddressBook((inbox.url,)), pause_s=0.01)
    notifier.tell(alert())
    assert len(inbox.wait_for(1)) == 1
    assert inbox.requests == 3
    notifier.close()


def test_not_for_ever_and_no_secret_is_logged(
    inbox: Hook, caplog: pytest.LogCaptureFixture
) -> None:
    """Also at the lowest level, and with URLs that Apprise complains of."""
    caplog.set_level(logging.DEBUG)
    inbox.failures = 10_000
    urls = (
        inbox.url,
        "json://ann:s3cret@127.0.0.1:1/gone",
        "nonsense://ann:s3cret@example.invalid",
        "s3cret",
    )
    notifier = Notifier(AddressBook(urls), attempts=3, pause_s=0.01)
    notifier.tell(alert())
    deadline = time.monotonic() + 60
    while caplog.text.count("after") < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    notifier.close()
    assert inbox.requests == 3
    assert "ann is not told by json after 3 attempts" in caplog.text
    assert "ann is not told by nonsense after 1 attempts" in caplog.text
    assert "ann is not told by unknown service after 1 attempts" in caplog.text
    assert "s3cret" not in caplog.text
    assert "s3cret" not in repr(AddressBook(urls))
    assert "s3cret" not in repr(DriftSettings(addresses=AddressBook(urls)))


def test_nobody_waits_and_memory_is_bounded(inbox: Hook, caplog: pytest.LogCaptureFixture) -> None:
    inbox.delay_s = 1.0
    notifier = Notifier(AddressBook((inbox.url,)), most=3)
    begun = time.monotonic()
    for _ in range(1000):
        notifier.tell(alert())
    assert time.monotonic() - begun < inbox.delay_s * 20  # one after the other would take 1000 s
    assert "too many wait" in caplog.text
    assert notifier._letters.qsize() <= 3
    notifier._stop.set()


def test_without_urls_nothing_starts() -> None:
    notifier = Notifier(AddressBook(owners={"bob": ("json://127.0.0.1:1",)}))
    notifier.tell(alert())
    assert notifier._thread is None


def test_the_message_of_a_bare_alert_has_no_empty_lines() -> None:
    step = opened(WHO, Sighting(AlertLevel.ALERT, 50, reasons=("x",)), AlertRules(), now_ms=1)
    assert step is not None
    title, body = message_of(step.alert)
    assert title.endswith("drift")
    assert all(body.split("\n"))
    assert "quarantine" not in body


def test_the_settings_are_read(tmp_path: Path) -> None:
    file = tmp_path / "people.yaml"
    file.write_text("owners: {ann: ['json://a']}\neverybody: ['json://b']\n")
    file.chmod(0o600)
    found = DriftSettings.load(
        {
            "CHANCERY_NOTIFY_FILE": str(file),
            "CHANCERY_NOTIFY_URLS": "json://c  json://d",
            "CHANCERY_DRIFT_QUIET": "90m",
            "CHANCERY_DRIFT_OK_WINDOWS": "5",
            "CHANCERY_DRIFT_OWNER": "ops",
        }
    )
    assert found.addresses.urls_for("ann") == ("json://a", "json://c", "json://d", "json://b")
    assert found.addresses.urls_for("bob") == ("json://c", "json://d", "json://b")
    assert (found.rules, found.owner) == (AlertRules(5_400_000, 5), "ops")
    assert DriftSettings.load({}) == DriftSettings()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no YAML"),
        ("people: {}", "its keys"),
        ("owners: [ann]", "no mapping"),
        ("owners: {ann: 'json://s3cret'}", "no list of URLs"),
        ("everybody: [7]", "no list of URLs"),
    ],
)
def test_a_bad_file_is_refused_without_its_words(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "people.yaml"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(ConfigurationError, match=words) as refused:
        DriftSettings.load({"CHANCERY_NOTIFY_FILE": str(file)})
    assert "s3cret" not in str(refused.value)


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "people.yaml"
    file.write_text("everybody: []")
    file.chmod(0o644)
    with pytest.raises(ConfigurationError, match="can be read by others"):
        DriftSettings.load({"CHANCERY_NOTIFY_FILE": str(file)})
    with pytest.raises(ConfigurationError, match="cannot be read"):
        DriftSettings.load({"CHANCERY_NOTIFY_FILE": str(tmp_path / "gone")})


@pytest.mark.parametrize(
    "setting",
    [
        {"CHANCERY_DRIFT_QUIET": "1 day"},
        {"CHANCERY_DRIFT_QUIET": "0h"},
        {"CHANCERY_DRIFT_OK_WINDOWS": "0"},
        {"CHANCERY_DRIFT_OK_WINDOWS": "-1"},
    ],
)
def test_a_mistake_in_the_settings_is_named(setting: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(setting))):
        DriftSettings.load(setting)
