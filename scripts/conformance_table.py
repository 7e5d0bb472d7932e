"""Writes docs/conformance.md and tests/conformance/results.json from the results of `make conformance`.

`python scripts/conformance_table.py build/conformance/*.jsonl`"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from tests import exceptions  # noqa: E402

SUITES = {"opinfo": "OpInfo", "modules": "module_db", "hops": "hop_db"}
HEAD = """# Conformance

PyTorch's own tables of operators (OpInfo), modules and higher-order operators, run under
`torch.compile(fullgraph=True)` against eager mode, by `make conformance`. `tests/conformance` says what counts as
equal. An entry passes if all of its samples do.

- *entries*: those that take the dtype and that eager mode itself runs.
- *ceiling*: entries that pass here or under `backend="aot_eager"`: what dynamo can compile at all.
- *share*: passes, of the ceiling.
- *by float64*: passes of which a sample exceeds the tolerance, and is as near to float64 as eager's own result is
  (within a factor of 4): short floats where eager rounds on the way; or of which a gradient is off by no more than one
  rounding of the sample's largest result or gradient: those that cancel.
- *fallback*: with `options={"fallback": "eager"}`, which lets the host run what has no lowering.
- *dynamic*: with `dynamic=True`, so that all sizes are symbols.

Compared by shape and dtype alone: random ops, whose numbers differ from eager's by design.
"""


RESULTS = ROOT / "tests/conformance/results.json"


def main() -> None:
    results: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for path in sys.argv[1:]:
        for line in Path(path).read_text().splitlines():
            result = json.loads(line)
            results[result["suite"], exceptions.mode_of(result)].append(result)
    limits = {r.get("max_samples", 0) for found in results.values() for r in found}
    limit = "All samples" if limits == {0} else f"At most {max(limits)} samples an entry, spread evenly"
    lines = [HEAD, f"torch {torch.__version__.partition('+')[0]}. {limit}.\n"]
    columns = "entries | ceiling | pass | share | by float64 | wrong numbers | refused | other errors | aborts, hangs"
    lines += [f"| suite | dtype | {columns} |", "|---" * 2 + "|--:" * 9 + "|"]
    failing: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for (suite, m), found in sorted(
        results.items(), key=lambda item: (list(SUITES).index(item[0][0]), item[0][1])
    ):
        ran = [r for r in found if r["status"] not in ("unsupported_dtype", "no_samples", "eager_error")]
        counts = Counter(r["status"] for r in ran)
        ceiling = [r for r in ran if r["status"] == "pass" or r.get("ceiling", "pass") == "pass"]
        passed = counts["pass"]
        lines.append(
            f"| {SUITES[suite]} | {m} | {len(ran)} | {len(ceiling)} | {passed} | {passed / max(1, len(ceiling)):.1%}"
            f" | {sum(r['status'] == 'pass' and bool(r.get('exact')) for r in ran)}"
            f" | {counts['mismatch']} | {counts['refused']} | {counts['error']} | {counts['abort'] + counts['timeout']} |"
        )
        for r in ran:
            if r["status"] != "pass":
                why = exceptions.cause(suite, r["name"], m) or f"NOT LISTED: {(r.get('details') or [''])[0]}"
                name = f"{r['name']}" + ("" if r.get("ceiling", "pass") == "pass" else "*")
                failing[why][f"{SUITES[suite]} {name}"].append(m)
    lines += ["\n## What does not pass, by cause\n", "With `*`: not under `aot_eager` either.\n"]
    for why, entries in sorted(failing.items(), key=lambda item: -len(item[1])):
        lines.append(
            f"- **{why}** " + "; ".join(f"`{e}` ({', '.join(ms)})" for e, ms in sorted(entries.items()))
        )
    (ROOT / "docs/conformance.md").write_text("\n".join(lines) + "\n")
    write_results(results)


def write_results(results: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    """By suite and entry: its status by mode, and for OpInfo the ATen operator that it is about."""
    from tests.conformance.suites import full_name
    from torch.testing._internal.common_methods_invocations import op_db

    rows: dict[str, dict[str, Any]] = {f"opinfo {full_name(op)}": {"aten": op.aten_name} for op in op_db}
    for (suite, m), found in sorted(results.items()):
        for r in found:
            if r["status"] not in ("unsupported_dtype", "no_samples"):
                rows.setdefault(f"{suite} {r['name']}", {})[m] = r["status"]
    text = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(rows.items()))
    RESULTS.write_text("{\n" + text + "\n}\n")


if __name__ == "__main__":
    main()
