"""A model on this machine, in this process: the same listener and scoring, nothing around them.

For trying a model out: no route, no canary, no registry record, no cluster; one process. Requests
and answers are those of a deployment, since both use ``serve.asgi`` and ``serve.scoring``.

Example::

    serve_locally("fraud", "models:/fraud/3", port=8080)    # until Ctrl-C
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from governance.errors import ConfigurationError, UnreachableError

__all__ = ["serve_locally"]


def serve_locally(name: str, model_uri: str, *, host: str = "127.0.0.1", port: int = 8080) -> None:
    """Answer until SIGINT or SIGTERM.

    Args:
        name: Told in each answer as the model's.
        model_uri: A local path or any URI that MLflow knows; ``models:/`` is verified.
        host: Address to listen on.
        port: To listen on.

    Raises:
        ConfigurationError: the serving extra is not installed.
        UnreachableError: the port cannot be had.
        MlflowException: the model cannot be loaded, or may not be.
    """
    try:
        import uvicorn
        import uvloop  # noqa: F401 - named below
    except ImportError as error:
        raise ConfigurationError(
            f"serving needs {error.name}, which is not installed",
            "pip install 'mlflow-chancery[serve]'",
        ) from error
    from serve.listener import GuardedProtocol
    from serve.scoring import Identity, Scorer

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    scorer = Scorer.load(model_uri, Identity(model=name))
    scorer.prepare()
    config = uvicorn.Config(
        _application(scorer),
        http=GuardedProtocol,
        ws="none",
        interface="asgi3",
        loop="uvloop",
        lifespan="off",
        host=host,
        port=port,
        access_log=False,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
    )
    try:
        listening = config.bind_socket()
        listening.listen(config.backlog)  # whoever reads that it answers may connect
    except (OSError, SystemExit) as error:  # uvicorn says which on standard error
        raise UnreachableError(
            f"{host}:{port} cannot be listened on", "choose another -C port=…"
        ) from error
    print(f"{model_uri} answers on http://{host}:{listening.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[listening])


def _application(scorer: Any) -> Any:
    """The listener's application with the scorer behind it, in a thread of its own."""
    from mlflow.version import VERSION

    from serve.answer import Answer
    from serve.asgi import ScoringApp
    from serve.batching import Batcher, BatchLimits, ThreadLane

    batcher: Batcher[tuple[str | None, bytes], Answer] = Batcher(
        ThreadLane(scorer.answer_batch), BatchLimits(items=64), lambda item: len(item[1])
    )

    async def submit(body: bytes, headers: Mapping[str, str]) -> Answer:
        return await batcher.submit((headers.get("content-type"), body))

    return ScoringApp(submit, version=VERSION)
