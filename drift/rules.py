"""The rules of one model: when a window warns or alerts. What a promotion demands is the policy's.

They stand in the profile, are signed with it, and have these defaults:

- *warn*: eSR ≥ 100, of the columns or of the errors that labels show; a column is missing or new; a
  fairness bound broke; a critical data-quality check failed (``drift.quality``); a detector that
  looked by schedule found something, or could not look;
- *alert*: eSR ≥ 1000 and PSI ≥ max(0.05, 1.25 × the largest PSI among the profile's own windows),
  in ``consecutive`` windows after each other; or eSR of the errors ≥ 1000; or a fairness bound that
  broke twice in a row;
- *quarantine* is proposed when the columns alert together with one of: the estimated accuracy fell
  by 3 standard deviations, a fairness bound broke, a critical data-quality check failed; and when
  labels alert. It always needs a person's sign-off; there is no setting.

Example::

    Rules(consecutive=2, alert_needs="either")
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from drift.documents import Fields, number_text
from governance.errors import MalformedRequestError

__all__ = ["Rules"]

_NEEDS = ("both", "esr", "psi", "either")
_SCOPES = ("all", "column")


@dataclass(frozen=True, slots=True)
class Rules:
    """When to warn and to alert.

    Attributes:
        warn_esr: Mean R from which a window warns.
        alert_esr: Mean R that an alert needs; also the windows to a false alarm, at least. Errors
            have a statistic of their own, with the same limits.
        alert_psi: Least PSI that an alert needs.
        psi_margin: How many times the largest calibrated PSI an alert needs.
        psi_scope: Whose calibrated PSI: the largest of ``all`` columns, or the ``column``'s own
            (finds more beside one restless column, and cries wolf more on dependent rows).
        alert_needs: ``both`` of eSR and PSI, ``either``, or one of them alone.
        consecutive: Windows after each other that must meet the alert's conditions; before, warn.
        min_rows: Rows that are judged; smaller windows wait and are judged together with the next.
        quarantine_accuracy_sd: Fall of the estimated accuracy, in standard deviations.
        quality_share: The check of a column fails from this share of its values on, beyond that of
            the reference, that is missing, no number, of an unknown category or out of range.
    """

    warn_esr: float = 100.0
    alert_esr: float = 1000.0
    alert_psi: float = 0.05
    psi_margin: float = 1.25
    psi_scope: Literal["all", "column"] = "all"
    alert_needs: Literal["both", "esr", "psi", "either"] = "both"
    consecutive: int = 1
    min_rows: int = 200
    quarantine_accuracy_sd: float = 3.0
    quality_share: float = 0.5

    def __post_init__(self) -> None:
        for name in (
            "warn_esr", "alert_esr", "alert_psi", "psi_margin", "quarantine_accuracy_sd",
            "quality_share",
        ):  # fmt: skip
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
                raise _mistake(name, value, "a number above 0")
            object.__setattr__(self, name, float(value))
        for name in ("consecutive", "min_rows"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise _mistake(name, value, "a whole number of at least 1")
        if self.alert_needs not in _NEEDS:
            raise _mistake("alert_needs", self.alert_needs, f"one of {', '.join(_NEEDS)}")
        if self.psi_scope not in _SCOPES:
            raise _mistake("psi_scope", self.psi_scope, f"one of {', '.join(_SCOPES)}")
        if self.alert_esr < self.warn_esr:
            raise _mistake("alert_esr", self.alert_esr, f"at least warn_esr, {self.warn_esr:g}")
        # The statistic is cut there: a threshold above it would never be reached.
        if self.alert_esr > 1e6:
            raise _mistake("alert_esr", self.alert_esr, "at most 1000000")
        if self.quality_share > 1:
            raise _mistake("quality_share", self.quality_share, "a share, at most 1")

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: number_text(value) if isinstance(value, float) else value
            for name, value in values.items()
        }

    @classmethod
    def from_fields(cls, document: Fields) -> Rules:
        """Inverse of ``to_dict``; what is not written has its default.

        Raises:
            MalformedRequestError: names the rule.
        """
        values: dict[str, Any] = {}
        for field in fields(cls):
            if isinstance(field.default, float):
                values[field.name] = document.number(field.name, field.default)
            elif isinstance(field.default, int):
                values[field.name] = document.integer(field.name, field.default)
            else:
                values[field.name] = document.text(field.name, field.default)
        document.done()
        return cls(**values)


def _mistake(name: str, value: object, wanted: str) -> MalformedRequestError:
    return MalformedRequestError(
        f"the drift rule {name} is {value!r}, not {wanted}", f"write {wanted}"
    )
