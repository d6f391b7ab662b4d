"""The config of the deployment target ``chancery``: its keys, and what their values may be.

``mlflow deployments -C key=value`` gives text, Python callers give what they like. A key that is
not known is an error, not ignored: a misspelt ``canary`` would put all traffic on a new version.

Example::

    TargetConfig({"replicas": "2"}, KEYS["create"]).number("replicas")    # 2
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from governance.errors import MalformedRequestError

__all__ = ["HELP", "KEYS", "TargetConfig"]

KEYS: Mapping[str, tuple[str, ...]] = {
    "create": (
        "env", "canary", "config", "stable", "replicas", "cpus", "gpus", "pool", "host", "port",
        "wait", "ray",
    ),
    "update": ("canary", "config", "replicas", "wait", "ray"),
    "delete": ("reason",),
    "run-local": ("host", "port"),
}  # fmt: skip

HELP = """\
The target "chancery" serves versions of a governed registry behind routes, with canaries that
decide by themselves. A deployment's name is its route.

Target URI
  chancery                              the store of MLFLOW_REGISTRY_URI, else MLFLOW_TRACKING_URI
  chancery:/http://host:5000            a governed server
  chancery:/governed+sqlite:////a.db    a governed database

Against a server, `chancery deploy operate` beside the Ray cluster starts what was deployed. Against
a database this command joins the Ray cluster itself.

Config (-C key=value) of create
  env       whose gate applies; default: that of the alias or protected registered model
  canary    5%, steps as 5,25,50,100, a .yaml file, or at-once: roll the version out beside what
            answers on the route
  config    a canary configuration: path of a YAML file; in Python also a dict
  stable    with a canary on a free route: the version it is compared with
  replicas  of each variant; default 1
  cpus      of each replica, as Ray counts them; default 1
  gpus      of each replica; default 0
  pool      node pool: the Ray label pool=... that nodes must have
  host      address to listen on; default 127.0.0.1
  port      default: the first from 8080 that no deployment has
  wait      seconds to wait until it answers; default 300; 0: do not wait
  ray       address of the Ray cluster, for a database; default: RAY_ADDRESS, else auto

Config of update: canary, config, replicas, wait, ray. A new model is always rolled out as a canary,
by default in the steps 5, 25, 50, 100 %.
Config of delete: reason, which is on the ledger.
Config of run-local: host, port. Serves any model URI in this process, without registry or cluster.

Environment: CHANCERY_GATEWAY_HOST is the host under which `predict` reaches gateways; default: the
address they listen on.
"""


class TargetConfig:
    """What a caller gave.

    Args:
        given: Key and value; None: nothing.
        known: Keys there are.

    Raises:
        MalformedRequestError: a key is not known; names those that are.
    """

    def __init__(self, given: Mapping[str, Any] | None, known: tuple[str, ...]) -> None:
        self._given = dict(given or {})
        if unknown := [key for key in self._given if key not in known]:
            raise MalformedRequestError(
                f"the config has the unknown key {str(unknown[0])!r}", f"known: {', '.join(known)}"
            )

    def value(self, key: str) -> Any:
        """As it was given; None: it was not."""
        return self._given.get(key)

    def text(self, key: str) -> str | None:
        """As text."""
        value = self._given.get(key)
        return None if value is None else str(value)

    def number(self, key: str) -> int | None:
        """A whole number that is not negative."""
        text = self.text(key)
        if text is not None and not (text.isascii() and text.isdigit() and len(text) < 10):
            raise self._wrong(key, "a whole number")
        return None if text is None else int(text)

    def seconds(self, key: str, default: float) -> float:
        """A time that is not negative."""
        text = self.text(key)
        if text is None:
            return default
        try:
            found = float(text)
        except ValueError as error:
            raise self._wrong(key, "a number of seconds") from error
        if not isfinite(found) or found < 0:
            raise self._wrong(key, "a number of seconds")
        return found

    def amounts(self, **keys: str) -> dict[str, str]:
        """Numbers as text, under the names that a deployment's resources have."""
        from serve.ordering import amounts

        return amounts(**{name: self.text(key) for name, key in keys.items()})

    def _wrong(self, key: str, wanted: str) -> MalformedRequestError:
        return MalformedRequestError(
            f"the config's {key!r} is {str(self._given[key])[:80]!r}, which is not {wanted}",
            "correct it",
        )
