"""Rows of windows that are open: a sample of each, and the blocks it was drawn from.

Counts are what a monitor saves. A sample is not saved with each state: it would be a hundred times
the size. Instead the blocks of open windows stay in their folder for a while (64 of them, or
200,000 rows) after they were counted, and after a restart the samples are drawn from them again.
The sample of a window too small to judge goes on into the next.

Example::

    rows.add(entry, block, cutter.split)
    sample = rows.closed(4, judged=True)
    rows.forget(cutter.open)                # after the state was saved
"""

from __future__ import annotations

from collections.abc import Container, Sequence

import numpy as np
from numpy.typing import NDArray

from drift.block_folder import BlockFile
from drift.block_store import BlockStore
from drift.blocks import Block
from drift.cutter import WindowCutter
from drift.report import Subject
from drift.reservoir import Reservoir
from governance.errors import MalformedRequestError

__all__ = ["OpenRows", "as_block"]

_MOST_BLOCKS = 64
_MOST_ROWS = 200_000

Split = Sequence[tuple[int, NDArray[np.int64]]]


class OpenRows:
    """See the module.

    Args:
        folder: Of the blocks.
        rng: What the samples are drawn from.
        sampled: Whether anybody will ask for samples; if not, none are drawn, and no block is kept.
    """

    def __init__(
        self, folder: BlockStore, rng: np.random.Generator, *, sampled: bool = True
    ) -> None:
        self._folder = folder
        self._sampled = sampled
        self._rng = rng
        self._samples: dict[int, Reservoir] = {}
        self._carried: Reservoir | None = None
        self._kept: dict[str, tuple[BlockFile, frozenset[int]]] = {}

    def __contains__(self, name: object) -> bool:
        """Whether a block's file was counted already, and is only kept."""
        return name in self._kept

    def add(self, entry: BlockFile, block: Block, split: Split) -> None:
        """A block that was counted: which of its rows went to which window."""
        split = split if self._sampled else ()
        for index, places in split:
            found = self._samples.get(index)
            if found is None:
                found = self._samples[index] = Reservoir(self._rng)
            found.add(block.inputs, block.outputs, places)
        self._kept[entry.name] = entry, frozenset(index for index, _ in split)

    def closed(self, index: int, *, judged: bool) -> Reservoir | None:
        """The sample of a window that closed; where it was not judged, the next one has it too."""
        sample = self._samples.pop(index, None)
        if self._carried is not None:
            if sample is not None:
                sample.merge(self._carried)
            else:
                sample = self._carried
        self._carried = None if judged else sample
        return sample

    def forget(self, unclosed: Container[int]) -> None:
        """Remove blocks that no open window needs; of the others, the oldest beyond the bounds.

        Only for blocks that a saved state has counted.
        """
        rows = 0
        for place, (entry, indices) in enumerate(reversed(list(self._kept.values()))):
            rows += entry.rows
            needed = any(index in unclosed for index in indices)
            if not needed or place >= _MOST_BLOCKS or rows > _MOST_ROWS:
                self._folder.remove(entry)
                del self._kept[entry.name]

    def read_again(self, cutter: WindowCutter) -> bool:
        """Draw the samples anew from blocks that were counted before; whether there are any."""
        left = cutter.open
        known = [one for one in self._folder.entries() if cutter.known(one.source, one.sequence)]
        for entry in reversed(known):
            split: list[tuple[int, NDArray[np.int64]]] = []
            if left and self._sampled:
                try:
                    block = self._folder.read(entry)
                except (MalformedRequestError, FileNotFoundError):
                    continue
                split = _split(block, left, cutter.every_ms)
                self.add(entry, block, split)
            self._kept[entry.name] = entry, frozenset(index for index, _ in split)
        self._kept = dict(reversed(self._kept.items()))
        return bool(known)


def _split(
    block: Block, left: dict[int, int], every_ms: int | None
) -> list[tuple[int, NDArray[np.int64]]]:
    """Which rows lie in open windows. By count, the last that came do; ``left`` goes down."""
    if every_ms is not None:
        stretches = block.time_ms // every_ms
        parts = [(index, np.flatnonzero(stretches == index)) for index in left]
        return [(index, places) for index, places in parts if len(places)]
    (index,) = left
    places = np.arange(block.rows)[max(0, block.rows - left[index]) :]
    left[index] -= len(places)
    if left[index] <= 0:
        del left[index]
    return [(index, places)]


def as_block(sample: Reservoir, subject: Subject, index: int) -> Block | None:
    """A sample as it is kept until it is checked; None: it has no rows."""
    inputs, outputs = sample.columns()
    rows = len(next(iter((*inputs.values(), *outputs.values())), ()))
    if not rows:
        return None
    return Block(
        id=f"{index & (2**128 - 1):032x}",
        source="sample",
        sequence=max(0, index),
        model=subject.model,
        version=str(subject.version),
        deployment=subject.deployment,
        time_ms=np.zeros(rows, np.int64),
        inputs=inputs,
        outputs=outputs,
        request_row=np.zeros(rows, np.int64),
    )
