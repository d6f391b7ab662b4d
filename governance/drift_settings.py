"""Settings of alerts about drift, from the environment.

==============================  ========================================================
``CHANCERY_DRIFT_OWNER``        owner of an alert when nobody else is responsible
``CHANCERY_DRIFT_QUIET``        people are told again after this time: ``90m``, ``24h``, ``7d``
``CHANCERY_DRIFT_OK_WINDOWS``   windows found well, in a row, that close an alert
``CHANCERY_MONITOR_KEY``        signer URI of the key that a monitor signs its reports with
``CHANCERY_NOTIFY_URLS``        Apprise URLs, separated by spaces, that are told of every alert
``CHANCERY_NOTIFY_FILE``        YAML: ``owners: {ann: [URL, …]}`` and ``everybody: [URL, …]``
==============================  ========================================================

URLs hold passwords: they are in no message, log or answer.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from governance.drift_alerts import AlertRules
from governance.errors import ConfigurationError
from governance.settings import Settings
from governance.signing.keys import Signer, development_signer

__all__ = ["AddressBook", "DriftSettings", "monitor_signer"]

_UNITS_MS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}


@dataclass(frozen=True, slots=True)
class AddressBook:
    """Where people are told.

    Attributes:
        everybody: URLs that are told of every alert.
        owners: Owner → URLs.
    """

    everybody: tuple[str, ...] = field(default=(), repr=False)
    owners: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)

    def urls_for(self, owner: str) -> tuple[str, ...]:
        """Each once."""
        return tuple(dict.fromkeys((*self.owners.get(owner, ()), *self.everybody)))

    @classmethod
    def read(cls, path: Path, also: tuple[str, ...] = ()) -> AddressBook:
        """From a file.

        Raises:
            ConfigurationError: it cannot be read, can be read by others, or is no such file. What
                is in it is not told.
        """
        try:
            mode, text = path.stat().st_mode, path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"CHANCERY_NOTIFY_FILE: {path} cannot be read ({type(error).__name__})",
                "correct the path, or unset it",
            ) from error
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigurationError(
                f"CHANCERY_NOTIFY_FILE: {path} holds passwords, and can be read by others",
                f"run `chmod 600 {path}`",
            )
        try:
            document = yaml.safe_load(text) or {}
        except yaml.YAMLError:
            raise _no_book(path, "it is no YAML") from None  # its words quote the file
        if not isinstance(document, dict) or set(document) - {"owners", "everybody"}:
            raise _no_book(path, "its keys are not 'owners' and 'everybody'")
        owners = document.get("owners") or {}
        if not isinstance(owners, dict) or not all(isinstance(name, str) for name in owners):
            raise _no_book(path, "'owners' is no mapping of names")
        return cls(
            (*also, *_urls(path, document.get("everybody"), "everybody")),
            {name: _urls(path, urls, f"owners.{name}") for name, urls in owners.items()},
        )


def _no_book(path: Path, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"CHANCERY_NOTIFY_FILE: {path}: {why}",
        "write `owners: {ann: [URL]}` and `everybody: [URL]`",
    )


def _urls(path: Path, value: Any, where: str) -> tuple[str, ...]:
    urls = value or []
    if not isinstance(urls, list) or not all(isinstance(url, str) and url for url in urls):
        raise _no_book(path, f"{where!r} is no list of URLs")
    return tuple(urls)


@dataclass(frozen=True, slots=True)
class DriftSettings:
    """See the module."""

    owner: str = ""
    rules: AlertRules = field(default_factory=AlertRules)
    addresses: AddressBook = field(default_factory=AddressBook)

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ) -> DriftSettings:
        """Read them.

        Raises:
            ConfigurationError: names the setting.
        """
        urls = tuple(environ.get("CHANCERY_NOTIFY_URLS", "").split())
        file = environ.get("CHANCERY_NOTIFY_FILE")
        book = AddressBook.read(Path(file), urls) if file else AddressBook(urls)
        return cls(
            owner=environ.get("CHANCERY_DRIFT_OWNER", ""),
            rules=AlertRules(_quiet_ms(environ), _ok_windows(environ)),
            addresses=book,
        )


def _quiet_ms(environ: Mapping[str, str]) -> int:
    text = environ.get("CHANCERY_DRIFT_QUIET", "24h")
    if not re.fullmatch(r"[1-9][0-9]{0,3}[mhd]", text):
        raise ConfigurationError(
            f"CHANCERY_DRIFT_QUIET is {text!r}", "write a whole number with m, h or d, as in 24h"
        )
    return int(text[:-1]) * _UNITS_MS[text[-1]]


def _ok_windows(environ: Mapping[str, str]) -> int:
    text = environ.get("CHANCERY_DRIFT_OK_WINDOWS", "3")
    if not re.fullmatch(r"[1-9][0-9]{0,5}", text):
        raise ConfigurationError(
            f"CHANCERY_DRIFT_OK_WINDOWS is {text!r}", "write a whole number of at least 1"
        )
    return int(text)


def monitor_signer(settings: Settings, environ: Mapping[str, str] = os.environ) -> Signer:
    """The key that reports on drift are signed with: the monitor's own, else the person's.

    Raises:
        ConfigurationError: it cannot be used.
    """
    uri = environ.get("CHANCERY_MONITOR_KEY") or settings.key or settings.approver_key
    return development_signer(uri, "monitor's key", production=settings.production, create=False)
