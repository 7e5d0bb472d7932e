"""A few of the frozen architectures, others at each commit; `make architectures` runs all of them."""

from __future__ import annotations

import hashlib
import subprocess
import time
from typing import Any

import pytest
import torch
from tests.architectures import known_failures, passed, worker, zoo
from tests.children import ROOT, Child

# Of the entries that were run and listed; the cheap libraries first.
SAMPLE = {"transformers": 3, "diffusers": 2, "timm": 1}
# No new entry is begun after this many seconds: a slow machine sees fewer.
BUDGET = 40
# Seconds that an entry of the sample may have taken when it was last run, two at a time.
LIGHT = 60


def seed() -> str:
    """The commit, or the day where there is no repository."""
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or time.strftime("%j")


def sample(seed: str) -> list[tuple[str, str]]:
    """Of the entries that passed quickly when they were last run, and of the known failures."""
    light = {entry for entry, seconds in passed().items() if seconds <= LIGHT}
    known = sorted(light | {key.split()[0] for key in known_failures()})
    known.sort(key=lambda entry: hashlib.sha256(f"{seed} {entry}".encode()).digest())
    return [
        (library, entry.partition("/")[2])
        for library, count in SAMPLE.items()
        for entry in [e for e in known if e.startswith(f"{library}/")][:count]
    ]


def test_what_passed_is_in_the_list() -> None:
    for entry in passed():
        library, _, name = entry.partition("/")
        assert name in zoo.frozen()[library], entry


def test_known_failures_are_entries_with_causes() -> None:
    for key, cause in known_failures().items():
        library, _, rest = key.partition("/")
        name, _, mode = rest.rpartition(" ")
        assert name in zoo.frozen()[library], key
        assert mode in ("forward", "training") and cause, key


def test_the_list_is_of_the_installed_versions() -> None:
    from importlib import metadata

    for library, version in zoo.frozen()["versions"].items():
        assert metadata.version(library) == version, f"python -m tests.architectures.freeze {library}"


class Tiny(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def outcome() -> tuple[Any, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    made = (Tiny(), {"x": torch.randn(2, 4)})
    return made, worker.outcome(worker.fresh(made), training=True, seed=1)


def test_the_comparison_takes_equal_results() -> None:
    made, expected = outcome()
    assert set(expected) == {"result0", "grad linear.weight", "grad linear.bias", "buffer seen"}
    assert worker.compare(dict(expected), expected, made, training=True, random=False) == {}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("result0", lambda x: x + 1e-3 * x.abs().max(), "result0: off by"),
        ("grad linear.weight", lambda x: x * 1.001, "grad linear.weight: off by"),
        ("buffer seen", lambda x: x + 1, "buffer seen: off by"),
        ("result0", lambda x: x.double(), "dtype"),
        ("result0", lambda x: x[:1], "shape"),
        ("result0", lambda x: x * float("nan"), "nan"),
        ("grad linear.bias", None, "missing"),
    ],
)
def test_the_comparison_sees_a_difference(name: str, change: Any, message: str) -> None:
    made, expected = outcome()
    actual = {k: change(v) if k == name and change else v for k, v in expected.items() if k != name or change}
    with pytest.raises(AssertionError, match=message):
        worker.compare(actual, expected, made, training=True, random=False)


def test_a_difference_of_rounding_is_taken_and_told() -> None:
    """Where float32 itself is far from float64, ours may be as far."""
    made, expected = outcome()
    reference = worker.outcome(worker.in_float64(made), training=True, seed=1)["grad linear.bias"]
    rough = {**expected, "grad linear.bias": (reference * (1 + 1e-3)).float()}
    actual = {**expected, "grad linear.bias": (reference * (1 - 2e-3)).float()}
    assert "linear.bias" in worker.compare(actual, rough, made, training=True, random=False)["noise"]


def test_sample() -> None:
    """Forward and training of the sample match eager, but for the known failures; those must still fail."""
    base = seed()
    print("sample of", base)
    child = Child("tests.architectures.worker", timeout=240)
    start = time.perf_counter()
    wrong, ran = [], 0
    try:
        for library, name in sample(base):
            if time.perf_counter() - start > BUDGET:
                break
            result = child.ask({"library": library, "name": name, "backend": "torchtpu_dynamo"})
            ran += 1
            print(library, name, result["status"], result.get("seconds"))
            for mode in ("forward", "training"):
                # A child that died answers for both.
                found = result.get(mode, result)
                key = f"{library}/{name} {mode}"
                failed = (
                    found["status"] != "pass" and found.get("baseline", {}).get("status", "pass") == "pass"
                )
                if found["status"] == "eager_error":
                    failed = False
                if failed != (key in known_failures()):
                    wrong.append(f"{key}: {found['status']}: {found.get('detail', found.get('details', ''))}")
    finally:
        child.close()
    assert ran
    assert not wrong, "\n".join(wrong)
