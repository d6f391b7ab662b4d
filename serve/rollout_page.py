"""A rollout as one page that needs nothing else: picture, decisions, tests, configuration.

Example::

    Path("rollout.html").write_bytes(page(story, config, drawn(story, "svg")))
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from governance.deployment_records import time_text
from serve.plot import Story, headline

__all__ = ["page"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em;
       color: #222; background: #fff }
h1 { font-size: 1.3em } h2 { font-size: 1.1em; margin-top: 2em }
svg { width: 100%; height: auto }
table { border-collapse: collapse; width: 100%; font-size: .9em }
td, th { border-bottom: 1px solid #ddd; padding: .4em .6em; text-align: left; vertical-align: top }
td.n, th.n { text-align: right; white-space: nowrap }
pre { background: #f6f6f6; padding: 1em; overflow: auto; font-size: .85em }
"""


def page(story: Story, config: Mapping[str, Any], picture: bytes) -> bytes:
    """The page, as HTML without scripts.

    Args:
        story: What happened.
        config: Of the canary.
        picture: Of the story, as SVG.
    """
    title = escape(headline(story))
    svg = picture.decode()
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>",
        svg[svg.index("<svg") :],
        "<h2>Decisions</h2><table><tr><th>When</th><th>What</th><th class=n>Canary</th>"
        "<th>Why</th></tr>",
        *(_decision(document) for document in story.decisions),
        "</table>",
        *_verdicts(story),
        "<h2>Configuration</h2>",
        f"<pre>{escape(json.dumps(config, indent=2))}</pre></body></html>",
    ]
    return "\n".join(parts).encode()


def _decision(document: Mapping[str, Any]) -> str:
    why = "<br>".join(escape(str(sentence)) for sentence in document["explanation"])
    outcome = escape(str(document["outcome"]).replace("_", " "))
    return (
        f"<tr><td>{time_text(document['atMs'])}</td><td>{outcome}</td>"
        f"<td class=n>{escape(str(document['percent']))} %</td><td>{why}</td></tr>"
    )


def _verdicts(story: Story) -> Iterator[str]:
    """What each test had found at the last decision."""
    verdicts = story.decisions[-1]["verdicts"] if story.decisions else ()
    if not verdicts:
        return
    yield "<h2>Tests at the last decision</h2><table><tr><th>Test</th><th>What it found</th></tr>"
    for verdict in verdicts:
        test, reason = escape(str(verdict["test"])), escape(str(verdict["reason"]))
        yield f"<tr><td>{test}</td><td>{reason}</td></tr>"
    yield "</table>"
