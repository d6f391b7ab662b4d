"""Fits a drift profile to reference rows, at training time and with one call.

Rows are taken in the order in which they came (or by ``times``), and never shuffled: windows of
live traffic are stretches of time too, and shuffled ones would look calmer than any of them.

Calibration: the reference is cut into windows of W rows after each other, up to 100 spread evenly
over time, and each is compared with the counts of all other rows. Bins are those of the whole
reference. With ``calibration=`` the windows are cut from rows given for it, which came later.

Example::

    profile = fit_profile(frame[features], {"score": scores}, model="fraud", window=1000,
                          datasets={"transactions-2024": digest}, pii={"town": "bin"})
    Path("drift_profile.json").write_bytes(profile.to_json())
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drift.bins import Bins, fit_bins, smoothed
from drift.components import Components
from drift.embedding import Embedding, presence_of
from drift.profile import Calibration, Column, DriftProfile, Pii, Role, is_component_part
from drift.psi import psi
from drift.rules import Rules
from drift.sections import FAIRNESS, FairnessSection
from drift.sequential import DirichletBets
from drift.tables import Table, columns_of, one_dimensional
from governance.errors import MalformedRequestError

__all__ = ["fit_profile"]

_MOST_WINDOWS = 100
_MOST_BINS = 1000
_CHOOSING = 0.2  # of the rows choose the components, which are counted on the others
_NOT_COUNTED = -1
_TOGETHER = 64  # columns that are weighed at once, to spare wide tables the calls


def fit_profile(
    features: Table,
    outputs: Table | None = None,
    *,
    model: str,
    window: int = 1000,
    embeddings: Mapping[str, ArrayLike] | None = None,
    bins: int = 10,
    kinds: Mapping[str, Literal["numeric", "category"]] | None = None,
    pii: Mapping[str, Pii] | None = None,
    protected: Collection[str] = (),
    rules: Rules | None = None,
    backend: Literal["native", "alibi"] = "native",
    datasets: Mapping[str, str] | None = None,
    times: ArrayLike | None = None,
    calibration: Table | None = None,
    directions: int = 16,
    components: int = 8,
    seed: int = 0,
    performance: Mapping[str, Any] | None = None,
    fairness: Mapping[str, Any] | None = None,
) -> DriftProfile:
    """The profile of a model.

    Args:
        features: Reference rows as the model sees them.
        outputs: What the model says to them: predictions, scores, probabilities of classes.
        model: Name of the registered model.
        window: W, rows of a window; the reference needs ten times as many.
        embeddings: Vectors (n, k) by name.
        bins: Ranges between the least and the largest value of a numeric column.
        kinds: Of columns whose type says otherwise (a postal code that is an integer).
        pii: What may be kept of personal columns: ``bin`` or ``mask``; of an embedding ``mask``,
            with which it has no projections, and only whether there is a vector is counted.
        protected: Columns by whose groups fairness is judged.
        rules: When to warn and to alert.
        backend: Who confirms alarms.
        datasets: Data sets of the reference, name → digest.
        times: Of the rows (n,), to put them into order; without, they lie in order already.
        calibration: Later rows to calibrate on, features, outputs and embeddings together.
        directions: Projections of each embedding.
        components: Principal components of the numeric features; 0 for none.
        seed: Of the projections, and of the choice of rows that choose components.
        performance: Kept as it is.
        fairness: Kept as it is.

    Raises:
        MalformedRequestError: names what is wrong with the rows.
        ConfigurationError: fairness is asked of a column whose groups do not leave.
    """
    if not 1 <= bins <= _MOST_BINS:
        raise MalformedRequestError(f"bins={bins} ranges cannot be made", "pass bins=10")
    plain: dict[str, tuple[Role, NDArray[Any]]] = {}
    tables: list[tuple[Role, Table]] = [("feature", features), ("output", outputs)]
    for role, table in tables:
        for name, values in columns_of(table, f"{role}s").items():
            if name in plain:
                raise _twice(name)
            plain[name] = (role, one_dimensional(values, name))
    vectors: list[tuple[Embedding, Any]] = []
    masked: list[str] = []
    for name, values in columns_of(embeddings, "embeddings").items():
        one = Embedding.fit(name, values, directions=directions, seed=seed)
        if not _is_masked(one, pii or {}):
            vectors.append((one, values))
        elif name in plain:
            raise _twice(name)
        else:
            plain[name] = ("feature", presence_of(values))
            masked.append(name)
    lengths = {name: len(values) for name, (_, values) in plain.items()}
    lengths |= {one.name: len(values) for one, values in vectors}
    rows = _rows(lengths, window)
    for one, values in vectors:
        if one.name in plain:
            raise _twice(one.name)
        for name, column in one.columns(values).items():
            if name in plain:
                raise _twice(name)
            plain[name] = ("embedding", column)
    _known({**plain, **{one.name: one for one, _ in vectors}}, pii or {}, "pii")
    _known(plain, kinds or {}, "kinds")
    _known(plain, protected, "protected")
    order = _order(times, rows)
    later = _later(calibration, [one for one, _ in vectors], masked, window)
    fitted: list[Column] = []
    cut = _Windows(rows if calibration is None else _length(later), window)

    def fit(
        name: str,
        role: Role,
        values: NDArray[Any],
        live: ArrayLike | None,
        counted: NDArray[np.bool_] | None = None,
    ) -> None:
        """One column: reference values (n,), of which ``counted`` count, and those to calibrate."""
        kept = (pii or {}).get(name, "keep")
        if kept not in ("keep", "bin", "mask"):
            raise MalformedRequestError(
                f"pii of column {name!r} is {kept!r}", "write keep, bin or mask"
            )
        known = fit_bins(
            values if counted is None else values[counted],
            bins=bins,
            kind="presence" if kept == "mask" else (kinds or {}).get(name),
            private=kept != "keep",
        )
        codes = known.codes(values)
        if counted is not None:
            codes[~counted] = _NOT_COUNTED
        counts = np.bincount(codes[codes != _NOT_COUNTED], minlength=known.size).astype(np.int64)
        if live is None:
            cut.compare(known, counts, codes, left_out=True)
        else:
            cut.compare(known, counts, known.codes(live), left_out=False)
        fitted.append(Column(name, role, known, tuple(counts.tolist()), kept, name in protected))

    for name, (role, array) in plain.items():
        if later is not None and name not in later:
            raise MalformedRequestError(
                f"the calibration rows lack the column {name!r}",
                "pass features, outputs and embeddings together",
            )
        values = array if order is None else array[order]
        plain[name] = (role, values)
        fit(name, role, values, None if later is None else one_dimensional(later[name], name))
    parts = {one.name: plain[one.name][1] for one in fitted if is_component_part(one)}
    parts = {name: values for name, values in parts.items() if values.dtype.kind not in "mM"}
    # By chance: every fifth row may be of a kind of its own. RandomState's stream is frozen.
    chooses = np.random.RandomState(seed).random_sample(rows) < _CHOOSING
    together = Components.fit({k: values[chooses] for k, values in parts.items()}, components)
    if together is not None:
        live = None
        if later is not None:
            said = {name: np.asarray(later[name]) for name in parts}
            live = together.columns(said, _length(later))
        for name, values in together.columns(parts, rows).items():
            fit(name, "component", values, None if live is None else live[name], ~chooses)
    profile = DriftProfile(
        model=model,
        columns=tuple(fitted),
        rows=rows,
        window=window,
        calibration=cut.result("left out" if later is None else "given"),
        embeddings=tuple(one for one, _ in vectors),
        datasets=dict(datasets or {}),
        rules=rules or Rules(),
        backend=backend,
        performance=performance,
        fairness=fairness,
        components=together,
    )
    if fairness is not None and fairness.get("format") == FAIRNESS:
        section = FairnessSection.of(profile)
        assert section is not None
        section.require_seen(profile)
    return profile


class _Windows:
    """Compares the calibration windows with the reference, a column at a time."""

    def __init__(self, rows: int, window: int) -> None:
        whole = rows // window
        count = min(whole, _MOST_WINDOWS)
        self._window = window
        self._first = (np.arange(count) * whole // max(count, 1)) * window
        self._psi: list[float] = []
        self._log_e: list[NDArray[np.float64]] = []
        self._parts: list[NDArray[np.int64]] = []
        self._references: list[NDArray[np.float64]] = []

    def compare(
        self,
        bins: Bins,
        counts: NDArray[np.int64],
        codes: NDArray[np.int64],
        *,
        left_out: bool,
    ) -> None:
        """One column's windows (cut from ``codes``) against the reference's ``counts``."""
        windows, size = len(self._first), bins.size
        places = self._first[:, None] + np.arange(self._window)
        found = codes[places]
        cells = (found + np.arange(windows)[:, None] * size)[found != _NOT_COUNTED]
        parts = np.bincount(cells, minlength=windows * size).reshape(windows, size)
        self._parts.append(parts)
        rest = counts - parts if left_out else np.broadcast_to(counts, parts.shape)
        self._references.append(smoothed(rest))
        if len(self._parts) == _TOGETHER:
            self._weigh()

    def _weigh(self) -> None:
        """Weigh the columns that wait. Each window stands as a column: the sums are the same."""
        if not self._parts:
            return
        windows = len(self._first)
        sizes = np.repeat([parts.shape[1] for parts in self._parts], windows)
        starts = np.cumsum(sizes) - sizes
        parts = np.concatenate([parts.ravel() for parts in self._parts])
        reference = np.concatenate([reference.ravel() for reference in self._references])
        self._psi += psi(parts, reference, starts).reshape(-1, windows).max(axis=1).tolist()
        self._log_e += list(DirichletBets(reference, starts).log_e(parts).reshape(-1, windows))
        self._parts, self._references = [], []

    def result(self, source: Literal["left out", "given"]) -> Calibration:
        """What was found."""
        self._weigh()
        log_r = np.full(len(self._psi), -np.inf)
        largest = 0.0
        for log_e in np.array(self._log_e).T:
            log_r = np.minimum(np.logaddexp(0.0, log_r) + log_e, math.log(1e12))
            largest = max(largest, float(np.exp(log_r).mean()))
        return Calibration(len(self._first), self._window, source, tuple(self._psi), largest)


def _rows(lengths: Mapping[str, int], window: int) -> int:
    """The common length of the columns, if it is enough."""
    if not lengths:
        raise MalformedRequestError("the reference has no columns", "pass the model's features")
    name, rows = next(iter(lengths.items()))
    for other, length in lengths.items():
        if length != rows:
            raise MalformedRequestError(
                f"column {other!r} has {length} rows, and {name!r} has {rows}",
                "pass the same rows for every column",
            )
    if rows == 0:
        raise MalformedRequestError("the reference has no rows", "pass the rows of the training")
    if window < 1:
        raise MalformedRequestError(f"a window of {window} rows is none", "pass window=1000")
    if rows < 10 * window:
        fits = rows // 10
        raise MalformedRequestError(
            f"the reference has {rows} rows, and windows of {window} rows need at least "
            f"{10 * window}",
            f"pass window={fits}, which fits, or more rows" if fits else "pass more rows",
        )
    return rows


def _order(times: ArrayLike | None, rows: int) -> NDArray[np.int64] | None:
    if times is None:
        return None
    array = one_dimensional(times, "times")
    if len(array) != rows or array.dtype.kind not in "fiumM":
        raise MalformedRequestError(
            f"times has {len(array)} values of {array.dtype} for {rows} rows",
            "pass one number or time a row",
        )
    return np.argsort(array, kind="stable")


def _later(
    table: Table | None, embeddings: list[Embedding], masked: Collection[str], window: int
) -> dict[str, Any] | None:
    """Calibration rows by column name, vectors as projections, masked ones as their presence."""
    if table is None:
        return None
    columns = columns_of(table, "calibration rows")
    for one in embeddings:
        if one.name in columns:
            columns |= one.columns(columns.pop(one.name))
    columns |= {name: presence_of(columns[name]) for name in masked if name in columns}
    lengths = sorted({len(values) for values in columns.values()})
    if len(lengths) != 1 or lengths[0] < window:
        raise MalformedRequestError(
            f"the calibration rows have the lengths {lengths}, and a window has {window} rows",
            "pass the same rows for every column, at least one window of them",
        )
    return columns


def _length(columns: Mapping[str, Any] | None) -> int:
    return len(next(iter(columns.values()))) if columns else 0


def _known(columns: Mapping[str, object], named: Collection[str], what: str) -> None:
    for name in named:
        if name not in columns:
            raise MalformedRequestError(
                f"{what} names the column {name!r}, which the reference has not",
                f"its columns are {', '.join(sorted(columns)[:20])}",
            )


def _is_masked(one: Embedding, pii: Mapping[str, Pii]) -> bool:
    """Whether nothing but the presence of its vectors is kept.

    Raises:
        MalformedRequestError: something else is asked for than to keep or to mask all of it.
    """
    part = next((name for name in one.column_names if name in pii), None)
    if part is not None:
        raise MalformedRequestError(
            f"pii names {part!r}, a projection: vectors are recorded by their components, and none "
            "of these would be protected by it",
            f"name the embedding: pii={{{one.name!r}: 'mask'}}",
        )
    kept = pii.get(one.name, "keep")
    if kept not in ("keep", "mask"):
        raise MalformedRequestError(
            f"pii of the embedding {one.name!r} is {kept!r}, and a vector has no bin",
            "write keep, or mask: then nothing of it is recorded but whether there is a vector",
        )
    return kept == "mask"


def _twice(name: str) -> MalformedRequestError:
    return MalformedRequestError(
        f"the column {name!r} comes twice, among features, outputs and embeddings",
        "give each its own name",
    )
