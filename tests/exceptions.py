"""The one list of what the tests ask less of: `exceptions.toml`. It should shrink.

An entry of a suite that does not pass is listed with its cause; a listed entry that passes is an error as well. So
is every test that sets a tolerance of its own, or may be skipped."""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path
from typing import Any

import torch
from torch.torch_version import TorchVersion

FILE = Path(__file__).with_name("exceptions.toml")


@functools.cache
def table() -> dict[str, Any]:
    return tomllib.loads(FILE.read_text())


@functools.cache
def causes(suite: str) -> dict[str, str]:
    """Entry to cause, for a suite. An entry is a name, or `name@mode` where only that mode does not pass;
    `mode_of` says what a mode is."""
    found: dict[str, str] = {}
    for group in table()["suite"].get(suite, []):
        for entry in group["entries"]:
            assert entry not in found, f"{FILE.name} lists {suite} {entry} twice"
            found[entry] = group["cause"]
    return found


def mode_of(result: dict[str, Any]) -> str:
    """A dtype, followed by `/train` where gradients are compared, by `/fallback` where what has no lowering may run on
    the host, and by `/dynamic` where all sizes are symbols."""
    how = [name for name in ("train", "fallback", "dynamic") if result.get(name)]
    return "/".join([result["dtype"], *how])


def cause(suite: str, name: str, mode: str) -> str | None:
    """Why this entry does not pass in this mode, or None where it should."""
    listed = causes(suite)
    return listed.get(f"{name}@{mode}", listed.get(name))


@functools.cache
def compared(how: str) -> frozenset[str]:
    """The entries of OpInfo that are compared in another way than element by element."""
    groups = [group for group in table()["compared"] if group["how"] == how]
    assert groups, f"{FILE.name} has no way to compare by {how}"
    return frozenset(entry for group in groups for entry in group["entries"])


def tolerance(case: str) -> dict[str, float]:
    """What `torch.testing.assert_close` allows a case of tests/ops beyond its defaults: rtol and atol, or nothing."""
    for group in table()["tolerance"]:
        if case in group.get("cases", []):
            return {"rtol": group["rtol"], "atol": group["atol"]}
    return {}


def refusal(case: str) -> str | None:
    """Why a case of tests/ops is not for this version of torch, or None where it is."""
    for group in table()["skipped"]:
        if case in group.get("cases", []) and TorchVersion(torch.__version__) < group["below"]:
            return str(group["cause"])
    return None


def problem(result: dict[str, Any]) -> str | None:
    """What is wrong with a result: it fails and is not listed, or it is listed for that mode and passes."""
    name, status = result["name"], result["status"]
    if status in ("unsupported_dtype", "no_samples", "eager_error"):
        return None
    mode = mode_of(result)
    listed = cause(result["suite"], name, mode)
    said = f"{result['suite']} {name} at {mode}: {status} {' | '.join(result.get('details', []))}"
    if status == "pass":
        exact = f"{name}@{mode}" in causes(result["suite"])
        # A part of the samples may pass where others don't.
        return f"{said}, but {FILE.name} lists it" if exact and not result["max_samples"] else None
    return None if listed else said
