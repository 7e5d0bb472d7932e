"""From an error's text to its cause, as the table and `known failures` name it."""

from __future__ import annotations

import re

CAUSES: list[tuple[str, str]] = [
    (r"`([\w.]+)` has no lowering", r"`{0}` has no lowering"),
    (r"(?:no lowering|not supported|unsupported)[^`]*`?(aten\.[\w.]+)", r"no lowering: {0}"),
]
"""Patterns of details and their causes; {0} is the first group."""


def cause(detail: str, status: str) -> str:
    for pattern, name in CAUSES:
        if found := re.search(pattern, detail):
            return name.format(*found.groups())
    # The message without its place, and without what differs from model to model.
    short = re.sub(r"\d+(\.\d+)?(e[-+]\d+)?", "N", detail.partition(" at: ")[0])[:120]
    return f"{status}: {short}"
