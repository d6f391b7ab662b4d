"""Turns the governance error tree into MLflow's exceptions.

A refusal is always 403 ``PERMISSION_DENIED``: MLflow's client neither retries it nor loses its
text, and the UI shows the text in the dialog. What may be repeated later is 409, never 5xx, which
the client would repeat by itself.
"""

from __future__ import annotations

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    PERMISSION_DENIED,
    RESOURCE_CONFLICT,
    RESOURCE_DOES_NOT_EXIST,
    UNAUTHENTICATED,
)

from governance.errors import (
    AuthenticationError,
    ConflictError,
    GovernanceError,
    LedgerError,
    MalformedRequestError,
    NotFoundError,
    RefusedError,
    VerificationError,
)

__all__ = ["GovernedMlflowException", "to_mlflow"]


class GovernedMlflowException(MlflowException):
    """An ``MlflowException`` that keeps the governance error it came from."""

    def __init__(self, error: GovernanceError) -> None:
        super().__init__(str(error), error_code=_mlflow_code(error), governance_code=error.code)
        self.governance_error = error


def _mlflow_code(error: GovernanceError) -> int:
    match error:
        case ConflictError():
            code = RESOURCE_CONFLICT
        case MalformedRequestError():
            code = INVALID_PARAMETER_VALUE
        case RefusedError() | VerificationError():
            code = PERMISSION_DENIED
        case AuthenticationError():
            code = UNAUTHENTICATED
        case LedgerError():
            code = RESOURCE_CONFLICT
        case NotFoundError():
            code = RESOURCE_DOES_NOT_EXIST
        case _:
            code = INTERNAL_ERROR
    return int(code)


def to_mlflow(error: GovernanceError) -> GovernedMlflowException:
    """The MLflow exception for ``error``; raise it ``from error``."""
    return GovernedMlflowException(error)
