"""Detectors by name: what a model's drift configuration may ask for, and what it gets.

``build("mmd", "alibi")`` gives Alibi Detect's where ``drift.licence`` lets it run, and otherwise
the native detector that comes nearest, which says so in its findings.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from drift.alibi_backend import ALIBI_DETECTORS, AlibiDetector
from drift.alibi_process import AlibiProcess
from drift.detector import Backend, Detector, Finding
from drift.licence import choose
from drift.native import (
    Bins,
    ChiSquare,
    Default,
    DomainClassifier,
    FourierMMD,
    KolmogorovSmirnov,
    OutputKS,
    Tabular,
)
from drift.sample import Sample
from governance.errors import ConfigurationError

__all__ = ["NATIVE_DETECTORS", "NATIVE_ONLY", "build"]

NATIVE_DETECTORS: Mapping[str, Callable[[float], Detector]] = {
    "ks": KolmogorovSmirnov,
    "chi2": ChiSquare,
    "tabular": Tabular,
    "bins": Bins,
    "output-ks": OutputKS,
    "mmd": FourierMMD,
    "classifier": DomainClassifier,
    "default": Default,
}
NATIVE_ONLY = NATIVE_DETECTORS.keys() - ALIBI_DETECTORS.keys()
_NEAREST = {"lsdd": "mmd", "mmd-online": "mmd", "lsdd-online": "mmd"}


@dataclass(frozen=True, slots=True)
class _StandIn:
    """A detector that says for what it stands in."""

    inner: Detector
    note: str

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def backend(self) -> Backend:
        return self.inner.backend

    @property
    def threshold(self) -> float:
        return self.inner.threshold

    def find(self, reference: Sample, window: Sample, rng: np.random.Generator) -> Finding:
        found = self.inner.find(reference, window, rng)
        return replace(found, notes=(*found.notes, self.note))


def build(
    name: str,
    backend: str = "native",
    *,
    level: float = 0.05,
    process: AlibiProcess | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Detector:
    """A detector.

    Args:
        name: One of ``NATIVE_DETECTORS`` or ``ALIBI_DETECTORS``.
        backend: ``native`` or ``alibi``; what only we have is native with either.
        level: Of false alarms.
        process: Where Alibi Detect runs; kept running after a call if it is given.
        environ: Of the settings.

    Raises:
        ConfigurationError: there is no such detector or backend.
    """
    choice = choose(backend, environ)
    known = sorted({*NATIVE_DETECTORS, *ALIBI_DETECTORS})
    if name not in known:
        raise ConfigurationError(
            f"there is no drift detector {name!r}", f"choose one of {', '.join(known)}"
        )
    if choice.backend is Backend.ALIBI and name in ALIBI_DETECTORS:
        if process is not None:
            return AlibiDetector(name, level, process, keep=True)
        return AlibiDetector(name, level, AlibiProcess(environ=environ))
    nearest = _NEAREST.get(name, name)
    if nearest != name and not choice.note:
        raise ConfigurationError(
            f"the native backend has no detector {name!r}", f"choose {nearest!r}, its nearest"
        )
    note = choice.note
    if nearest != name:
        note += f"; {nearest} stands in for {name}"
    if backend == Backend.ALIBI and name in NATIVE_ONLY:
        note = f"{name} is native: Alibi Detect has no such detector"
    detector = NATIVE_DETECTORS[nearest](level)
    return _StandIn(detector, note) if note else detector
