"""A sample of the reference's rows, for detectors and slices: a file beside the profile.

A profile holds no rows, and most of monitoring needs none. Detectors that compare samples do, and
so does the search for slices. The file is a block (``drift.blocks``) of at most 2,000 rows, with
what the profile says of personal columns already applied: binned ones are binned, of masked ones
only whether there is a value. It is data of the training set all the same: keep it where that is
kept.

Example::

    write_reference(Path("reference.parquet"), profile, frame[features], {"score": scores})
    sample = read_reference(Path("reference.parquet"), profile)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from drift.block_rows import sample_of
from drift.blocks import Block, from_parquet, to_parquet
from drift.columns import columns_of, typed
from drift.privacy_of import privacy_of
from drift.profile import DriftProfile
from drift.sample import MOST_ROWS, Sample
from governance.canonical import sha256_hex
from governance.errors import MalformedRequestError, RefusedError

__all__ = ["read_reference", "write_reference"]

_SOURCE = "reference"


def write_reference(
    path: Path,
    profile: DriftProfile,
    features: Any,
    outputs: Any = None,
    *,
    rows: int = MOST_ROWS,
    seed: int = 0,
) -> str:
    """Draw rows and write them; the file's SHA-256.

    Args:
        path: Of the file.
        profile: Of the same rows.
        features, outputs: As ``drift.fitting.fit_profile`` had them; embeddings among the features.
        rows: At most.
        seed: Of the drawing.

    Raises:
        MalformedRequestError: no table.
    """
    count = len(features) if hasattr(features, "columns") else len(next(iter(features.values())))
    chosen = np.arange(count)
    if count > rows:
        chosen = np.sort(np.random.default_rng(seed).choice(count, rows, replace=False))
    privacy = privacy_of(profile)
    try:
        tables = [
            {} if table is None else _typed(columns_of(table, count), chosen)
            for table in (features, outputs)
        ]
    except ValueError as error:
        raise MalformedRequestError(
            f"the reference is no table: {error}", "give columns of one length"
        ) from error
    inputs, _ = privacy.applied(tables[0])
    said, _ = privacy.applied(tables[1], "output:")
    block = Block(
        id=profile.digest[:32],
        source=_SOURCE,
        sequence=0,
        model=profile.model,
        version=profile.digest,
        deployment="",
        time_ms=np.zeros(len(chosen), np.int64),
        inputs=inputs,
        outputs=said,
        request_row=np.arange(len(chosen)),
    )
    data = to_parquet(block)
    beside = path.with_name(f".{path.name}.part")
    beside.write_bytes(data)
    os.replace(beside, path)
    return sha256_hex(data)


def _typed(columns: dict[str, Any], chosen: Any) -> dict[str, Any]:
    return {name: typed(values)[chosen] for name, values in columns.items()}


def read_reference(path: Path, profile: DriftProfile) -> Sample:
    """The sample.

    Raises:
        RefusedError: the sample of another profile.
        MalformedRequestError: no such file's content.
        OSError: it cannot be read.
    """
    block = from_parquet(path.read_bytes(), str(path))
    if block.source != _SOURCE or block.version != profile.digest:
        raise RefusedError(
            f"{path} is no reference sample of the profile {profile.digest[:12]}…",
            "write it with the profile (drift.reference.write_reference)",
        )
    return sample_of(profile, block.inputs, block.outputs)
