"""Checks a user name and password against MLflow's basic-auth users.

MLflow's basic-auth app guards MLflow's own routes, but a native route that it does not know, ours
among them, passes it unchecked. So a name from ``Authorization`` counts as proven only after this
check, and not because an inner app might have made it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable

__all__ = ["PasswordCheck", "mlflow_password_check", "parse_basic_credentials"]

PasswordCheck = Callable[[str, str], bool]
"""(user name, password) -> whether they are right."""


def parse_basic_credentials(value: str) -> tuple[str, str] | None:
    """User name and password of an ``Authorization: Basic`` header (RFC 7617), else None."""
    scheme, _, encoded = value.strip().partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    name, separator, password = text.partition(":")
    return (name, password) if separator and name else None


def mlflow_password_check(name: str, password: str) -> bool:
    """Ask MLflow's user store; where users come from a custom function, nobody is proven here."""
    from mlflow.server import auth

    if auth.auth_config.authorization_function != auth.DEFAULT_AUTHORIZATION_FUNCTION:
        return False
    # The cached check spares a second PBKDF2 for the inner app; it is MLflow's private function.
    cached = getattr(auth, "_authenticate_cached", None)
    if cached is not None:
        return cached(name, password) is not None
    return bool(auth.store.authenticate_user(name, password))
