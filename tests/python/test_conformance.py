"""A sample of the outside suites, another one at each commit. `make conformance` runs all of them."""

from __future__ import annotations

import hashlib
import random
import subprocess
from pathlib import Path

import pytest
from tests import exceptions
from tests.children import Child
from tests.conformance.__main__ import entry
from tests.conformance.suites import NAMES

ROOT = Path(__file__).resolve().parents[2]
MODES = ("float32", "float32", "float32/train", "bfloat16", "float16", "int64", "int32", "bool", "float64")
SIZE = 32


def sample() -> list[tuple[str, str, str]]:
    """Suite, name and mode of each; the commit decides, so that a failure can be repeated."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    seed = hashlib.sha256(git.stdout.strip().encode()).digest()
    chosen = random.Random(seed)
    entries = [(suite, name) for suite in NAMES for name in NAMES[suite]()]
    return [(*pair, chosen.choice(MODES)) for pair in chosen.sample(entries, SIZE)]


@pytest.mark.parametrize("shard", range(2))
def test_entries_pass_or_are_listed(shard: int) -> None:
    child = Child("tests.conformance.worker", timeout=300)
    problems = []
    try:
        for suite, name, mode in sample()[shard::2]:
            result = child.ask(entry(suite, name, mode, max_samples=3))
            problem = exceptions.problem(result)
            if problem:
                problems.append(problem)
    finally:
        child.close()
    assert not problems, "\n".join(problems)
