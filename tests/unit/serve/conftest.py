"""Fixtures that tests of serving share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    """Of sockets, whose paths have room for some hundred characters only."""
    with tempfile.TemporaryDirectory(prefix="lane") as made:
        yield Path(made)
