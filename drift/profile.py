"""The reference profile: what a model was made from, as a signed document of counts.

``chancery.drift-profile/v1`` holds every column (feature, output, projection of an embedding,
principal component) with its bins and reference counts, how far the reference's own windows lie
from it, the digests of the data sets, and the rules. It holds no rows. It is canonical JSON, so it
has one digest, which is signed together with the model. ``drift/fitting.py`` makes one.

Calibration from another piece of work travels in it unread: ``performance`` (estimating accuracy
without labels) and ``fairness``.

Example::

    profile = DriftProfile.from_json(data)
    profile.require("fraud", digest=signed_digest)
    profile.layout.count(block, rows)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from drift.bins import Bins, CategoryBins, NumericBins, PresenceBins, bins_from, smoothed
from drift.components import Components
from drift.documents import Fields, number_text
from drift.embedding import Embedding
from drift.layout import Layout
from drift.rules import Rules
from governance.canonical import canonical_json, sha256_hex
from governance.errors import MalformedRequestError, RefusedError, TamperedError

__all__ = [
    "ENOUGH_WINDOWS",
    "FORMAT",
    "Calibration",
    "Column",
    "DriftProfile",
    "is_component_part",
]

FORMAT = "chancery.drift-profile/v1"
ENOUGH_WINDOWS = 30
"""Calibration windows from which the largest PSI among them is taken for settled."""

Role = Literal["feature", "output", "embedding", "component"]
Pii = Literal["keep", "bin", "mask"]

_ROLES = ("feature", "output", "embedding", "component")
_PII = ("keep", "bin", "mask")
_BACKENDS = ("native", "alibi")


@dataclass(frozen=True, slots=True)
class Column:
    """One column that is counted.

    Attributes:
        name: In a block of rows.
        role: What the model does with it.
        bins: What it is counted by.
        counts: Of the reference, one a bin; of a component without the rows that chose it.
        pii: ``keep``: values may be recorded; ``bin``: only counts may; ``mask``: only whether
            there is a value.
        protected: Whether fairness is judged by its groups.
    """

    name: str
    role: Role
    bins: Bins
    counts: tuple[int, ...]
    pii: Pii = "keep"
    protected: bool = False

    @property
    def shares(self) -> NDArray[np.float64]:
        """Of the reference in each bin; all 0 of an empty one."""
        return np.array(self.counts) / max(sum(self.counts), 1)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "role": self.role,
            "bins": self.bins.to_dict(),
            "counts": list(self.counts),
            "pii": self.pii,
            "protected": self.protected,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Column:
        """Inverse of ``to_dict``."""
        name = fields.text("name")
        fields.where += f" ({name})"
        column = cls(
            name,
            cast(Role, fields.text("role", among=_ROLES)),
            bins_from(fields.object("bins")),
            tuple(fields.integers("counts")),
            cast(Pii, fields.text("pii", "keep", among=_PII)),
            fields.flag("protected", False),
        )
        fields.done()
        if len(column.counts) != column.bins.size:
            raise fields.wrong(f"has {len(column.counts)} counts for {column.bins.size} bins")
        if column.pii == "mask" and not isinstance(column.bins, PresenceBins):
            raise fields.wrong("is masked, but counted by more than presence")
        if (
            column.pii == "bin"
            and isinstance(column.bins, CategoryBins)
            and column.bins.rare is not None
        ):
            raise fields.wrong("may only be binned, but lists rare categories")
        return column


@dataclass(frozen=True, slots=True)
class Calibration:
    """How the reference's own windows look beside it, in the order of time.

    Attributes:
        windows: How many; 30 and more settle the thresholds.
        rows: Of each.
        source: ``left out``: each window against all other rows of the reference; ``given``: rows
            that came after the reference, against it.
        largest_psi: Of each column over the windows, in the profile's order.
        largest_esr: The largest mean R on the way through the windows. Far above the number of
            windows, rows are not independent (or time has changed them), and the run length to a
            false alarm is not what eSR promises: the PSI condition carries the alert.
    """

    windows: int
    rows: int
    source: Literal["left out", "given"]
    largest_psi: tuple[float, ...]
    largest_esr: float

    @property
    def largest(self) -> float:
        """Of all columns."""
        return max(self.largest_psi, default=0.0)

    @property
    def note(self) -> str:
        """What a reader must know; empty if there is nothing."""
        notes = []
        if self.windows < ENOUGH_WINDOWS:
            notes.append(
                f"calibrated on {self.windows} windows of {self.rows} rows, fewer than "
                f"{ENOUGH_WINDOWS}: the PSI threshold may be too low"
            )
        if self.largest_esr > 10 * max(self.windows, 1):
            notes.append(
                f"the reference's own windows reach an eSR of {self.largest_esr:.3g}: its rows are "
                "not independent of time, and eSR alone will warn too often"
            )
        return "; ".join(notes)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; ``note`` is written for people, and not read."""
        return {
            "windows": self.windows,
            "rows": self.rows,
            "source": self.source,
            "largest_psi": [*map(number_text, self.largest_psi)],
            "largest_esr": number_text(self.largest_esr),
            "note": self.note,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Calibration:
        """Inverse of ``to_dict``."""
        calibration = cls(
            fields.integer("windows"),
            fields.integer("rows"),
            cast(Any, fields.text("source", among=("left out", "given"))),
            tuple(fields.numbers("largest_psi", least=0.0)),
            fields.number("largest_esr", least=0.0),
        )
        if not all(map(math.isfinite, (*calibration.largest_psi, calibration.largest_esr))):
            raise fields.wrong("has a PSI or eSR that is not finite")
        if fields.text("note") != calibration.note:
            raise fields.wrong("has a note that its numbers do not bear out")
        fields.done()
        return calibration


@dataclass(frozen=True)
class DriftProfile:
    """What a served model is compared with.

    Attributes:
        model: Name of the registered model it belongs to.
        columns: In the order features, outputs, projections, components.
        rows: Of the reference.
        window: W, rows of a window.
        calibration: How the reference's own windows look.
        embeddings: Vectors, and how they become columns.
        components: How features become principal components; None: none are counted.
        datasets: Name of each data set of the reference → its digest.
        rules: When to warn and to alert.
        backend: Who confirms an alarm: our own detectors, or Alibi Detect.
        performance: Calibration for estimating accuracy without labels; not read here.
        fairness: Reference for fairness; not read here.
    """

    model: str
    columns: tuple[Column, ...]
    rows: int
    window: int
    calibration: Calibration
    embeddings: tuple[Embedding, ...] = ()
    datasets: Mapping[str, str] = field(default_factory=dict)
    rules: Rules = field(default_factory=Rules)
    backend: Literal["native", "alibi"] = "native"
    performance: Mapping[str, Any] | None = None
    fairness: Mapping[str, Any] | None = None
    components: Components | None = None

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        twice = sorted({name for name in names if names.count(name) > 1}) if _repeats(names) else []
        if twice:
            raise _malformed(f"has the column {twice[0]!r} twice")
        if not names:
            raise _malformed("has no columns")
        projections = [name for one in self.embeddings for name in one.column_names]
        if projections != [c.name for c in self.columns if c.role == "embedding"]:
            raise _malformed("has columns of embeddings that its embeddings do not make")
        usable = {c.name for c in self.columns if is_component_part(c)}
        for name in self.components.features if self.components else ():
            if name not in usable:
                raise _malformed(f"makes components of {name!r}, no number that may be recorded")
        made = list(self.components.names) if self.components else []
        if made != [c.name for c in self.columns if c.role == "component"]:
            raise _malformed("has columns of components that its components do not make")
        if len(self.calibration.largest_psi) != len(names):
            raise _malformed(
                f"has {len(self.calibration.largest_psi)} calibrated columns for {len(names)}"
            )
        for column in self.columns:
            counted = sum(column.counts)
            if not 0 < counted <= self.rows or (counted < self.rows and column.role != "component"):
                raise _malformed(
                    f"has {counted} values in column {column.name!r} for {self.rows} rows"
                )
        if self.window < 1 or self.rows < 10 * self.window:
            raise _malformed(f"has {self.rows} rows, too few for windows of {self.window}")

    @cached_property
    def layout(self) -> Layout:
        """Where each column's bins lie."""
        return Layout([c.name for c in self.columns], [c.bins for c in self.columns])

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """Smoothed reference probabilities, all columns' bins after each other: (T,)."""
        return np.concatenate([smoothed(column.counts) for column in self.columns])

    @cached_property
    def features(self) -> tuple[Column, ...]:
        """What the model sees."""
        return tuple(column for column in self.columns if column.role == "feature")

    @cached_property
    def outputs(self) -> tuple[Column, ...]:
        """What the model says."""
        return tuple(column for column in self.columns if column.role == "output")

    @cached_property
    def inputs_by_name(self) -> Mapping[str, Column | Embedding]:
        """What a block of rows is expected to carry, by name."""
        plain = {c.name: c for c in self.columns if c.role in ("feature", "output")}
        return {**plain, **{one.name: one for one in self.embeddings}}

    def to_json(self) -> bytes:
        """Canonical JSON, format ``chancery.drift-profile/v1``."""
        return self._json

    @cached_property
    def _json(self) -> bytes:
        document = {
            "format": FORMAT,
            "model": self.model,
            "rows": self.rows,
            "window": self.window,
            "columns": [column.to_dict() for column in self.columns],
            "embeddings": [one.to_dict() for one in self.embeddings],
            "calibration": self.calibration.to_dict(),
            "datasets": dict(self.datasets),
            "rules": self.rules.to_dict(),
            "backend": self.backend,
            "performance": self.performance,
            "fairness": self.fairness,
        }
        if self.components is not None:
            document["components"] = self.components.to_dict()
        try:
            return canonical_json(document)
        except ValueError as error:
            raise MalformedRequestError(
                f"the drift profile cannot be written: {error}",
                "write numbers in the performance and fairness sections as texts",
            ) from error

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of ``to_json``."""
        return sha256_hex(self._json)

    @classmethod
    def from_json(cls, data: bytes | str) -> DriftProfile:
        """Inverse of ``to_json``.

        Raises:
            MalformedRequestError: no JSON, of another version, or not what a profile says; names
                the place.
        """
        fields = Fields.parse(data, FORMAT, "drift profile")
        components = fields.optional_object("components")
        profile = cls(
            model=fields.text("model"),
            columns=tuple(map(Column.from_fields, fields.objects("columns"))),
            rows=fields.integer("rows", least=1),
            window=fields.integer("window", least=1),
            calibration=Calibration.from_fields(fields.object("calibration")),
            embeddings=tuple(map(Embedding.from_fields, fields.objects("embeddings", []))),
            datasets=fields.named_texts("datasets", {}),
            rules=Rules.from_fields(fields.object("rules", {})),
            backend=cast(Any, fields.text("backend", "native", among=_BACKENDS)),
            performance=fields.opaque("performance"),
            fairness=fields.opaque("fairness"),
            components=None if components is None else Components.from_fields(components),
        )
        fields.done()
        return profile

    def require(self, model: str, *, digest: str | None = None) -> None:
        """Refuse to be used for another model, or if the signed digest is another.

        Raises:
            RefusedError: the profile of another model.
            TamperedError: the bytes are not those that were signed.
        """
        if self.model != model:
            raise RefusedError(
                f"the drift profile belongs to the model {self.model!r}, not to {model!r}",
                "pass the profile that was logged with this model",
            )
        if digest is not None and digest != self.digest:
            raise TamperedError(
                f"the drift profile has the digest {self.digest[:12]}…, and {digest[:12]}… was "
                "signed",
                "restore the profile that was signed with the model, or fit and sign another",
            )


def is_component_part(column: Column) -> bool:
    """Whether principal components may be made of it: a feature's numbers, not personal."""
    numeric = isinstance(column.bins, NumericBins)
    return column.role == "feature" and column.pii == "keep" and numeric


def _repeats(names: list[str]) -> bool:
    return len(set(names)) != len(names)


def _malformed(what: str) -> MalformedRequestError:
    return MalformedRequestError(
        f"the drift profile {what}", "fit it again, or restore the file that was signed"
    )
