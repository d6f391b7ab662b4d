"""Promotion gates: the policy file, the evidence it asks for, and the decision.

``policy`` reads the file, ``decide`` turns evidence into a decision with reasons and remedies,
``promotions`` keeps statements, approvals and clearances in our tables.
"""

from governance.gates.decide import decide
from governance.gates.policy import (
    Environment,
    Policy,
    Requirements,
    default_policy,
    load_policy,
    parse_policy,
)

__all__ = [
    "Environment",
    "Policy",
    "Requirements",
    "decide",
    "default_policy",
    "load_policy",
    "parse_policy",
]
