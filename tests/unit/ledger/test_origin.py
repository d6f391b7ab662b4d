"""Another ledger in the place of the one that was seen first: refused at a start, and reported."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, create_engine, text

from governance.cli import main
from governance.database import metadata
from governance.errors import ConfigurationError, LedgerTamperedError
from governance.ledger import FileWitness, Ledger, export_ledger, verify_export, verify_ledger
from governance.ledger.origin import OriginPin
from governance.settings import Settings
from governance.signing.keys import FileSigner

Recorder = Callable[..., list[str]]


@pytest.fixture
def pin(tmp_path: Path) -> OriginPin:
    return OriginPin(tmp_path / "state" / "ledger.origin")


@pytest.fixture
def open_pinned(
    log_signer: FileSigner, witness: FileWitness, pin: OriginPin
) -> Callable[..., Ledger]:
    """As a process that starts does it."""

    def act(engine: Engine, origin: str = "chancery/fresh", by: OriginPin = pin) -> Ledger:
        return Ledger(engine, origin=origin, log_signer=log_signer, witness=witness, pin=by)

    return act


def fresh(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}")
    metadata.create_all(engine)
    return engine


def test_the_first_name_is_remembered_and_holds(
    engine: Engine, open_pinned: Callable[..., Ledger], pin: OriginPin
) -> None:
    assert pin.read() is None
    assert open_pinned(engine, "chancery/one").origin == "chancery/one"
    assert pin.path.read_text() == "chancery/one\n"
    assert open_pinned(engine, "chancery/two").origin == "chancery/one"


def test_a_renamed_ledger_is_refused_and_reported(
    engine: Engine, open_pinned: Callable[..., Ledger], record: Recorder, pin: OriginPin
) -> None:
    ledger = open_pinned(engine, "chancery/one")
    record(ledger, 3)
    ledger.sequence()
    with engine.begin() as connection:
        connection.execute(text("UPDATE chancery_ledger_state SET origin='chancery/two'"))
    with pytest.raises(LedgerTamperedError) as raised:
        open_pinned(engine)
    assert "'chancery/one'" in raised.value.message
    assert "'chancery/two'" in raised.value.message
    assert str(pin.path.parent) in raised.value.remedy
    report = verify_ledger(
        engine,
        log_public_key=ledger.log_signer.public_key_pem,
        witness=ledger.witness,
        origin=pin.read(),
    )
    assert not report.ok
    assert "calls its ledger 'chancery/two', not 'chancery/one'" in report.problems[0]


def test_another_ledger_with_the_same_keys_and_witness(
    engine: Engine,
    open_pinned: Callable[..., Ledger],
    record: Recorder,
    tmp_path: Path,
    pin: OriginPin,
) -> None:
    """The hardest case: signed and countersigned by the right keys, and whole in itself."""
    record(open_pinned(engine, "chancery/one"), 3)
    elsewhere = OriginPin(tmp_path / "mallory" / "ledger.origin")
    other = open_pinned(fresh(tmp_path / "other.sqlite"), "chancery/two", elsewhere)
    record(other, 5)
    other.sequence()
    keys = {"log_public_key": other.log_signer.public_key_pem, "witness": other.witness}
    trusting = verify_ledger(other.engine, **keys)  # type: ignore[arg-type]
    assert trusting.ok
    assert not trusting.origin_pinned
    assert "--origin" in trusting.remedies[0]
    with pytest.raises(LedgerTamperedError, match="another ledger"):
        open_pinned(other.engine)
    assert not verify_ledger(other.engine, **keys, origin=pin.read()).ok  # type: ignore[arg-type]

    lines = list(export_ledger(other))
    assert verify_export(lines).ok
    report = verify_export(lines, origin="chancery/one")
    assert report.origin_pinned
    assert not report.ok
    assert "not 'chancery/one'" in report.problems[0]


def test_an_emptied_database(
    engine: Engine, open_pinned: Callable[..., Ledger], tmp_path: Path, pin: OriginPin
) -> None:
    """Nothing is written into it: a new ledger would look like any other."""
    open_pinned(engine, "chancery/one")
    empty = fresh(tmp_path / "empty.sqlite")
    with pytest.raises(LedgerTamperedError, match="holds no ledger"):
        open_pinned(empty)
    with empty.connect() as connection:
        count = connection.execute(text("SELECT count(*) FROM chancery_ledger_state")).scalar()
    assert count == 0
    pin.path.unlink()  # starting anew is meant
    assert open_pinned(empty).origin == "chancery/fresh"


def test_a_restored_backup_is_the_same_ledger(
    engine: Engine, open_pinned: Callable[..., Ledger], record: Recorder, tmp_path: Path
) -> None:
    ledger = open_pinned(engine, "chancery/one")
    record(ledger, 3)
    ledger.sequence()
    with engine.connect() as connection:
        connection.execute(text(f"VACUUM INTO '{tmp_path / 'backup.sqlite'}'"))
    restored = open_pinned(fresh(tmp_path / "backup.sqlite"))
    restored.ensure_witnessed()
    assert restored.origin == "chancery/one"


def test_state_directories_of_their_own_remember_what_each_saw_first(
    engine: Engine, open_pinned: Callable[..., Ledger], tmp_path: Path
) -> None:
    pins = [OriginPin(tmp_path / name / "ledger.origin") for name in ("a", "b")]
    for pin in pins:
        open_pinned(engine, f"chancery/{pin.path.parent.name}", pin)
    assert [pin.read() for pin in pins] == ["chancery/a", "chancery/a"]


RACER = """
import sys
from pathlib import Path
from sqlalchemy import create_engine
from governance.ledger import FileWitness, Ledger
from governance.ledger.origin import OriginPin
from governance.signing.keys import FileSigner

home, name = Path(sys.argv[1]), sys.argv[2]
log = FileSigner(home / "log.key")
key = FileSigner(home / "witness" / "witness.key")
witness = FileWitness(home / "witness", key, log.public_key_pem)
engine = create_engine(f"sqlite:///{home / 'db.sqlite'}", connect_args={"timeout": 20})
sys.stdin.readline()
pin = OriginPin(home / "new" / "home" / "ledger.origin")
print(Ledger(engine, origin=name, log_signer=log, witness=witness, pin=pin).origin)
"""


@pytest.mark.usefixtures("witness")
def test_processes_that_start_together_agree(engine: Engine, tmp_path: Path) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path), f"chancery/{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(6)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    said = {racer.communicate()[0].strip() for racer in racers}
    assert {racer.returncode for racer in racers} == {0}
    assert said == {(tmp_path / "new" / "home" / "ledger.origin").read_text().strip()}


def test_a_torn_line_counts_as_nothing(pin: OriginPin) -> None:
    pin.path.parent.mkdir()
    pin.path.write_text("chancery/o")
    assert pin.read() is None
    pin.check("chancery/one")
    assert pin.path.read_text() == "chancery/one\n"


@pytest.mark.parametrize("content", [b"\n", b"a\nb\n", b"\xff\n", b"a\x07b\n"])
def test_a_file_that_holds_no_name(pin: OriginPin, content: bytes) -> None:
    pin.path.parent.mkdir()
    pin.path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="not one line with the name"):
        pin.check("chancery/one")


def test_a_state_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot remember which ledger"):
        OriginPin(tmp_path / "file" / "ledger.origin").check("chancery/one")


def command(*arguments: str) -> Result:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CliRunner().invoke(main, ["ledger", "verify", *arguments])


@pytest.fixture
def store(engine: Engine, ledger: Ledger, record: Recorder, tmp_path: Path) -> list[str]:
    """Options for a store whose state directory is ``tmp_path``."""
    home = Settings.load("sqlite:///x", {"CHANCERY_HOME": str(tmp_path)}).home
    record(ledger, 4)
    ledger.sequence()
    OriginPin(home / "ledger.origin").check(ledger.origin)
    return ["--uri", f"governed+{engine.url}"]


def test_the_command_holds_a_store_against_the_remembered_name(
    store: list[str], engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHANCERY_HOME", str(tmp_path))
    good = command(*store, "--json")
    assert good.exit_code == 0, good.output
    report = json.loads(good.stdout)
    assert (report["keys_pinned"], report["origin_pinned"], report["remedies"]) == (True, True, [])
    assert command(*store, "--origin", "chancery/other").exit_code == 1
    with engine.begin() as connection:
        connection.execute(text("UPDATE chancery_ledger_state SET origin='chancery/two'"))
    bad = command(*store)
    assert bad.exit_code == 1
    assert "calls its ledger 'chancery/two', not 'chancery/test'" in bad.stdout
    # Where the state directory has forgotten the name, the report says so.
    (tmp_path / "ledger.origin").unlink()
    assert "--origin" in command(*store).stdout
    assert not (tmp_path / "ledger.origin").exists()  # verifying changes nothing


def test_the_command_says_when_keys_and_name_came_with_the_data(
    ledger: Ledger, record: Recorder, tmp_path: Path
) -> None:
    record(ledger, 4)
    ledger.sequence()
    file, log, witness = (tmp_path / name for name in ("export", "log.pub", "witness.pub"))
    file.write_text("".join(export_ledger(ledger)))
    log.write_text(ledger.log_signer.public_key_pem)
    witness.write_text(ledger.witness.public_key_pem)
    of_file, keys = ["--export", str(file)], ["--log-key", str(log), "--witness-key", str(witness)]

    trusting = command(*of_file)
    assert trusting.exit_code == 0
    assert "--log-key and --witness-key" in trusting.stdout
    assert "--origin" in trusting.stdout
    assert "the ledger holds" not in trusting.stdout
    report = json.loads(command(*of_file, "--json").stdout)
    assert (report["ok"], report["keys_pinned"], report["origin_pinned"]) == (True, False, False)
    assert len(report["remedies"]) == 2
    assert "--witness-key" in command(*of_file, *keys[:2]).stdout  # one of two is not enough

    pinned = command(*of_file, *keys, "--origin", ledger.origin)
    assert "the ledger holds" in pinned.stdout
    assert "unpinned" not in pinned.stdout
    assert command(*of_file, *keys, "--origin", "chancery/else").exit_code == 1


def test_a_key_file_that_holds_no_key(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "no.pub").write_text("hello")
    (tmp_path / "export").write_text("")
    done = command("--export", str(tmp_path / "export"), "--log-key", str(tmp_path / "no.pub"))
    assert done.exit_code == 3
    assert "holds no Ed25519 public key" in done.stderr
