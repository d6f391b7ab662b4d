"""Fields that the routes below ``/serve`` share."""

from __future__ import annotations

import re
from math import isfinite
from typing import Annotated, Any

from fastapi import Path
from pydantic import AfterValidator, Field

from governance.deployment_port import canaries
from governance.errors import ConfigurationError, MalformedRequestError

__all__ = ["MOST", "Amount", "Canary", "Host", "Name", "Reason", "Text", "checked_canary"]

MOST = 10_000


def _amount(value: int | float | str) -> str:
    """A number as text: what is hashed has no floats."""
    text = value if isinstance(value, str) else repr(value)
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,6})?", text) or not isfinite(float(text)):
        raise ValueError(f"it is not a number from 0 to {MOST}")
    return text


Text = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f]*$")]
Reason = Annotated[str, Field(max_length=2000, pattern=r"^[^\x00]*$")]
Amount = Annotated[int | float | str, AfterValidator(_amount)]
Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.:-]{0,252}$")]
Name = Annotated[str, Path(alias="deployId", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,126}$")]
Canary = Annotated[str, Field(max_length=1000)] | dict[str, Any]


def checked_canary(config: str | dict[str, Any] | None) -> str | None:
    """The whole configuration as JSON text.

    Raises:
        MalformedRequestError: names what is wrong with it.
    """
    if config is None:
        return None
    checks = canaries()  # that nobody checks is not the client's mistake
    try:
        return checks.checked(config)
    except ConfigurationError as error:
        raise MalformedRequestError(error.message, error.remedy) from error
