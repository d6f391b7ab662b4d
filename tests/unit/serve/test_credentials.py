"""No password travels with a URI into the cluster."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from governance.errors import ConfigurationError
from serve.credentials import PASSED_ON, passed_on, without_password

POSTGRES = "governed+postgresql+psycopg"


@pytest.mark.parametrize(
    ("uri", "line"),
    [
        (f"{POSTGRES}://bea:pa55@db:5433/mlflow", "*:*:*:bea:pa55"),
        ("postgresql+psycopg://bea:pa55@db/mlflow", "*:*:*:bea:pa55"),
        (f"{POSTGRES}://bea@db/mlflow?password=pa55", "*:*:*:bea:pa55"),
        (f"{POSTGRES}://bea:pa55%3A%5C%40@db/mlflow", r"*:*:*:bea:pa55\:\\@"),
        (f"{POSTGRES}://:pa55@db/mlflow", "*:*:*:*:pa55"),
    ],
)
def test_a_password_moves_into_a_file(uri: str, line: str, tmp_path: Path) -> None:
    home = tmp_path / "home of chancery"
    shown = without_password(uri, home)
    assert "pa55" not in shown
    assert shown.startswith(uri.partition("://")[0])
    (file,) = home.iterdir()
    assert file.read_text() == line + "\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert without_password(shown, home) == shown, "once is enough"
    assert without_password(uri.replace("pa55", "other"), home) == shown, "one file a place"
    assert "other" in file.read_text()


def test_libpq_understands_the_uri(tmp_path: Path) -> None:
    from psycopg.conninfo import conninfo_to_dict
    from sqlalchemy import create_engine
    from sqlalchemy.engine import make_url

    shown = without_password("postgresql+psycopg://b:pw@db:1/m?sslmode=require", tmp_path / "a b")
    _, options = create_engine(shown).dialect.create_connect_args(make_url(shown))
    found = conninfo_to_dict("", **options)
    assert Path(str(found["passfile"])).read_text() == "*:*:*:b:pw\n"
    assert found["sslmode"] == "require"
    assert "password" not in found


@pytest.mark.parametrize(
    "uri",
    [
        "", "databricks", "governed+sqlite:////srv/mlflow.db", f"{POSTGRES}://bea@db/mlflow",
        f"{POSTGRES}://db/mlflow?passfile=/run/pgpass", "https://mlflow.example:5000/a",
    ],
)  # fmt: skip
def test_what_holds_none_stays_as_it_is(uri: str, tmp_path: Path) -> None:
    assert without_password(uri, tmp_path) == uri
    assert list(tmp_path.iterdir()) == [tmp_path / "home"], "nothing was written"


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("https://bea:pa55@mlflow.example", "~/.mlflow/credentials"),
        (f"{POSTGRES}://bea@db/m?sslpassword=pa55", "service"),
        (f"{POSTGRES}://bea:pa55%0A@db/m", "line break"),
    ],
)
def test_secrets_without_a_place_are_refused(uri: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        without_password(uri, tmp_path)
    assert words in str(refused.value)
    assert "pa55" not in str(refused.value)


def test_only_settings_that_actors_need_are_passed_on() -> None:
    environ = dict.fromkeys(PASSED_ON, "x") | {
        "CHANCERY_SECRET": "x", "MLFLOW_TRACKING_PASSWORD": "x", "AWS_SECRET_ACCESS_KEY": "x",
    }  # fmt: skip
    assert passed_on(environ) == dict.fromkeys(PASSED_ON, "x")


def test_an_address_with_a_password_is_not_passed_on() -> None:
    plain = {"CHANCERY_PROMETHEUS_URL": "http://prometheus:9090/a:b@c", "CHANCERY_HOME": "/a@b:c"}
    assert passed_on(plain) == plain
    with pytest.raises(ConfigurationError) as refused:
        passed_on({"CHANCERY_PROMETHEUS_URL": "https://bea:pa55@prometheus:9090"})
    assert "CHANCERY_PROMETHEUS_URL" in refused.value.message
    assert "pa55" not in str(refused.value)


def test_a_command_line_shows_no_password_once_it_is_hidden(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from serve.credentials import hide_in_arguments, without_password\n"
        "uri = sys.argv[2]\n"
        "shown = without_password(uri, Path(sys.argv[3]))\n"
        "hide_in_arguments(uri, shown)\n"
        "print(Path('/proc/self/cmdline').read_bytes().decode().replace(chr(0), ' '))\n"
    )
    uri = f"{POSTGRES}://bea:pa55@db/mlflow"
    done = subprocess.run(
        [sys.executable, "-c", code, "--uri", uri, str(tmp_path)],
        capture_output=True, text=True, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "pa55" not in done.stdout
    assert "bea@db" in done.stdout
