"""A configuration of monitors in a folder, its blocks and its reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from drift.block_folder import BlockFolder
from drift.blocks import Block
from governance.clock import now_ms
from tests.unit.drift.monitor_world import (
    PROFILE,
    block_of,
)


def write_config(folder: Path, monitors: list[dict[str, Any]], **more: Any) -> Path:
    (folder / "profile.json").write_bytes(PROFILE.to_json())
    document = {
        "format": "chancery.monitors/v1",
        "state": "state",
        "blocks": "blocks",
        "defaults": {"profile": "profile.json", "sinks": [{"folder": {"path": "reports"}}]},
        "monitors": monitors,
        **more,
    }
    place = folder / "monitors.yaml"
    place.write_text(yaml.safe_dump(document))
    return place


def folder_of(root: Path, version: int) -> BlockFolder:
    return BlockFolder(root / "blocks" / "fraud" / str(version) / "_")


def block_now(number: int, version: int = 7, **change: Any) -> Block:
    return block_of(number, version=str(version), time_ms=now_ms(), **change)


def reports_of(root: Path, version: int) -> list[dict[str, Any]]:
    files = sorted((root / "reports" / "fraud" / str(version) / "_").glob("*.jsonl"))
    lines = [line for file in files for line in file.read_bytes().splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith(b"\n")]
