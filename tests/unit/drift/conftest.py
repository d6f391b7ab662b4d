"""What several of these modules start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.drift.monitor_world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """One subject, its blocks and a sink."""
    return World(tmp_path)
