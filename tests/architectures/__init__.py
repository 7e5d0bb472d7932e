"""The architectures of timm, diffusers and transformers, tiny and with random weights, against a backend.

`list.json` is the frozen list of entries; `zoo` makes the model and the inputs of one; `worker` runs one in a child
process; `python -m tests.architectures` is the command, `report` writes docs/architectures.md, `passed.txt` and
`known_failures.json` from its output.
Nothing is downloaded.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path


@functools.cache
def known_failures() -> dict[str, str]:
    """{"library/entry mode": cause}. Only ever shorter: an entry that passes and is listed fails its test."""
    found: dict[str, str] = json.loads(Path(__file__).with_name("known_failures.json").read_text())
    return found


@functools.cache
def passed() -> list[str]:
    """ "library/entry" of those that passed when they were last run, forward and training."""
    return Path(__file__).with_name("passed.txt").read_text().split()
