"""What of a recorded block the profile counts, and what detectors look at.

A block has inputs and outputs apart, as they were recorded; a profile has features, outputs and
embeddings under one name each. Between them:

- A column that both name is that column.
- Where a serving path had no names (a matrix is ``0``, ``1`` …, predictions are ``prediction`` or
  ``prediction.0`` …), so that no name is the profile's, and there are as many columns as the
  profile has, they are the profile's in its order.
- An embedding's components were recorded as ``name.0``, ``name.1`` …; they become vectors again; a
  row with a component that is no number has none.
- What the profile does not know stays, and is counted as an extra column; so is what the recorder
  saw and left out, by its name, or as ``(masked)`` where even that did not leave.

Example::

    cutter.add(rows_of(profile, block), now_ms=now_ms())
    sample = sample_of(profile, block.inputs, block.outputs)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from drift import reference
from drift.bins import numbers_of
from drift.blocks import Block
from drift.columns import Column
from drift.cutter import Rows
from drift.embedding import NO_VECTOR, Embedding
from drift.profile import DriftProfile
from drift.report import Subject
from drift.sample import Sample
from governance.errors import MalformedRequestError

__all__ = ["named", "require_of", "rows_of", "sample_of"]

Columns = Mapping[str, Column]


def require_of(subject: Subject, block: Block) -> None:
    """That a block is of what is watched.

    Raises:
        MalformedRequestError: it is of something else.
    """
    same = block.model == subject.model and block.version == str(subject.version)
    if not same or (subject.deployment and block.deployment != subject.deployment):
        raise MalformedRequestError(
            f"block {block.sequence} of {block.source} is of {block.model!r} version "
            f"{block.version!r}, deployment {block.deployment!r}, not of {subject.key}",
            "give every served version a folder of its own",
        )


def rows_of(profile: DriftProfile, block: Block) -> Rows:
    """A block as a cutter takes it."""
    columns = _columns(profile, block.inputs, block.outputs)
    for name in block.extra:  # there was such a column; its values did not leave
        known = name in columns or name in profile.inputs_by_name
        columns[f"input:{name}" if known else name] = np.zeros(block.rows, dtype=np.bool_)
    return Rows(
        block.source, block.sequence, columns, block.time_ms, block.dropped + block.malformed
    )


def sample_of(profile: DriftProfile, inputs: Columns, outputs: Columns) -> Sample:
    """Rows as detectors compare them (``drift.reference.sample_of``).

    Args:
        profile: Says what each column is.
        inputs, outputs: As a block has them.
    """
    return reference.sample_of(profile, _columns(profile, inputs, outputs))


def _columns(profile: DriftProfile, inputs: Columns, outputs: Columns) -> dict[str, Any]:
    """Inputs, outputs and vectors, under the profile's names."""
    found, said = named(profile, inputs, outputs)
    columns: dict[str, Any] = {**found, **said}
    for one in profile.embeddings:
        vectors = _vectors(one, columns)
        if vectors is not None:
            columns[one.name] = vectors
    return columns


def named(
    profile: DriftProfile, inputs: Columns, outputs: Columns
) -> tuple[dict[str, Column], dict[str, Column]]:
    """Inputs and outputs under the profile's names. An output that is called like an input keeps
    its place as ``output:name``, so that neither hides the other."""
    embedded = {one.name for one in profile.embeddings}
    features = [column.name for column in profile.features]
    found = _by_name_or_place(inputs, features, embedded)
    said = _by_name_or_place(outputs, [column.name for column in profile.outputs], embedded)
    return found, {(f"output:{n}" if n in found else n): values for n, values in said.items()}


def _by_name_or_place(
    columns: Columns, wanted: Sequence[str], embedded: set[str]
) -> dict[str, Column]:
    known = {*wanted, *embedded}
    strange = all(name not in known and name.rpartition(".")[0] not in embedded for name in columns)
    if strange and len(columns) == len(wanted):
        return dict(zip(wanted, columns.values(), strict=True))
    return dict(columns)


def _vectors(one: Embedding, columns: dict[str, Any]) -> Any:
    """The vectors of an embedding, taken out of its components; None: there are none."""
    names = [f"{one.name}.{place}" for place in range(one.width)]
    parts = [columns[name] for name in names if name in columns]
    if one.name in columns or len(parts) < one.width:
        return None
    for name in names:
        del columns[name]
    if all(part.dtype == object and not any(v is not None for v in part) for part in parts):
        return None
    numbers, strange = zip(*map(numbers_of, parts), strict=True)
    vectors, odd = np.column_stack(numbers), np.logical_or.reduce(strange)
    if not odd.any():
        return vectors
    found = np.empty(len(vectors), dtype=object)
    for place, vector in enumerate(vectors):
        found[place] = NO_VECTOR if odd[place] else vector
    return found
