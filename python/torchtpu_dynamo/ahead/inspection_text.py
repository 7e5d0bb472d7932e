"""An inspection as text. Nothing here may measure or compile."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from .. import report_text as words
from . import trees

MOST = 12
"""Rows of a table."""

WORST = 5
"""Lines of collectives that are waited for."""


def text(found: Mapping[str, Any]) -> str:
    return "\n".join(_lines(found))


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    made = time.strftime("%Y-%m-%d %H:%M", time.gmtime(found["created"]))
    signed = ", signed" if found["signed"] else ""
    yield f"{found['name']}: {found['file']}, {words.size(found['bytes'])}{signed}"
    yield f"compiled {made} UTC by torchtpu {found['compiler']}, from torch {found['torch']}"
    if found["ranks"] is not None:
        yield f"one program for all of {found['ranks']} ranks; tensors are those of one of them"
    if found["traced_as"] is not None:
        yield "what rank {} of {} traced: where ranks differ, its numbers (see --ranks)".format(
            *found["traced_as"]
        )
    inputs = ", ".join(tensor(spec, spec["name"]) for spec in found["inputs"])
    count = words.counted(len(list(trees.leaves(found["results"]))), "tensor")
    yield f"takes {inputs or 'nothing'}; gives {count}"
    weights = found["weights"]
    held = "held" if weights["held"] == weights["count"] else f"{weights['held']} of them held"
    if weights["count"]:
        changed = f", {len(weights['changed'])} changed by a call" if weights["changed"] else ""
        yield f"{words.counted(weights['count'], 'weight')}, {words.size(weights['bytes'])}, {held}{changed}"
    for kind, program in found["programs"].items():
        yield ""
        yield (
            f"{kind}: {program['nodes']} operators, {program['operations']} operations, "
            f"{words.number(program['flops'])}FLOP, {words.size(program['bytes'])} moved"
        )
        yield from _passes(program)
        peak = program["peak"]
        when = f"step {peak['step'] + 1} of {peak['steps']}"
        yield f"  predicted peak {words.size(peak['bytes'])}, at {when}; the largest then:"
        rows = [
            (words.size(t["bytes"]), t["role"], t["type"], t["name"], words.place(t)) for t in peak["largest"]
        ]
        yield from words.table(rows)
    for build in found["builds"]:
        yield ""
        yield from _build(build)


def tensor(spec: Mapping[str, Any], name: str) -> str:
    """With the range of each size that the caller decides."""
    sizes = (
        f"{e[1]}..{e[2]}" if isinstance(e, list) and len(e) == 3 else e[0] if isinstance(e, list) else str(e)
        for e in spec.get("extents", spec["shape"])
    )
    return f"{name}: {spec['dtype']}[{','.join(sizes)}]"


def _build(build: Mapping[str, Any]) -> Iterator[str]:
    seconds = sum(build["stages"].values())
    yield f"{build['program']} for {build['topology']}, compiled in {seconds:.2f} s"
    yield from _passes(build)
    if build["decisions"]:
        yield "  decisions of our passes:"
        yield from words.decision_lines(build["decisions"], MOST)
    memory, hbm = build["memory"], build["hbm"]
    parts = ", ".join(
        f"{name} {words.size(count)}" for name, count in memory.items() if count and name != "peak"
    )
    of = f" of {words.size(hbm)}" if hbm else ""
    if build["predicted"]:
        of += f", predicted {words.size(build['predicted'])}"
    yield f"  memory of a device: peak {words.size(memory.get('peak', 0))}{of} ({parts})"
    for option, value in build["compiled_with"].items():
        yield f"  option {option}={value}"
    if form := build["form"]:
        without = f", without {', '.join(form['without'])}" if form["without"] else ""
        yield f"  form: tiles of {form['tile_mib']} MiB{without}"
    if "cycles" not in build:
        return
    cycles = build["cycles"]
    if cycles is None:
        yield "  cycles: the figures of this generation are not known"
        return
    yield (
        f"  {words.number(cycles['total'])}cycles, {1e3 * cycles['seconds']:.3g} ms on {build['chip']['name']}, "
        f"{100 * build['share_of_peak']:.0f}% of its peak"
    )
    if cycles["floor"]:
        count = words.counted(len(cycles["kernels"]), "unpriced kernel")
        yield f"  of it {words.number(cycles['floor'])}cycles are the least that {count} may take"
    if cycles["unknown"]:
        yield f"  without an estimate: {', '.join(cycles['unknown'][:MOST])}"
    if cycles["unknown_trips"]:
        yield f"  counted once, as their number of runs is unknown: {', '.join(cycles['unknown_trips'][:MOST])}"
    replay = build["replay"]
    if replay:
        yield (
            f"  collectives: {words.number(replay['transfers'])}cycles of transfers, "
            f"{words.number(replay['exposed'])}cycles exposed"
        )
        for how in ("asynchronous", "synchronous"):
            if replay[how]:
                yield f"    {how}: {words.listed(replay[how])}"
        yield from _worst(replay)
    for title, counts in (("family", cycles["by_family"]), ("line", cycles["by_line"])):
        rows = [(f"cycles by {title}", "", "")]
        shown = list(counts.items())[:MOST]
        for name, count in shown:
            label = words.short_line(name) if title == "line" and name else name or "no line"
            rows.append((f"{words.number(count)}", f"{100 * count / max(cycles['total'], 1):.0f}%", label))
        if len(counts) > len(shown):
            rest = sum(list(counts.values())[MOST:])
            rows.append(
                (
                    f"{words.number(rest)}",
                    f"{100 * rest / max(cycles['total'], 1):.0f}%",
                    f"{len(counts) - MOST} others",
                )
            )
        yield from words.table(rows)


def _passes(found: Mapping[str, Any]) -> Iterator[str]:
    passes = found["passes"]
    counts = {name: one["rewrites"] for name, one in passes.items() if one["rewrites"]}
    if passes:
        seconds = sum(one["seconds"] for one in passes.values())
        yield words.clipped(
            f"  rewrites by our passes, in {1e3 * seconds:.2f} ms: {words.listed(counts) or 'none'}"
        )


def _worst(replay: Mapping[str, Any]) -> Iterator[str]:
    waited = [one for one in replay["collectives"] if one["exposed"]]
    if not waited:
        return
    rows = [("exposed", "", "kind", "line")]
    for one in waited[:WORST]:
        label = words.short_line(one["line"]) if one["line"] else "no line"
        share = f"{100 * one['exposed'] / replay['exposed']:.0f}%"
        rows.append((words.number(one["exposed"]), share, f"{one['kind']} x {one['runs']}", label))
    yield from words.table(rows)
