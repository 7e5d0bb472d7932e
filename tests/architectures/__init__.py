"""The architectures of timm, diffusers and transformers, tiny and with random weights, against a backend.

`list.json` is the frozen list of entries; `zoo` makes the model and the inputs of one; `worker` runs one in a child
process; `python -m tests.architectures` is the command, `report` writes docs/architectures.md and `passed.txt` from its
output, and tells which failures tests/exceptions.toml does not list.
Nothing is downloaded.
"""

from __future__ import annotations

import functools
from pathlib import Path

from tests.exceptions import table


def known_failures() -> dict[str, str]:
    """{"library/entry mode": cause}. Only ever shorter: an entry that passes and is listed fails its test."""
    groups = table().get("architectures", [])
    return {entry: group["cause"] for group in groups for entry in group["entries"]}


@functools.cache
def passed() -> dict[str, float]:
    """By "library/entry", of those that passed when they were last run, forward and training: how many seconds that
    took."""
    lines = Path(__file__).with_name("passed.txt").read_text().splitlines()
    return {entry: float(seconds) for entry, _, seconds in (line.partition(" ") for line in lines)}
