"""Writes docs/architectures.md and passed.txt from results; fails where tests/exceptions.toml lists other failures.

`python -m tests.architectures.report FILE ...`

The last result of an entry counts. An entry counts as compiled by aot_eager where ours passes, since our backend is
reached through the same AOTAutograd, and where it does not by what the baseline run said."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from . import causes, known_failures, zoo

PATH = Path(__file__).resolve().parents[2] / "docs" / "architectures.md"
MODES = ("forward", "training")
Result = dict[str, Any]


def load(files: list[str]) -> dict[tuple[str, str], Result]:
    lines = (line for f in files for line in Path(f).read_text().splitlines())
    return {(r["library"], r["name"]): r for r in map(json.loads, lines)}


def mode_status(result: Result, mode: str) -> str:
    """A mode's status; that of the whole child where it died."""
    return str(result[mode]["status"]) if mode in result else str(result["status"])


def compiles(result: Result, mode: str) -> bool:
    """Whether aot_eager runs this mode and matches."""
    if mode_status(result, mode) == "pass":
        return True
    return bool(result.get(mode, {}).get("baseline", {}).get("status") == "pass") or (
        mode not in result and result["status"] in ("abort", "timeout")
    )


def detail(result: Result, mode: str) -> str:
    found = result.get(mode, result)
    return str(found.get("detail") or "; ".join(found.get("details", [])))


def text(results: dict[tuple[str, str], Result]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in zoo.frozen()["versions"].items())
    out = [
        "# Architectures",
        "",
        "Every model of transformers (a model type that an Auto class maps), timm (a model file) and diffusers (a model",
        'class), tiny, with random weights, in float32, `torch.compile(model, backend="tpu")` on the CPU plugin, against',
        "eager PyTorch: the results of a forward pass, and in training the results and the gradients of all parameters,",
        "each within 1e-4 of its largest element (or, where float32 itself allows no better, within 4 times eager's own",
        "error against float64). A mismatch is tried again with other weights and in float64, since rounding decides",
        "the sign of what is 0 but for rounding, so a relu's gradient, and which of near-equal scores are the highest.",
        '`tests/architectures/list.json` is the frozen list, and "run" is how many of it ran.',
        "",
        "aot_eager was run where ours does not pass. Where ours passes, an entry is counted as one that aot_eager compiles",
        "without running it: both get the same graphs from dynamo and AOTAutograd.",
        "",
        f"Made with {versions} by",
        "",
        "    python -m tests.architectures --out results.jsonl",
        "    python -m tests.architectures.report results.jsonl",
        "",
        "| library | entries | run | forward: aot_eager | ours | share | training: aot_eager | ours | share |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for library in zoo.LIBRARIES:
        mine = [r for (lib, _), r in results.items() if lib == library]
        cells = [library, str(len(zoo.names(library))), str(len(mine))]
        for mode in MODES:
            possible = [r for r in mine if compiles(r, mode)]
            passed = sum(mode_status(r, mode) == "pass" for r in possible)
            share = f"{100 * passed / len(possible):.1f}%" if possible else "-"
            cells += [str(len(possible)), str(passed), share]
        out.append(f"| {' | '.join(cells)} |")
    failures = [
        (library, name, mode, result)
        for (library, name), result in sorted(results.items())
        for mode in MODES
        if compiles(result, mode) and mode_status(result, mode) != "pass"
    ]
    out += ["", "## Failures", ""]
    grouped: dict[str, dict[tuple[str, str], list[str]]] = {}
    for library, name, mode, result in failures:
        cause = causes.cause(detail(result, mode), mode_status(result, mode))
        grouped.setdefault(cause, {}).setdefault((library, name), []).append(mode)
    out += ["None.", ""] if not failures else ["| cause | entries |", "|---|---|"]
    for cause, entries in sorted(grouped.items(), key=lambda item: -len(item[1])):
        listed = ", ".join(
            f"{lib}/{name}" + (f" ({modes[0]})" if len(modes) == 1 else "")
            for (lib, name), modes in entries.items()
        )
        out.append(f"| {cause.replace('|', '/')} | {listed} |")
    out += [
        "",
        "## Not counted",
        "",
        "What aot_eager does not compile, or runs to other numbers than eager, and models that fail in eager mode.",
        "",
    ]
    out += ["| why | entries |", "|---|---|"]
    rest: dict[str, dict[str, list[str]]] = {}
    for (library, name), result in sorted(results.items()):
        for mode in MODES:
            if not compiles(result, mode):
                base = result.get(mode, {}).get("baseline", result.get(mode, result))
                why = f"{base.get('status')}: {str(base.get('detail', ''))[:110]}"
                rest.setdefault(why, {}).setdefault(f"{library}/{name}", []).append(mode)
    for why, entries in sorted(rest.items(), key=lambda item: (-len(item[1]), item[0])):
        listed = ", ".join(n + (f" ({m[0]})" if len(m) == 1 else "") for n, m in entries.items())
        out.append(f"| {why.replace('|', '/').replace('<', '&lt;')} | {listed} |")
    again = Counter(
        "float64" if said == "float64" else "other weights"
        for r in results.values()
        for m in MODES
        if (said := r.get(m, {}).get("again"))
    )
    noisy = sum("noise" in r.get(m, {}) for r in results.values() for m in MODES)
    random = sorted(
        {f"{lib}/{name}" for (lib, name), r in results.items() for m in MODES if r.get(m, {}).get("random")}
    )
    breaks = Counter(r.get("forward", {}).get("breaks", 0) > 0 for r in results.values())[True]
    out += ["", "## Notes", ""]
    out += [f"- In {noisy} comparisons a tensor was accepted by its distance from float64."]
    out += [
        f"- {again['other weights']} comparisons passed with other weights, {again['float64']} in float64."
    ]
    out += [f"- {breaks} models are traced in more than one graph; aot_eager sees the same breaks."]
    if random:
        out += [f"- Random in eager mode, so compared by shapes and dtypes alone: {', '.join(random)}."]
    return "\n".join(out) + "\n"


def failures(results: dict[tuple[str, str], Result]) -> dict[str, str]:
    return {
        f"{library}/{name} {mode}": causes.cause(detail(result, mode), mode_status(result, mode))
        for (library, name), result in sorted(results.items())
        for mode in MODES
        if compiles(result, mode) and mode_status(result, mode) != "pass"
    }


def main() -> None:
    results = load(sys.argv[1:])
    PATH.write_text(text(results))
    here = Path(__file__).parent
    passed = sorted(
        f"{lib}/{name} {r['seconds']:.0f}\n" for (lib, name), r in results.items() if r["status"] == "pass"
    )
    (here / "passed.txt").write_text("".join(passed))
    failed, ran = failures(results), {f"{lib}/{name}" for lib, name in results}
    listed = {key for key in known_failures() if key.rpartition(" ")[0] in ran}
    for key in sorted(failed.keys() ^ listed):
        print(f"not listed: {key}: {failed[key]}" if key in failed else f"listed, and passes: {key}")
    sys.exit(failed.keys() != listed)


if __name__ == "__main__":
    main()
