"""Trust on first use: remembered once, then compared; a configured pin wins."""

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from governance.canonical import sha256_hex
from governance.errors import ConfigurationError, UntrustedKeyError
from governance.signing.pins import KnownRoots

URI = "https://mlflow.example"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pins" / "known_roots.json"


def test_the_first_document_is_remembered(path: Path) -> None:
    assert KnownRoots(path).check(URI, b"one", None) == sha256_hex(b"one")
    assert KnownRoots(path).check(URI, b"one", None) == sha256_hex(b"one")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text()) == {
        "format": "chancery.known-roots/v1",
        "servers": {URI: sha256_hex(b"one")},
    }
    assert {file.name for file in path.parent.iterdir()} == {path.name, f"{path.name}.lock"}


def test_another_document_later_is_refused(path: Path) -> None:
    KnownRoots(path).check(URI, b"one", None)
    with pytest.raises(UntrustedKeyError, match="before") as caught:
        KnownRoots(path).check(f"{URI}/", b"two", None)
    assert str(path) in caught.value.remedy
    assert KnownRoots(path).check("https://other.example", b"two", None) == sha256_hex(b"two")


def test_a_configured_pin_wins(path: Path) -> None:
    KnownRoots(path).check(URI, b"one", None)
    assert KnownRoots(path).check(URI, b"two", sha256_hex(b"two")) == sha256_hex(b"two")
    with pytest.raises(UntrustedKeyError, match="configured"):
        KnownRoots(path).check(URI, b"one", sha256_hex(b"two"))


@pytest.mark.parametrize("pin", ["", "abc", "G" * 64, sha256_hex(b"one").upper()])
def test_a_malformed_pin_is_refused(path: Path, pin: str) -> None:
    with pytest.raises(ConfigurationError):
        KnownRoots(path).check(URI, b"one", pin)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"format":"chancery.known-roots/v1","servers":{"a":1}}', "[" * 99999]
)
def test_a_damaged_file_is_refused(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="not a readable list"):
        KnownRoots(path).check(URI, b"one", None)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot remember"):
        KnownRoots(tmp_path / "file" / "known.json").check(URI, b"one", None)


def test_credentials_are_not_written(path: Path) -> None:
    secret = "governed+postgresql+psycopg://user:secret@db:5432/mlflow?password=secret"
    KnownRoots(path).check(secret, b"one", None)
    assert "secret" not in path.read_text()
    assert "governed+postgresql+psycopg://db:5432/mlflow" in path.read_text()


def test_writers_at_once_lose_nothing(path: Path) -> None:
    uris = [f"https://{n}.example" for n in range(20)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda uri: KnownRoots(path).check(uri, b"one", None), uris))
    assert set(json.loads(path.read_text())["servers"]) == set(uris)
