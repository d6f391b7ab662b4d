"""A bundle of ours is verified, and a tampered one refused, by openssl and npm's @sigstore/verify.

Both tools must be there: a missing one fails the test. The npm packages are installed once from
``package-lock.json`` into the git-ignored ``node_modules`` beside this file. The pre-authentication
encoding is written out here a second time, so that a mistake in ours cannot verify itself.
"""

import base64
import fcntl
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden" / "signing"
BUNDLE = (GOLDEN / "statement.alice.sigstore.json").read_text()
PAYLOAD = (GOLDEN / "statement.json").read_bytes()


def tool(name: str) -> str:
    path = shutil.which(name)
    assert path, f"{name} is not installed; this test needs it"
    return path


def tampered(text: str) -> str:
    """The bundle with one digit of its payload changed; still well-formed."""
    document: dict[str, Any] = json.loads(text)
    payload = base64.b64decode(document["dsseEnvelope"]["payload"])
    changed = payload.replace(b'"threshold":2', b'"threshold":1')
    assert changed != payload
    document["dsseEnvelope"]["payload"] = base64.b64encode(changed).decode()
    return json.dumps(document)


def openssl(text: str, key: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    envelope = json.loads(text)["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"])
    kind = envelope["payloadType"].encode()
    signed, signature = folder / "signed", folder / "signature"
    signed.write_bytes(b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload))
    signature.write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    command = [tool("openssl"), "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", str(key)]
    return subprocess.run(
        [*command, "-in", str(signed), "-sigfile", str(signature)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("person", ["alice", "bob"])
def test_openssl_verifies_a_bundle(person: str, tmp_path: Path) -> None:
    text = (GOLDEN / f"statement.{person}.sigstore.json").read_text()
    result = openssl(text, GOLDEN / f"{person}.pub", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Signature Verified Successfully" in result.stdout


def test_openssl_refuses_a_tampered_bundle_and_another_key(tmp_path: Path) -> None:
    for text, key in ((tampered(BUNDLE), "alice.pub"), (BUNDLE, "bob.pub")):
        result = openssl(text, GOLDEN / key, tmp_path)
        assert result.returncode == 1
        assert "Signature Verification Failure" in result.stdout


@pytest.fixture(scope="session")
def packages() -> None:
    """``npm ci`` when the installed packages are not those of the lock file."""
    tool("node")
    with (HERE / "package-lock.json").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # parallel test processes install once
        stamp = HERE / "node_modules" / ".installed-lock"
        wanted = lock.read()
        if stamp.is_file() and stamp.read_bytes() == wanted:
            return
        command = [tool("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        result = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"npm ci failed:\n{result.stderr}"
        stamp.write_bytes(wanted)


def sigstore(text: str, key: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    bundle = folder / "bundle.json"
    bundle.write_text(text)
    command = [tool("node"), str(HERE / "verify-bundle.mjs"), str(bundle), str(GOLDEN / key)]
    return subprocess.run(command, capture_output=True, check=False)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("person", ["alice", "bob"])
def test_sigstore_verifies_a_bundle(person: str, tmp_path: Path) -> None:
    text = (GOLDEN / f"statement.{person}.sigstore.json").read_text()
    result = sigstore(text, f"{person}.pub", tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == PAYLOAD


@pytest.mark.usefixtures("packages")
def test_sigstore_refuses_a_tampered_bundle_and_another_key(tmp_path: Path) -> None:
    for text, key in ((tampered(BUNDLE), "alice.pub"), (BUNDLE, "bob.pub")):
        result = sigstore(text, key, tmp_path)
        assert result.returncode == 3, result.stderr
        assert result.stderr.strip() == b"SIGNATURE_ERROR"


def test_the_lock_file_names_no_registry() -> None:
    lock = json.loads((HERE / "package-lock.json").read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert packages
    assert all(entry["integrity"].startswith("sha512-") for entry in packages.values())
    assert not any("resolved" in entry for entry in packages.values())
