"""A loaded model that answers scoring requests as ``mlflow models serve`` does, only faster.

`Scorer.answer` takes one request and gives the answer MLflow would give: a request that `Decoder`
can read goes to the model as an array or a DataFrame, any other through MLflow's own
``invocations``, so that parsing, schema enforcement, params and every error are MLflow's. When the
fast way raises, the request is answered again by MLflow's code, which then says what is wrong.

What it answers may be recorded (``governance.recording_port``): off unless `Scorer.record` was
given a recorder, and nothing that goes wrong there reaches an answer.

`Scorer.score` takes the rows of many requests and predicts them together, if `Scorer.prepare` has
shown that the model's rows are independent. A row that the model cannot take fails alone: the
batch is then predicted request by request.

The model is loaded by ``mlflow.pyfunc.load_model``; under a governed registry a ``models:/`` URI is
verified before anything of it is read.

Example::

    scorer = Scorer.load("models:/fraud/3", Identity("fraud", "3", signer="alice@example.org"))
    scorer.prepare()
    answer = scorer.answer("application/json", b'{"inputs": {"amount": [12.5]}}')
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from serve.answer import JSON, TEXT, Answer, Header, failed
from serve.decode import Array, Decoder, layout_of
from serve.encode import Kind, NotRowsError, encode, kind_of, slices, split

if TYPE_CHECKING:
    from governance.recording_port import Recording
    from serve.independence import Dependent, Independent

__all__ = ["Identity", "Scorer"]

_logger = logging.getLogger(__name__)

_PLAIN_LOADERS = frozenset({"mlflow.sklearn", "mlflow.pytorch"})
"""Flavours whose wrapper needs nothing of what MLflow does around it, but the right types."""

_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


@dataclass(frozen=True, slots=True)
class Identity:
    """Which model answers, and who vouches for it; all may be empty.

    Args:
        model: Registered name.
        version: Version in the registry.
        signer: Who signed the version's clearance.
        run_id: The run that made it.
    """

    model: str = ""
    version: str = ""
    signer: str = ""
    run_id: str = ""

    def headers(self) -> tuple[Header, ...]:
        """``x-chancery-model``, ``-version``, ``-signer`` and ``-run``, those that are known.

        What is not printable ASCII is percent-encoded.
        """
        known = {
            b"x-chancery-model": self.model,
            b"x-chancery-version": self.version,
            b"x-chancery-signer": self.signer,
            b"x-chancery-run": self.run_id,
        }
        return tuple((k, quote(v, safe=_PRINTABLE).encode()) for k, v in known.items() if v)


class Scorer:
    """A model and how to ask it. One thread at a time may ask it.

    Args:
        model: ``mlflow.pyfunc.PyFuncModel``.
        identity: Named in each answer's headers; the run is the model's own where it names none.
    """

    def __init__(self, model: Any, identity: Identity | None = None) -> None:
        from serve.independence import Dependent

        self.model = model
        known = identity or Identity()
        self.identity = replace(known, run_id=known.run_id or model.metadata.run_id or "")
        self.headers = self.identity.headers()
        self.layout = layout_of(model.metadata)
        self.decoder = Decoder(self.layout)
        self.independence: Independent | Dependent = Dependent("it was not probed")
        self.takes_arrays = False
        self.recorder: Recording | None = None
        self._schema = model.metadata.get_input_schema()
        self._kind: Kind | None = None
        self._plain = (
            model.loader_module in _PLAIN_LOADERS and model.metadata.get_params_schema() is None
        )
        self._columns = (
            None if self.layout is None or self.layout.names is None else list(self.layout.names)
        )

    @classmethod
    def load(cls, uri: str, identity: Identity | None = None) -> Scorer:
        """Load a model as ``mlflow models serve`` does, ``SERVING_MODEL_CONFIG`` included.

        Tells MLflow, by its environment variable, that this process serves.

        Args:
            uri: A local path, or any URI that MLflow knows; ``models:/`` is verified.

        Raises:
            MlflowException: it cannot be loaded, or may not be.
        """
        from mlflow.environment_variables import _MLFLOW_IS_IN_SERVING_ENVIRONMENT
        from mlflow.pyfunc.scoring_server import load_model_with_mlflow_config

        os.environ[_MLFLOW_IS_IN_SERVING_ENVIRONMENT.name] = "true"
        return cls(load_model_with_mlflow_config(uri), identity)

    @property
    def batchable(self) -> bool:
        """Whether rows of different requests may be predicted together."""
        return self._kind is not None

    def prepare(self, example: Any = None) -> Independent | Dependent:
        """Probe the model once, before it serves; decides about arrays and batches.

        Args:
            example: Input rows that the model takes (DataFrame, array or list); by default the
                model's own input example, or values made from its signature.
        """
        from serve.independence import Independent, agrees_on_arrays, probe_rows, row_independence

        if self.layout is not None and self._may_take_arrays():
            # Estimators fitted on named columns warn whenever they are given none.
            warnings.filterwarnings("ignore", "X does not have valid feature names", UserWarning)
            self.takes_arrays = agrees_on_arrays(self, probe_rows(self, example))
        self.independence = row_independence(self, example)
        self._kind = None
        if isinstance(self.independence, Independent):
            self._kind = self.independence.kind
        return self.independence

    def _may_take_arrays(self) -> bool:
        """Only scikit-learn's wrapper hands its input on as it is, whatever its type."""
        return (
            self.layout is not None
            and not self.layout.tensor
            and self._plain
            and self.model.loader_module == "mlflow.sklearn"
        )

    def predict(self, rows: Array, *, arrays: bool | None = None) -> Any:
        """The model's own prediction for decoded rows.

        Args:
            rows: Shape ``(n, *layout.shape)``, as `Decoder.decode` gives them.
            arrays: Give the model the array itself; by default as `prepare` decided.

        Raises:
            Exception: whatever the model raises.
        """
        assert self.layout is not None
        data: Any = rows
        if not self.layout.tensor and not (self.takes_arrays if arrays is None else arrays):
            import pandas as pd  # type: ignore[import-untyped]

            data = pd.DataFrame(rows, columns=self._columns)
        # What was decoded has the signature's types: there is nothing left to enforce.
        return self.model._predict_fn(data) if self._plain else self.model.predict(data)

    def predict_batch(self, batch: Sequence[Array]) -> list[Any]:
        """Predictions for several requests' rows, computed together.

        Args:
            batch: Decoded rows of each request.

        Returns:
            One prediction a request, of the type the model returns for all.

        Raises:
            NotRowsError: the model did not answer row by row.
            Exception: whatever the model raises, for any of them.
        """
        if len(batch) == 1:
            return [self.predict(batch[0])]
        raw, counts = self._together(batch)
        return slices(raw, counts)

    def _together(self, batch: Sequence[Array]) -> tuple[Any, list[int]]:
        raw = self.predict(np.concatenate(batch))
        if kind_of(raw) != self._kind:
            raise NotRowsError(f"the batch became {kind_of(raw)}, single rows {self._kind}")
        return raw, [len(rows) for rows in batch]

    def record(self, recorder: Recording | None) -> None:
        """Record what is answered from now on; None: nothing."""
        self.recorder = recorder

    def score(self, batch: Sequence[Array], ids: Sequence[str] | None = None) -> list[bytes | None]:
        """Bodies of the answers for several requests' rows.

        Args:
            batch: Decoded rows of each request.
            ids: Of the requests, for who records them.

        Returns:
            One body a request; None where the model did not answer: give that request, as it
            came, to `answer_exactly`, which finds the words for the error.
        """
        if len(batch) > 1 and self.batchable:
            try:
                raw, counts = self._together(batch)
                bodies: list[bytes | None] = list(split(raw, counts))
            except Exception as error:  # noqa: BLE001 - one of them is to blame; see below which
                _logger.debug("a batch of %d is scored singly: %r", len(batch), error)
            else:
                if self.recorder is not None:
                    self._record(batch, raw, ids)
                return bodies
        if ids is None:
            return [self._score_one(rows) for rows in batch]
        return [self._score_one(rows, name) for rows, name in zip(batch, ids, strict=True)]

    def _record(self, batch: Sequence[Array], raw: Any, ids: Sequence[str] | None) -> None:
        """Whatever goes wrong here is the recorder's, never the answer's."""
        assert self.recorder is not None
        try:
            # A copy: the rows may lie in a buffer of the connection's.
            rows = np.concatenate(batch) if len(batch) > 1 else batch[0].copy()
            names = [""] * len(batch) if ids is None else ids
            self.recorder.served(rows, raw, names, [len(one) for one in batch])
        except Exception as error:  # noqa: BLE001 - see above
            _logger.debug("a batch was not recorded: %r", error)

    def _score_one(self, rows: Array, request_id: str = "") -> bytes | None:
        try:
            raw = self.predict(rows)
            body = encode(raw)
            if self.recorder is not None:
                self._record([rows], raw, [request_id])
            return body
        except Exception as error:  # noqa: BLE001 - MLflow's code will run into it again, and answer
            _logger.debug("a request is left to MLflow's code: %r", error)
            return None

    def answer_batch(self, requests: Sequence[tuple[str | None, bytes]]) -> list[Answer]:
        """Answers to several requests, each a content type and a body. Never raises."""
        decoded = [self.decoder.decode(*request) for request in requests]
        bodies = iter(self.score([rows for rows in decoded if rows is not None]))
        answers = []
        for rows, request in zip(decoded, requests, strict=True):
            body = None if rows is None else next(bodies)
            answers.append(self.answer_exactly(*request) if body is None else self.succeeded(body))
        return answers

    def answer(
        self, content_type: str | None, body: bytes, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """The answer to one request. Never raises.

        Args:
            content_type: The request's ``content-type``; None when it has none.
            body: The request's body.
            headers: The request's headers; MLflow's protocol looks at none of them.
        """
        return self.answer_batch([(content_type, body)])[0]

    def succeeded(self, body: bytes) -> Answer:
        """A body from `score` as an answer."""
        return Answer(200, body, JSON, self.headers)

    def answer_exactly(self, content_type: str | None, body: bytes, request_id: str = "") -> Answer:
        """The answer to one request, by MLflow's own code from beginning to end. Never raises."""
        from mlflow.exceptions import MlflowException
        from mlflow.pyfunc import scoring_server

        try:
            response = scoring_server.invocations(body, content_type, self.model, self._schema)
        except MlflowException as error:
            text = error.serialize_as_json()
            return Answer(error.get_http_status_code(), text.encode(), JSON, self.headers)
        except Exception:
            # Also a request without content-type, as there.
            _logger.exception("a scoring request failed")
            return failed().with_headers(*self.headers)
        kind = TEXT if response.mimetype == "text/plain" else response.mimetype.encode()
        answer = Answer(response.status, response.response.encode(), kind, self.headers)
        if self.recorder is not None and response.status == 200:
            try:
                self.recorder.exactly(content_type, body, answer.body, request_id)
            except Exception as error:  # noqa: BLE001 - the recorder's, never the answer's
                _logger.debug("a request was not recorded: %r", error)
        return answer
