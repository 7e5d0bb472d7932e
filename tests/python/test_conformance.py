"""A sample of what was last measured of the outside suites, another one at each commit. `make conformance` runs all
of them and writes down what it found."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
from pathlib import Path

import pytest
from tests import exceptions
from tests.children import Child
from tests.conformance.__main__ import entry

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests/conformance/results.json"
SIZE = 32


def sample() -> list[tuple[str, str, str]]:
    """Suite, name and mode of each; the commit decides, so that a failure can be repeated."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    seed = hashlib.sha256(git.stdout.strip().encode()).digest()
    entries = [
        (*key.split(" ", 1), mode)
        for key, modes in json.loads(RESULTS.read_text()).items()
        for mode in modes
        if mode != "aten"
    ]
    return random.Random(seed).sample(entries, SIZE)


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
