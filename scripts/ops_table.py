"""Writes docs/ops.md: `python scripts/ops_table.py`. A test holds it to what it is made from.

The overloads are the compiler's own table; dtypes and gradients are what PyTorch's OpInfo found
(tests/conformance/results.json, which `make conformance` writes)."""

from __future__ import annotations

import json
from pathlib import Path

from torchtpu_dynamo._torchtpu import lowered_targets

ROOT = Path(__file__).resolve().parent.parent
PATH = ROOT / "docs" / "ops.md"
RESULTS = ROOT / "tests/conformance/results.json"

DTYPES = {
    "float32": "f32",
    "bfloat16": "bf16",
    "float16": "f16",
    "float64": "f64",
    "int64": "i64",
    "int32": "i32",
    "bool": "bool",
    "complex64": "c64",
}


def judged() -> dict[str, dict[str, list[str]]]:
    """By ATen operator: for each mode, the statuses of the OpInfo entries that are about it."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in json.loads(RESULTS.read_text()).values():
        if "aten" not in row:
            continue
        modes = found.setdefault("aten." + row.pop("aten"), {})
        for mode, status in row.items():
            modes.setdefault(mode, []).append(status)
    return found


def text() -> str:
    overloads: dict[str, list[str]] = {}
    for target in sorted(lowered_targets()):
        base, _, overload = target.rpartition(".")
        overloads.setdefault(base, []).append(overload)
    results = judged()
    rows = []
    for base, names in overloads.items():
        modes = results.get(base, {})
        passing = [short for dtype, short in DTYPES.items() if set(modes.get(dtype, ["-"])) == {"pass"}]
        partly = [
            short for dtype, short in DTYPES.items() if set(modes.get(dtype, [])) - {"pass", "eager_error"}
        ]
        gradient = modes.get("float32/train", [])
        backward = "" if not gradient else "yes" if set(gradient) == {"pass"} else "partly"
        note = f"partly: {', '.join(partly)}" if partly else ""
        rows.append(f"| `{base}` | {', '.join(names)} | {', '.join(passing)} | {backward} | {note} |")
    return (
        "# Supported ops\n\n"
        f"{sum(map(len, overloads.values()))} overloads of {len(overloads)} operators are lowered directly. Whatever "
        "PyTorch decomposes into\nthese is supported as well. Made by `python scripts/ops_table.py`.\n\n"
        "*dtypes*: the samples of PyTorch's OpInfo that ran pass; *gradient*: theirs at f32 do; *notes*: where some\n"
        "do not, with the causes in [conformance.md](conformance.md). Blank: OpInfo has no entry of that name, and\n"
        "`tests/ops` or an operator that decomposes into it tests it.\n\n"
        "| operator | overloads | dtypes | gradient | notes |\n|---|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n"
    )


if __name__ == "__main__":
    PATH.write_text(text())
