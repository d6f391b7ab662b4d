"""The whole story on real data: from training over refused and allowed promotions to a rollout.

Starts an ordinary MLflow server on a governed SQLite store in ``.demo/``, runs an ordinary training
script against it, and acts out what Chancery is for: first the gate and the ledger, then serving
with a canary (``demo_serving``), last a monitor that finds a shift (``demo_drift``). Everything
printed is what really happened; any step that goes otherwise ends the demonstration with an error.
``KEEP=1`` leaves the MLflow server running.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path
from urllib.request import urlopen

from demo_narrator import (
    FOLDER,
    NAME,
    ROOT,
    STORE,
    chancery,
    console,
    give_up,
    results,
    run,
    say,
    step,
)
from demo_serving import serving


def main() -> None:
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # cleans up
    warnings.simplefilter("ignore")
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    home = FOLDER / "chancery"
    os.environ.update(
        MLFLOW_TRACKING_URI=address,
        MLFLOW_DISABLE_TELEMETRY="true",
        GIT_PYTHON_REFRESH="quiet",
        CHANCERY_HOME=str(home),
        CHANCERY_POLICY=str(ROOT / "examples" / "policy.yaml"),
        CHANCERY_ACTOR="demo-scientist",
        PYTHONWARNINGS="ignore",
        PYTHONUNBUFFERED="1",
        MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="1",
    )
    server = start_server(address, port)
    try:
        wait_for(server, address)
        story(address, home)
        serving(address, [home / "approver.key", FOLDER / "bea.key"])
    except BaseException:
        stop(server)
        raise
    if os.environ.get("KEEP") != "1":
        stop(server)
    console.print(results)
    console.print(f"{time.monotonic() - began:.0f} s in all")
    look = [
        f"chancery ledger verify --uri {STORE}",
        f"chancery ledger tail --uri {STORE}",
        f"chancery deploy list --all --uri {STORE}",
        f"chancery lineage models:/{NAME}/1 --up --html lineage.html --uri {STORE}",
    ]
    console.print("\nLook further:")
    if os.environ.get("KEEP") == "1":
        console.print(f"  the MLflow UI   {address}  (stop it: kill -- -{server.pid})")
    else:
        console.print("  KEEP=1 make demo leaves the server running for its UI")
    console.print(f"  export CHANCERY_HOME={home} CHANCERY_POLICY={os.environ['CHANCERY_POLICY']}")
    for line in look:
        console.print(f"  {Path(sys.executable).parent}/{line}", markup=False)


def start_server(address: str, port: int) -> subprocess.Popen[bytes]:
    step("Start an ordinary MLflow server; only the store URI differs")
    command = [
        sys.executable, "-m", "mlflow", "server", "--app-name", "governance",
        "--backend-store-uri", STORE,
        "--artifacts-destination", str(FOLDER / "artifacts"),
        "--host", "127.0.0.1", "--port", str(port), "--workers", "2",
    ]  # fmt: skip
    console.print("  $ mlflow " + " ".join(command[3:]), markup=False, style="dim")
    log = (FOLDER / "server.log").open("wb")
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment.pop("MLFLOW_TRACKING_URI")
    server = subprocess.Popen(
        command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=FOLDER
    )
    return server


def stop(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is not None:
        return
    os.killpg(server.pid, signal.SIGTERM)
    try:
        server.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(30)


def wait_for(server: subprocess.Popen[bytes], address: str) -> None:
    deadline = time.monotonic() + 180
    while True:
        try:
            with urlopen(f"{address}/health", timeout=5):
                break
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                give_up(f"the server did not start; see {FOLDER / 'server.log'}")
            time.sleep(0.2)
    results.add_row("server", f"governed, on {address}")


def story(address: str, home: Path) -> None:
    import mlflow
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException
    from sklearn.datasets import load_breast_cancer

    step("Train with an ordinary script")
    run([sys.executable, str(ROOT / "examples" / "train.py"), "--name", NAME])
    results.add_row("train", "plain mlflow script; run sealed, artifact digested, on the ledger")

    client = mlflow.MlflowClient()
    step("Somebody points @champion at it, as anyone could until now")
    try:
        client.set_registered_model_alias(NAME, "champion", "1")
    except MlflowException as error:
        say(error.message)
        results.add_row("@champion, unapproved", "refused (403), with every unmet condition")
    else:
        give_up("the ungated promotion went through")

    step("A second person joins the approvers: an act that administrators sign")
    first = f"file:{home / 'approver.key'}"
    second = f"file:{FOLDER / 'bea.key'}"
    made = json.loads(chancery("keys", "create", str(FOLDER / "bea.key"), "--json", quiet=True))
    (FOLDER / "bea.pub").write_text(made["publicKey"])
    chancery("trust", "add", "bea", "--public-key", str(FOLDER / "bea.pub"),
             "--approver", "staging", "--approver", "prod", "--key", first)  # fmt: skip
    results.add_row("trust roots", "version 2, signed; two persons may approve")

    step("Request staging, approve it, promote it")
    approve(request("staging"), first)
    client.set_registered_model_alias(NAME, "challenger", "1")
    results.add_row("@challenger (staging)", "allowed after one approval")

    step("Request prod: the policy wants two distinct persons")
    statement = request("prod")
    approve(statement, first)
    try:
        client.set_registered_model_alias(NAME, "champion", "1")
    except MlflowException as error:
        say(error.message)
        results.add_row("@champion, 1 of 2", "refused: one more person has to approve")
    else:
        give_up("one approval of two was enough")
    approve(statement, second)
    client.set_registered_model_alias(NAME, "champion", "1")
    say("the alias champion now points at version 1")
    results.add_row("@champion, 2 of 2", "allowed; clearance recorded")

    step("Load it: digest, signatures, trust roots and revocation are verified first")
    frame = load_breast_cancer(as_frame=True).frame
    rows = frame.drop(columns="target").sample(5, random_state=1)
    before = mlflow.pyfunc.load_model(f"models:/{NAME}@champion").predict(rows).tolist()
    say(f"predictions: {before}")
    results.add_row("load", f"verified, predictions {before}")

    step("An intruder flips one byte of the stored model")
    model = next(
        p for p in (FOLDER / "artifacts").rglob("model.*") if p.suffix in (".pkl", ".skops")
    )
    good = model.read_bytes()
    flipped = bytearray(good)
    flipped[len(flipped) // 2] ^= 1
    model.write_bytes(bytes(flipped))
    try:
        mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    except MlflowException as error:
        say(error.message)
        results.add_row("tampered artifact", "load refused (TAMPERED), nothing was unpickled")
    else:
        give_up("the tampered model was loaded")
    model.write_bytes(good)

    step("Prove all of it")
    chancery("verify", f"models:/{NAME}@champion", "--env", "prod")
    report = json.loads(chancery("ledger", "verify", "--uri", STORE, "--json", quiet=True))
    chancery("ledger", "tail", "-n", "8", "--uri", STORE)
    if not report["ok"]:
        give_up(f"the ledger does not hold: {report['problems']}")
    results.add_row("ledger", f"{report['size']} events, tree and witness agree")
    chancery("lineage", f"models:/{NAME}/1", "--up")


def request(environment: str) -> str:
    found = json.loads(
        chancery("request", f"models:/{NAME}/1", "--to", environment, "--json", quiet=True)
    )
    return str(found["statementId"])


def approve(statement: str, key: str) -> None:
    said = chancery("approve", statement[:12], "--yes", "--key", key, quiet=True)
    for line in said.splitlines()[:1] + said.splitlines()[-1:]:
        console.print(f"    {line}", markup=False)


if __name__ == "__main__":
    main()
