"""The main job, from training to a refused and an allowed promotion, on real data.

Starts an ordinary MLflow server on a governed SQLite store in ``.demo/``, runs an ordinary training
script against it, and acts out what Chancery is for. Everything printed is what really happened;
any step that goes otherwise ends the demonstration with an error. ``KEEP=1`` leaves the server
running.
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
from pathlib import Path
from urllib.request import urlopen

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".demo"
NAME = "tumour"
console = Console(highlight=False, soft_wrap=True)
results = Table("step", "what happened", title="What happened", show_lines=False)


def main() -> None:
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
        MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="1",
    )
    server = start_server(address, port)
    try:
        story(address, home)
    finally:
        if os.environ.get("KEEP") != "1":
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(30)
    console.print(results)
    store = f"governed+sqlite:///{FOLDER / 'mlflow.db'}"
    look = [
        f"chancery ledger verify --uri {store}",
        f"chancery ledger tail --uri {store}",
        f"chancery lineage models:/{NAME}/1 --up --html lineage.html --uri {store}",
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
        "--backend-store-uri", f"governed+sqlite:///{FOLDER / 'mlflow.db'}",
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
    deadline = time.monotonic() + 90
    while True:
        try:
            with urlopen(f"{address}/health", timeout=5):
                break
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the server did not start; see {FOLDER / 'server.log'}")
            time.sleep(0.2)
    results.add_row("server", f"governed, on {address}")
    return server


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
        sys.exit("the ungated promotion went through")

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
        sys.exit("one approval of two was enough")
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
        sys.exit("the tampered model was loaded")
    model.write_bytes(good)

    step("Prove all of it")
    chancery("verify", f"models:/{NAME}@champion", "--env", "prod")
    store = f"governed+sqlite:///{FOLDER / 'mlflow.db'}"
    report = json.loads(chancery("ledger", "verify", "--uri", store, "--json", quiet=True))
    chancery("ledger", "tail", "-n", "8", "--uri", store)
    if not report["ok"]:
        sys.exit(f"the ledger does not hold: {report['problems']}")
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


def chancery(*arguments: str, quiet: bool = False) -> str:
    return run([str(Path(sys.executable).parent / "chancery"), *arguments], quiet=quiet)


def run(command: list[str], *, quiet: bool = False) -> str:
    shown = " ".join([Path(command[0]).name, *command[1:]])
    console.print(f"  $ {shown}", markup=False, style="dim")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    if done.returncode != 0:
        sys.exit(f"{shown}\n{done.stdout}{done.stderr}")
    if not quiet:
        for line in done.stdout.splitlines():
            console.print(f"    {line}", markup=False)
    return done.stdout


def step(title: str) -> None:
    console.print(f"\n[bold]{title}[/]")


def say(text: str) -> None:
    console.print(f"  → {text}", markup=False)


if __name__ == "__main__":
    main()
