"""Asks Prometheus for one number.

A query's variables (``$variant``, ``$model``, ``$version``, ``$application``) stand inside its
quotes only, and are escaped for them: a name can neither end the text nor be anything but text.

Example::

    query = substituted('sum(bad_total{version="$version"})', {"version": "4"})
    Prometheus("http://127.0.0.1:9090").value(query, at=1_790_000_000.0)    # 12.0
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from governance.errors import ConfigurationError, UnreachableError

__all__ = ["Prometheus", "check_query", "substituted"]

_VARIABLE = re.compile(r"\$(variant|model|version|application)\b")
_MOST_BYTES = 1 << 20
_LONGEST = 300


def substituted(query: str, variables: Mapping[str, str]) -> str:
    """The query of one variant.

    Raises:
        ConfigurationError: a variable outside quotes, a value that these quotes cannot hold, or
            quotes that do not end.
    """
    parts: list[str] = []
    quote, at = "", 0
    while at < len(query):
        letter = query[at]
        variable = _VARIABLE.match(query, at)
        if variable is not None:
            parts.append(_quoted(variable[0], variables[variable[1]], quote))
            at = variable.end()
            continue
        if quote and quote != "`" and letter == "\\":
            parts.append(query[at : at + 2])
            at += 2
            continue
        if not quote and letter == "#":
            end = query.find("\n", at)
            at = len(query) if end < 0 else end
            continue
        if letter in "\"'`":
            quote = "" if letter == quote else quote or letter
        parts.append(letter)
        at += 1
    if quote:
        raise ConfigurationError(f"a {quote} of the query has no end: {_short(query)}", "close it")
    return "".join(parts)


def check_query(query: str) -> None:
    """Whether the query can be asked, and asks something else of each variant.

    Raises:
        ConfigurationError: it cannot, or does not.
    """
    names = ("variant", "model", "version", "application")
    stable, canary = ({name: f"{name}-{side}" for name in names} for side in "sc")
    stable["model"] = canary["model"] = "model"
    if substituted(query, stable) == substituted(query, canary):
        raise ConfigurationError(
            f"the query asks the same of stable and canary: {_short(query)}",
            'tell them apart, as {version="$version"} or {variant="$variant"}',
        )


def _quoted(name: str, value: str, quote: str) -> str:
    if not quote:
        raise ConfigurationError(
            f"{name} stands outside quotes in a query", f'write it as label="{name}"'
        )
    if quote == "`":
        if "`" in value or "\r" in value:
            raise ConfigurationError(
                f"the value of {name} cannot stand between backticks", "use double quotes"
            )
        return value
    escaped = value.replace("\\", r"\\").replace("\n", r"\n").replace("\r", r"\r")
    return escaped.replace(quote, f"\\{quote}")


class _NoRedirects(HTTPRedirectHandler):
    """The address is the one that was set; an answer that sends elsewhere is none."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Prometheus:
    """A server that speaks Prometheus's HTTP API.

    Args:
        url: Its address, without ``/api``.
        timeout_s: For connecting, and for each part of an answer.
    """

    def __init__(self, url: str, timeout_s: float = 10.0) -> None:
        self._url = f"{url}/api/v1/query"
        self._timeout_s = timeout_s
        self._opener = build_opener(ProxyHandler({}), _NoRedirects())

    def value(self, query: str, at: float) -> float | None:
        """The query's value at a time (seconds since the epoch); None: there is no such series.

        Raises:
            ConfigurationError: the query is wrong, or gives more than one value.
            UnreachableError: no answer, or none that could be understood.
        """
        form = urlencode({"query": query, "time": f"{at:.3f}", "timeout": f"{self._timeout_s:g}s"})
        request = Request(self._url, form.encode(), {"accept": "application/json"})
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                found = response.read(_MOST_BYTES + 1)
        except HTTPError as error:
            with error:
                raise _refused(error.code, error.read(_MOST_BYTES)) from error
        except (URLError, HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            raise UnreachableError(
                f"Prometheus does not answer: {_short(str(reason) or type(error).__name__)}",
                "see that it runs, and that CHANCERY_PROMETHEUS_URL is its address",
            ) from error
        if len(found) > _MOST_BYTES:
            raise _odd("more than 1 MiB")
        return _value(_document(found))


def _refused(status: int, body: bytes) -> ConfigurationError | UnreachableError:
    """Prometheus tells with 400 and 422 that a query is wrong or cannot be carried out."""
    try:
        why = str(_document(body).get("error", ""))
    except UnreachableError:
        why = ""
    if status in (400, 422) and why:
        return ConfigurationError(f"Prometheus refuses the query: {_short(why)}", "correct it")
    return UnreachableError(
        f"Prometheus answers with {status}{f': {_short(why)}' if why else ''}",
        "see that CHANCERY_PROMETHEUS_URL is its address",
    )


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _odd("no JSON") from error
    if not isinstance(document, dict):
        raise _odd("no object")
    return document


def _value(document: Mapping[str, Any]) -> float | None:
    data = document.get("data")
    if document.get("status") != "success" or not isinstance(data, dict):
        raise _odd("no data")
    kind, result = data.get("resultType"), data.get("result")
    if not isinstance(result, list) or kind not in ("vector", "scalar"):
        if kind in ("matrix", "string"):
            raise ConfigurationError(
                f"the query gives a {kind}, not one value", "write one that gives one number"
            )
        raise _odd("no result")
    if kind == "vector":
        if not result:
            return None
        if len(result) > 1:
            raise ConfigurationError(
                f"the query gives {len(result)} series, not one", "sum them: sum(…)"
            )
        first = result[0]
        result = first.get("value") if isinstance(first, dict) else None
    try:
        _, text = result or ("", "")
        number = float(text)
    except (TypeError, ValueError) as error:
        raise _odd("no number") from error
    if not math.isfinite(number):
        raise UnreachableError(f"the query's value is {text}", "write one that gives a number")
    return number


def _odd(what: str) -> UnreachableError:
    return UnreachableError(
        f"what answers for Prometheus is odd: {what}",
        "see that CHANCERY_PROMETHEUS_URL is the address of a Prometheus",
    )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
