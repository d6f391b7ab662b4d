"""What may leave of each column, as the profile says it (``pii``).

A ``bin`` column leaves as its bin's edge or category, in the profile's own bins, so that it is
counted as the raw value would be; a ``mask`` column as whether there is a value, which is all that
a profile counts of one. What the profile does not know does not leave, once any of its columns is
personal: a new column may be the mother's maiden name.

Example::

    recorder = Recorder(source, model="fraud", privacy=privacy_of(profile))
"""

from __future__ import annotations

from drift.bins import CategoryBins, NumericBins
from drift.privacy import Action, Privacy
from drift.profile import DriftProfile

__all__ = ["privacy_of"]


def privacy_of(profile: DriftProfile) -> Privacy:
    """See the module."""
    actions: dict[str, str] = {}
    edges: dict[str, tuple[float, ...]] = {}
    categories: dict[str, tuple[str, ...]] = {}
    for column in profile.columns:
        if column.role == "embedding":
            continue
        name = f"output:{column.name}" if column.role == "output" else column.name
        if column.pii == "mask":
            actions[name] = Action.PRESENCE
            if column.role == "feature":  # an embedding may be what the model gives
                actions[f"output:{name}"] = Action.PRESENCE
        elif column.pii == "keep":
            actions[name] = Action.KEEP
        elif isinstance(column.bins, NumericBins) and column.bins.cuts:
            actions[name], edges[name] = Action.BIN, column.bins.cuts
        elif isinstance(column.bins, CategoryBins):
            actions[name], categories[name] = Action.BIN, column.bins.categories
        else:
            actions[name] = Action.PRESENCE
    personal = {column.name for column in profile.columns if column.pii != "keep"}
    for one in profile.embeddings:
        parts = [f"{one.name}.{place}" for place in range(one.width)]
        action = Action.MASK if personal.intersection(one.column_names) else Action.KEEP
        actions |= dict.fromkeys([*parts, *(f"output:{part}" for part in parts)], action)
    default = Action.MASK if personal else Action.KEEP
    return Privacy(actions, edges, categories, default=default, closed="left")
