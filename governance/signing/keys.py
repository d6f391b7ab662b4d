"""Signing keys behind signer URIs, and the public half of a signature check.

A signer is addressed by URI: ``file:/path/key.pem`` (PKCS#8 PEM, mode 0600; for development).
Every key is Ed25519, and its ``keyid`` is the hex SHA-256 of its PEM SubjectPublicKeyInfo, which
securesystemslib, sigstore and openssl users can compute from the public key alone.

Example::

    signer = load_signer("file:alice.pem")
    signature = signer.sign(b"payload")
    verify_signature(signer.public_key_pem, signature, b"payload")
"""

from __future__ import annotations

import os
import stat
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from governance.canonical import sha256_hex
from governance.errors import ConfigurationError, SignatureError

__all__ = [
    "DevelopmentKeyWarning",
    "FileSigner",
    "Signer",
    "create_key",
    "development_signer",
    "keyid_of",
    "load_public_key",
    "load_signer",
    "normalize_public_key",
    "verify_signature",
]


class DevelopmentKeyWarning(UserWarning):
    """A key that lies unprotected on disk is in use."""


class Signer(Protocol):
    """Signs with an Ed25519 key it may not reveal."""

    @property
    def keyid(self) -> str: ...

    @property
    def public_key_pem(self) -> str: ...

    def sign(self, data: bytes) -> bytes:
        """The 64-byte Ed25519 signature of ``data`` (RFC 8032, pure)."""
        ...


def keyid_of(public_key_pem: str) -> str:
    """Hex SHA-256 of the PEM SubjectPublicKeyInfo, re-encoded so that spacing does not matter."""
    return sha256_hex(normalize_public_key(public_key_pem).encode())


def normalize_public_key(public_key_pem: str) -> str:
    """The same key in the one spelling that documents hold and that ``keyid_of`` hashes."""
    return _pem(load_public_key(public_key_pem))


@lru_cache(maxsize=256)
def load_public_key(public_key_pem: str) -> Ed25519PublicKey:
    """Parse a PEM SubjectPublicKeyInfo.

    Raises:
        SignatureError: not PEM, or not an Ed25519 key.
    """
    try:
        key = load_pem_public_key(public_key_pem.encode())
    except ValueError as error:
        raise SignatureError(f"not a PEM public key: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError(
            f"the key is {type(key).__name__}, not Ed25519",
            "create one with `chancery keys create`",
        )
    return key


def _pem(key: Ed25519PublicKey) -> str:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def verify_signature(public_key_pem: str, signature: bytes, data: bytes) -> None:
    """Check an Ed25519 signature.

    Raises:
        SignatureError: it does not verify.
    """
    try:
        load_public_key(public_key_pem).verify(signature, data)
    except InvalidSignature as error:
        raise SignatureError(
            f"the signature does not verify with key {keyid_of(public_key_pem)[:12]}…"
        ) from error


class FileSigner:
    """A private key in a PKCS#8 PEM file.

    Raises:
        ConfigurationError: the file is missing, readable by others, or not an Ed25519 key.
    """

    def __init__(self, path: Path) -> None:
        try:
            mode = path.stat().st_mode
            pem = path.read_bytes()
        except OSError as error:
            raise ConfigurationError(
                f"cannot read the signing key {path}: {error.strerror}",
                "create it with `chancery keys create`, or correct the path",
            ) from error
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigurationError(
                f"the signing key {path} can be read by others", f"run `chmod 600 {path}`"
            )
        try:
            key = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"{path} is not an unencrypted PEM private key") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigurationError(f"the key in {path} is not Ed25519")
        self._key = key
        self._public_key_pem = _pem(key.public_key())
        self._keyid = keyid_of(self._public_key_pem)

    @property
    def keyid(self) -> str:
        return self._keyid

    @property
    def public_key_pem(self) -> str:
        return self._public_key_pem

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data)


def create_key(path: Path) -> FileSigner:
    """Make a new Ed25519 key at ``path`` (mode 0600); an existing file is never overwritten.

    Raises:
        ConfigurationError: the file exists, or cannot be written.
    """
    pem = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written aside and linked into place, so that a concurrent reader never sees half a key.
        partial = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(partial, path)
        finally:
            partial.unlink()
    except FileExistsError as error:
        raise ConfigurationError(
            f"{path} exists already", "choose another path; keys are never overwritten"
        ) from error
    except OSError as error:
        raise ConfigurationError(f"cannot write the key {path}: {error.strerror}") from error
    return FileSigner(path)


def load_signer(uri: str) -> Signer:
    """The signer behind a URI.

    Raises:
        ConfigurationError: unknown scheme, or the key cannot be used.
    """
    scheme, separator, rest = uri.partition(":")
    if separator and scheme == "file":
        return FileSigner(Path(rest.removeprefix("//") if rest.startswith("///") else rest))
    raise ConfigurationError(f"no signer handles {uri!r}", "use file:/path/to/key.pem")


def development_signer(uri: str, purpose: str, *, production: bool, create: bool = True) -> Signer:
    """The signer at ``uri``; a missing key file is made on first use, outside production mode.

    Args:
        uri: Signer URI.
        purpose: What the key is for, in the warning's and error's words.
        production: Refuse file keys.
        create: Make a missing file. False for a file that somebody named: a new key under a
            misspelt name would be nobody's.

    Raises:
        ConfigurationError: production mode and the key is a file, or the file cannot be used.
    """
    if uri.startswith("file:"):
        path = Path(uri.removeprefix("file:"))
        if production:
            raise ConfigurationError(
                f"the {purpose} is the file {path}, and production mode refuses file keys",
                "name a key in an HSM or KMS, or set CHANCERY_MODE=development",
            )
        if create and not path.exists():
            try:
                create_key(path)
            except ConfigurationError:
                if not path.exists():  # another process may have made it just now
                    raise
        signer = load_signer(uri)
        warnings.warn(
            f"the {purpose} is a development key in the file {path}; "
            "whoever reads the file can sign",
            DevelopmentKeyWarning,
            stacklevel=2,
        )
        return signer
    return load_signer(uri)
