"""What verification adds to loading a model of 1 GB.

Five things alternate in one run, over the same bytes in the page cache:

- ``sha256sum`` of the model's files, which may be built without the processor's SHA instructions;
- ``openssl dgst -sha256`` of them, and Python's ``hashlib``, which use them: a harder comparison;
- ``mlflow.pyfunc.load_model`` from a plain registry, which reads a local store in place;
- the same from a governed registry, by a protected alias: the files are copied to a private
  directory and the copy is hashed, manifest, signatures and trust roots are checked, then the model
  is loaded.

The model reads all its bytes into memory, as models do. A verified load is compared with a hash and
a plain load together.

A verified load needs twice the memory of a plain one: the pages of the copy and the model. A
virtual machine that hands free memory back to its host pays for every page it touches anew
(``first_touch`` in the results says how much). So all is measured twice: ``as_is``, and
``memory_at_hand``, where memory is touched and freed just before each measurement, as on a machine
that keeps its own.

Results go to ``benchmarks/results/verified_load.json``; ``load_average`` there tells how busy the
machine was with other things.

    python benchmarks/verified_load.py
    python benchmarks/verified_load.py --quick    # 64 MB
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import hashlib
import json
import mmap
import os
import shutil
import subprocess
import time
from pathlib import Path
from statistics import median
from typing import Any

from comparison import Aim, interleave, ratio
from machine import describe_machine, load_average
from surroundings import private_home, progress

RESULTS = Path(__file__).resolve().parent / "results" / "verified_load.json"
AIM = 1.10
AIM_FASTEST = 1.30
"""Against the fastest hash, which leaves the copy little to hide behind."""
_SHA256SUM = ["sha256sum"]
_OPENSSL = ["openssl", "dgst", "-sha256"]
_HASHES = ("sha256sum", "openssl", "hashlib")
_NAME = "big"
_CHUNK = 1 << 24


def write_random(path: Path, size: int) -> None:
    """``size`` random bytes."""
    with path.open("wb") as file:
        for start in range(0, size, _CHUNK):
            file.write(os.urandom(min(_CHUNK, size - start)))


def digest(path: str) -> str:
    """SHA-256 of a file, by OpenSSL through ``hashlib``."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def register(uri: str, folder: Path, weights: Path, home: Path | None) -> str:
    """Log and register the model, and give it the alias ``challenger``; where its files lie."""
    import mlflow
    import mlflow.pyfunc

    class Weights(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined,misc]
        """Holds its bytes in memory."""

        def load_context(self, context: Any) -> None:
            with open(context.artifacts["weights"], "rb") as file:
                self.weights = file.read()

        def predict(self, context: Any, model_input: list[str]) -> list[str]:
            return [str(len(self.weights)) for _ in model_input]

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    mlflow.create_experiment("load", artifact_location=folder.as_uri())
    mlflow.set_experiment("load")
    with mlflow.start_run():
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=Weights(),
            artifacts={"weights": weights.as_uri()},
            registered_model_name=_NAME,
            pip_requirements=[],
        )
    if home is not None:
        approve(uri, home)
    client = mlflow.MlflowClient(uri, uri)
    client.set_registered_model_alias(_NAME, "challenger", "1")
    return str(client.get_logged_model(info.model_id).artifact_location)


def approve(uri: str, home: Path) -> None:
    """Request and approve the promotion to staging."""
    from governance.backend import open_backend
    from governance.signing.dsse import sign_bundle
    from governance.signing.keys import FileSigner
    from governance.signing.statements import PAYLOAD_TYPE

    backend = open_backend(uri)
    request = backend.request_promotion(_NAME, 1, "staging")
    signer = FileSigner(home / "approver.key")
    backend.approve(request.statement_id, sign_bundle(request.payload, PAYLOAD_TYPE, signer))


def touch_memory(size: int, times: int = 1) -> list[float]:
    """Seconds to write to ``size`` fresh bytes of memory, and to the same again; then free them."""
    seconds = []
    with mmap.mmap(-1, size) as memory:
        held = ctypes.c_char.from_buffer(memory)
        for turn in range(times):
            began = time.perf_counter()
            ctypes.memset(ctypes.addressof(held), turn, size)
            seconds.append(time.perf_counter() - began)
        del held  # it would keep the memory open
    return seconds


def compare(home: Path, size: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each, per round, with the memory as it is and at hand."""
    import mlflow
    from mlflow.utils.file_utils import local_file_uri_to_path

    from governance.settings import Settings

    weights = home / "weights.bin"
    progress(f"writing {size / 1e6:.0f} MB of random bytes")
    write_random(weights, size)
    plain = f"sqlite:///{home}/plain.db"
    governed = f"governed+sqlite:///{home}/governed.db"
    uris = {"plain_load": plain, "verified_load": governed}
    progress("registering the model twice, plain and governed")
    location = register(plain, home / "plain", weights, None)
    register(governed, home / "governed", weights, Settings.load(governed).home)
    weights.unlink()
    folder = Path(local_file_uri_to_path(location))
    files = sorted(str(path) for path in folder.rglob("*") if path.is_file())
    downloads = Path(os.environ["TMPDIR"])
    kept = set(downloads.iterdir())

    def prepare(variant: str, turn: int) -> Any:
        for path in set(downloads.iterdir()) - kept:  # what the last load left behind
            shutil.rmtree(path)
        gc.collect()  # the last model
        os.sync()  # nobody pays for writing back what another one wrote
        if at_hand:
            touch_memory(5 * size // 2)
        progress(f"  round {turn}: {variant}")
        if variant in ("sha256sum", "openssl"):
            command = [*(_SHA256SUM if variant == "sha256sum" else _OPENSSL), *files]
            return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        if variant == "hashlib":
            return lambda: [digest(path) for path in files]
        mlflow.set_tracking_uri(uris[variant])
        mlflow.set_registry_uri(uris[variant])
        return lambda: mlflow.pyfunc.load_model(f"models:/{_NAME}@challenger")

    variants = ["sha256sum", "plain_load", "hashlib", "verified_load"]
    if shutil.which("openssl"):
        variants.append("openssl")
    results = {}
    for at_hand in (False, True):
        series = "memory_at_hand" if at_hand else "as_is"
        progress(f"measuring: {series}")
        samples = interleave(variants, prepare, rounds, warm_up=1)
        results[series] = {
            name: [(i[1] - i[0]) / 1e9 for i in found] for name, found in samples.items()
        }
    return results


def summary(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and a verified load beside each hash and a plain load."""
    return {
        "median_seconds": {name: round(median(values), 3) for name, values in seconds.items()},
        "verified_load_to_hash_plus_plain_load": {
            name: ratio(
                seconds["verified_load"],
                [a + b for a, b in zip(seconds[name], seconds["plain_load"], strict=True)],
            )
            for name in _HASHES
            if name in seconds
        },
        "seconds": {name: [round(v, 3) for v in values] for name, values in seconds.items()},
    }


def aim_of(seconds: dict[str, list[float]], series: str, name: str, limit: float) -> Aim:
    """An aim about a verified load beside the hash ``name`` and a plain load."""
    bound = median(seconds[name]) + median(seconds["plain_load"])
    label = "sha256sum" if name == "sha256sum" else f"{name}, the fastest here,"
    return Aim(
        f"{series}: verified load / ({label} + plain load)",
        limit,
        median(seconds["verified_load"]) / bound,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="64 MB and three rounds")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    size = 64_000_000 if options.quick else 1_000_000_000
    rounds = options.rounds or (3 if options.quick else 9)
    before = load_average()
    with private_home() as home:
        if shutil.disk_usage(home).free < 8 * size:
            raise SystemExit(f"{home} has less than {8 * size / 1e9:.0f} GB free")
        new, again = touch_memory(size, 2)
        found = compare(home, size, rounds)
    as_is, at_hand = found["as_is"], found["memory_at_hand"]
    fastest = min((name for name in _HASHES if name in as_is), key=lambda n: median(as_is[n]))
    aims = [
        aim_of(as_is, "as_is", "sha256sum", AIM),
        aim_of(as_is, "as_is", fastest, AIM_FASTEST),
        aim_of(at_hand, "memory_at_hand", fastest, AIM_FASTEST),
    ]
    result = {
        "benchmark": "verified_load",
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "quick": options.quick,
        "machine": describe_machine(),
        "load_average": {"before": before, "after": load_average()},
        "met": aims[0].met,  # what the project promises; the others are harder
        "aims": [aim.to_dict() for aim in aims],
        "bytes": size,
        "rounds": rounds,
        "first_touch": {
            "seconds_per_gb": round(new / size * 1e9, 3),
            "seconds_per_gb_again": round(again / size * 1e9, 3),
        },
        **{series: summary(seconds) for series, seconds in found.items()},
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    for aim in aims:
        progress(str(aim))
    progress(str(options.output))


if __name__ == "__main__":
    main()
