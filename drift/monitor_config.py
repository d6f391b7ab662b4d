"""The file that says what is monitored: ``monitors.yaml``.

::

    format: chancery.monitors/v1
    state: /var/lib/chancery/drift        # of all subjects; of no other file's
    blocks: /var/lib/chancery/blocks      # as recorders write: <model>/<version>/<deployment or _>
                                          # or s3://bucket/path, gs://bucket/path
    registry: governed+sqlite:///mlflow.db   # where versions are; by default MLflow's registry
    checks: 1                             # threads for confirmatory checks
    couriers: 4                           # threads for sinks
    defaults:                             # of every monitor
      sinks: [{folder: {path: reports}}]
    monitors:
      - model: fraud
        version: 7
        profile: profiles/fraud-7.json    # a file instead of the registered version's own
        profile_digest: 3f2a…             # another one is refused
        model_id: m-0123                  # of MLflow's logged model
        deployment: fraud
        owner: ana@example.org
        blocks: blocks/fraud-7            # instead of the folder below the common one
        reference: profiles/fraud-7.parquet
        labels: labels/fraud
        windows: {rows: 1000}             # or {every: 1h}; lateness: 60s, ahead: 60s
        check: {every: 24h, again: 1h, detectors: [default], level: 0.05, limit: 60s}
                                          # "every: 0s": only when a window warns or alerts
        sinks: [{folder: {path: reports}}, mlflow]
        most_reports: 256
        save_every: 1s

Paths are relative to this file. Times are a number with ``s``, ``m``, ``h`` or ``d``. What is not
known is an error, by its place.
Profiles are read when a subject is opened, so that one that is broken stops nobody else.

Example::

    config = MonitorsConfig.read(Path("monitors.yaml"))
    service = Service(config.openings(), checks=config.checks, couriers=config.couriers)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from drift.alibi_process import AlibiProcess
from drift.block_store import BlockPlace, place_of
from drift.model_profile import load_profile
from drift.monitor import Monitor
from drift.monitor_state import PARTS, States, part_of
from drift.places import blocks_folder
from drift.profile import DriftProfile
from drift.reference import reference_sample
from drift.report import Subject
from drift.sample import Sample
from drift.service import Opening
from drift.sinks import open_sink
from drift.watched import Watched
from drift.workers import Workers
from governance.errors import ConfigurationError, NotFoundError

__all__ = ["MonitorConfig", "MonitorsConfig"]

FORMAT = "chancery.monitors/v1"
_UNITS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SINKS = tuple[tuple[str, Mapping[str, str]], ...]


@dataclass(frozen=True, slots=True)
class MonitorConfig:
    """Of one subject.

    Attributes:
        model, version, model_id, deployment, owner: See ``drift.report.Subject``.
        profile: A file; None: the registered version's own, with its sample, model and owner.
        blocks: Folder, or place in an object store.
        profile_digest: That the profile must have; empty: any.
        reference: A sample's file; None: none, or the registered version's.
        registry: Where the version is registered; empty: MLflow's registry.
        sinks: Names and options, in order.
        options: Of ``drift.watched.Watched``.
    """

    model: str
    version: int
    profile: Path | None
    blocks: BlockPlace
    model_id: str = ""
    deployment: str = ""
    owner: str = ""
    profile_digest: str = ""
    reference: Path | None = None
    registry: str = ""
    sinks: _SINKS = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.model}/{self.version}/{self.deployment}"

    def open(
        self,
        states: States,
        checks: Workers | None,
        couriers: Workers | None,
        alibi: AlibiProcess | None = None,
    ) -> Monitor:
        """Its monitor.

        Args:
            states: Where its state lies.
            checks, couriers: Threads for checks and sinks; None: the monitor's own.
            alibi: Where Alibi Detect runs.

        Raises:
            GovernanceError: profile, reference, sinks or state cannot be used.
            OSError: a file cannot be read.
        """
        subject, profile, reference = self._found()
        watched = Watched(
            subject,
            profile,
            self.blocks,
            states,
            reference=reference,
            alibi=alibi if profile.backend == "alibi" else None,
            **self.options,
        )
        sinks = {
            _sink_key(name, number): open_sink(name, subject, options)
            for number, (name, options) in enumerate(self.sinks)
        }
        return Monitor(watched, sinks, checks=checks, couriers=couriers, together=True)

    def _found(self) -> tuple[Subject, DriftProfile, Sample | None]:
        """What is watched, and what it is compared with."""
        if self.profile is None:
            found = load_profile(
                f"models:/{self.model}/{self.version}",
                uri=self.registry or None,
                deployment=self.deployment,
                owner=self.owner,
            )
            subject, profile, reference = found.subject, found.profile, found.reference()
            if self.model_id:
                subject = replace(subject, model_id=self.model_id)
        else:
            profile, reference = DriftProfile.from_json(self._bytes(self.profile, "profile")), None
            profile.require(self.model)
            subject = Subject(
                self.model, self.version, self.model_id, self.deployment, profile.digest, self.owner
            )
        if self.profile_digest:
            profile.require(profile.model, digest=self.profile_digest)
        if self.reference is not None:
            reference = reference_sample(profile, self._bytes(self.reference, "reference"))
        return subject, profile, reference

    def _bytes(self, file: Path, what: str) -> bytes:
        try:
            return file.read_bytes()
        except OSError as error:
            raise NotFoundError(
                f"the {what} of {self.key}, {file}, cannot be read: {error.strerror}",
                f"put it there, or correct `{what}`",
            ) from error


def _sink_key(name: str, number: int) -> str:
    """Under which the state remembers what a sink took: its place and name."""
    return f"{number}:{name}"


@dataclass(frozen=True, slots=True)
class MonitorsConfig:
    """The whole file.

    Attributes:
        monitors: In order.
        state: Folder of their states.
        checks: Threads for confirmatory checks.
        couriers: Threads for sinks.
    """

    monitors: tuple[MonitorConfig, ...]
    state: Path
    checks: int = 1
    couriers: int = 4

    def part(self, number: int, of: int) -> MonitorsConfig:
        """What one of several processes monitors, which share the folder of states.

        Args:
            number: From 1.
            of: How many processes there are, at most ``drift.monitor_state.PARTS``. It may be
                another number next time.

        Raises:
            ConfigurationError: there is no such part.
        """
        if not 1 <= number <= of <= PARTS:
            raise ConfigurationError(
                f"there is no part {number}/{of}", f"give 1/1 to {PARTS}/{PARTS}, as in 2/4"
            )
        mine = tuple(one for one in self.monitors if part_of(one.key) % of == number - 1)
        return replace(self, monitors=mine)

    def openings(self) -> list[Opening]:
        """For a ``Service``. One process of Alibi Detect serves all that ask for it."""
        alibi, states = AlibiProcess(), States(self.state)
        return [Opening(one.key, partial(_opened, one, states, alibi)) for one in self.monitors]

    @classmethod
    def read(cls, path: Path) -> MonitorsConfig:
        """A file.

        Raises:
            ConfigurationError: names the place of the mistake.
            OSError: it cannot be read.
        """
        try:
            document = yaml.safe_load(path.read_text("utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise _mistake(str(path), f"is no YAML: {' '.join(str(error).split())}") from error
        return cls.of(document, path.parent, str(path))

    @classmethod
    def of(cls, document: Any, base: Path, where: str = "the configuration") -> MonitorsConfig:
        """A document; paths in it are relative to ``base``."""
        top = _Node(document, where)
        top.text("format", among=(FORMAT,))
        state, blocks = base / top.text("state"), top.optional("blocks")
        registry = top.text("registry", "")
        checks, couriers = top.whole("checks", 1), top.whole("couriers", 4)
        defaults = top.mapping("defaults", {})
        listed = top.listed("monitors")
        top.done()
        monitors = [
            _monitor(
                _Node({**defaults, **_mapping(one, f"{where}: monitors[{i}]")}, _at(where, i)),
                base,
                None if blocks is None else place_of(blocks, base),
                registry,
            )
            for i, one in enumerate(listed)
        ]
        keys = [one.key for one in monitors]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice or not monitors:
            raise _mistake(where, f"names {twice[0]!r} twice" if twice else "names no monitors")
        return cls(tuple(monitors), state, checks, couriers)


def _opened(
    config: MonitorConfig, states: States, alibi: AlibiProcess, checks: Workers, to: Workers
) -> Monitor:
    return config.open(states, checks, to, alibi)


def _at(where: str, place: int) -> str:
    return f"{where}: monitors[{place}]"


def _monitor(node: _Node, base: Path, blocks: BlockPlace | None, registry: str) -> MonitorConfig:
    model, version = node.text("model"), node.whole("version")
    deployment = node.text("deployment", "")
    own = node.optional("blocks")
    if own is None and blocks is None:
        raise node.wrong("lacks 'blocks', and there is no common folder")
    profile = node.optional("profile")
    reference, labels = node.optional("reference"), node.optional("labels")
    windows, check = node.node("windows"), node.node("check")
    options: dict[str, Any] = {
        "rows": windows.whole("rows", None),
        "every_ms": windows.time("every", None),
        "lateness_ms": windows.time("lateness", 60_000),
        "ahead_ms": windows.time("ahead", 60_000),
        "detectors": tuple(check.texts("detectors")),
        "level": check.share("level", 0.05),
        "check_every_ms": check.time("every", 86_400_000),
        "check_again_ms": check.time("again", 3_600_000),
        "check_limit_s": (check.time("limit", 0) or 0) / 1000,
        "labels": None if labels is None else base / labels,
        "most_reports": node.whole("most_reports", 256),
        "save_every_ms": node.time("save_every", 1_000),
    }
    found = MonitorConfig(
        model=model,
        version=version,
        profile=None if profile is None else base / profile,
        blocks=(
            blocks_folder(blocks, model, version, deployment)
            if own is None
            else place_of(own, base)
        ),
        model_id=node.text("model_id", ""),
        deployment=deployment,
        owner=node.text("owner", ""),
        profile_digest=node.text("profile_digest", ""),
        reference=None if reference is None else base / reference,
        registry=registry,
        sinks=tuple(_sinks(node, base)),
        options=options,
    )
    for inner in (windows, check, node):
        inner.done()
    if options["rows"] is not None and options["every_ms"] is not None:
        raise windows.wrong("has both rows and every; windows are cut by one of them")
    return found


def _sinks(node: _Node, base: Path) -> Iterator[tuple[str, dict[str, str]]]:
    for one in node.listed("sinks", []):
        if isinstance(one, str):
            yield one, {}
            continue
        if not isinstance(one, dict) or len(one) != 1:
            raise node.wrong("has a sink that is neither a name nor {name: {option: value}}")
        ((name, options),) = one.items()
        plain = _mapping(options or {}, f"{node.where}: sink {name}")
        texts = {str(key): str(value) for key, value in plain.items()}
        if "path" in texts:
            texts["path"] = str(base / texts["path"])
        yield str(name), texts


_NEEDED: Any = object()


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _mistake(where, "is no mapping of names")
    return value


class _Node:
    """One mapping of the file, read key by key."""

    def __init__(self, values: Any, where: str) -> None:
        self.where = where
        self._values = _mapping(values, where)
        self._left = set(self._values)

    def wrong(self, what: str) -> ConfigurationError:
        return _mistake(self.where, what)

    def _take(self, key: str, default: Any) -> Any:
        self._left.discard(key)
        value = self._values.get(key, default)
        if value is _NEEDED:
            raise self.wrong(f"lacks {key!r}")
        return value

    def text(self, key: str, default: Any = _NEEDED, *, among: tuple[str, ...] = ()) -> str:
        value = self._take(key, default)
        if not isinstance(value, str) or (among and value not in among):
            wanted = f"one of {', '.join(among)}" if among else "a text"
            raise self.wrong(f"has the {key!r} {value!r}, not {wanted}")
        return value

    def optional(self, key: str) -> str | None:
        return None if self._take(key, None) is None else self.text(key)

    def whole(self, key: str, default: Any = _NEEDED) -> Any:
        value = self._take(key, default)
        if value is default and default is not _NEEDED:
            return value
        if type(value) is not int or value < 1:
            raise self.wrong(f"has the {key!r} {value!r}, not a whole number of at least 1")
        return value

    def share(self, key: str, default: float) -> float:
        value = self._take(key, default)
        if not isinstance(value, float) or not 0 < value < 1:
            raise self.wrong(f"has the {key!r} {value!r}, not a number between 0 and 1")
        return value

    def time(self, key: str, default: int | None) -> int | None:
        """Milliseconds."""
        value = self._take(key, None)
        if value is None:
            return default
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([smhd])", str(value))
        if found is None:
            raise self.wrong(f"has the {key!r} {value!r}, not a time such as 30s, 5m, 1h or 1d")
        return int(float(found[1]) * _UNITS[found[2]])

    def listed(self, key: str, default: Any = _NEEDED) -> list[Any]:
        value = self._take(key, default)
        if not isinstance(value, list):
            raise self.wrong(f"has a {key!r} that is no list")
        return value

    def texts(self, key: str) -> list[str]:
        values = self.listed(key, [])
        if not all(isinstance(value, str) for value in values):
            raise self.wrong(f"has in {key!r} something that is no text")
        return values

    def mapping(self, key: str, default: Any = _NEEDED) -> dict[str, Any]:
        return _mapping(self._take(key, default), f"{self.where}: {key}")

    def node(self, key: str) -> _Node:
        return _Node(self.mapping(key, {}), f"{self.where}: {key}")

    def done(self) -> None:
        if self._left:
            raise self.wrong(f"has unknown names: {', '.join(sorted(self._left))}")


def _mistake(where: str, what: str) -> ConfigurationError:
    return ConfigurationError(f"{where} {what}", "see the example in docs/monitoring.md")
