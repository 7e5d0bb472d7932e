"""Writes docs/ops.md from the compiler's own table: `python scripts/ops_table.py`. A test holds the two together."""

from __future__ import annotations

from pathlib import Path

from torchtpu_dynamo._torchtpu import lowered_targets

PATH = Path(__file__).resolve().parent.parent / "docs" / "ops.md"


def text() -> str:
    overloads: dict[str, list[str]] = {}
    for target in sorted(lowered_targets()):
        base, _, overload = target.rpartition(".")
        overloads.setdefault(base, []).append(overload)
    rows = "\n".join(f"| `{base}` | {', '.join(names)} |" for base, names in overloads.items())
    return (
        "# Supported ops\n\n"
        f"{sum(map(len, overloads.values()))} overloads of {len(overloads)} operators are lowered directly. Whatever "
        "PyTorch decomposes into\nthese is supported as well. Made by `python scripts/ops_table.py`.\n\n"
        f"| operator | overloads |\n|---|---|\n{rows}\n"
    )


if __name__ == "__main__":
    PATH.write_text(text())
