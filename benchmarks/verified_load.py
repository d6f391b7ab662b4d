"""What verification adds to loading a model of 1 GB.

Three things alternate in one run, over the same bytes in the page cache: ``sha256sum`` of the
model's files, ``mlflow.pyfunc.load_model`` from a plain registry (which reads a local store in
place), and the same from a governed registry, by a protected alias: the files are copied to a
private directory and hashed on the way, manifest, signatures and trust roots are checked, then the
model is loaded. The model reads all its bytes into memory, as models do. ``sha256sum`` may be built
without the processor's SHA instructions, so Python's ``hashlib`` over the same files is measured
too, for whoever wants the harder comparison. Results go to
``benchmarks/results/verified_load.json``.

    python benchmarks/verified_load.py
    python benchmarks/verified_load.py --quick    # 64 MB
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from statistics import median
from typing import Any

from comparison import Aim, interleave
from machine import describe_machine, load_average
from surroundings import private_home, progress

RESULTS = Path(__file__).resolve().parent / "results" / "verified_load.json"
AIM = 1.10
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


def compare(home: Path, size: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each, per round."""
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
        os.sync()  # nobody pays for writing back what another one wrote
        progress(f"  round {turn}: {variant}")
        if variant == "sha256sum":
            return lambda: subprocess.run(
                ["sha256sum", *files], check=True, stdout=subprocess.DEVNULL
            )
        if variant == "hashlib":
            return lambda: [digest(path) for path in files]
        mlflow.set_tracking_uri(uris[variant])
        mlflow.set_registry_uri(uris[variant])
        return lambda: mlflow.pyfunc.load_model(f"models:/{_NAME}@challenger")

    samples = interleave(
        ["sha256sum", "plain_load", "verified_load", "hashlib"], prepare, rounds, warm_up=1
    )
    return {name: [(i[1] - i[0]) / 1e9 for i in found] for name, found in samples.items()}


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
        seconds = compare(home, size, rounds)
    paired = [
        verified / (hashed + plain)
        for hashed, plain, verified in zip(
            seconds["sha256sum"], seconds["plain_load"], seconds["verified_load"], strict=True
        )
    ]
    medians = {name: median(values) for name, values in seconds.items()}
    bound = medians["sha256sum"] + medians["plain_load"]
    aim = Aim("verified load / (sha256sum + plain load)", AIM, medians["verified_load"] / bound)
    result = {
        "benchmark": "verified_load",
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "quick": options.quick,
        "machine": describe_machine(),
        "load_average": {"before": before, "after": load_average()},
        "met": aim.met,
        "aims": [aim.to_dict()],
        "bytes": size,
        "rounds": rounds,
        "ratio_to_hashlib_plus_plain_load": round(
            medians["verified_load"] / (medians["hashlib"] + medians["plain_load"]), 4
        ),
        "median_seconds": {name: round(value, 3) for name, value in medians.items()},
        "ratio_of_rounds": [round(value, 3) for value in paired],
        "seconds": {name: [round(v, 3) for v in values] for name, values in seconds.items()},
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    progress(f"{aim}; {options.output}")


if __name__ == "__main__":
    main()
