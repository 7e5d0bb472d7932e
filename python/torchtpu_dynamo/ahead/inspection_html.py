"""An inspection as a page. Nothing here may measure or compile."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from .. import report_text as words
from ..html_parts import bars, decision_table, details, document, facts, memory_chart, table
from . import timeline_html
from .inspection_text import tensor

MOST = 25
"""Bars of a picture."""


def page(found: Mapping[str, Any]) -> str:
    """The whole page."""
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(found["created"]))
    about = (
        f"{found['file']}, {words.size(found['bytes'])}, compiled {made} by torchtpu {found['compiler']} "
        f"from torch {found['torch']}"
    )
    body = [f"<h1>{escape(found['name'])}</h1><p class=soft>{escape(about)}</p>", _signature(found)]
    if len(found["builds"]) > 1:
        body.append(f"<h2>Topologies</h2>{_comparison(found['builds'])}")
    for kind, program in found["programs"].items():
        body.append(_program(kind, program))
        body += [_build(b, program) for b in found["builds"] if b["program"] == kind]
    stages = [(stage, f"{seconds:.2f}") for stage, seconds in found["stages"].items()]
    sections = [(name, words.size(count)) for name, count in found["sections"].items()]
    body.append("<h2>The file</h2>")
    body.append(details("Time of each stage", table(("stage", "s"), stages, (1,))))
    body.append(details("Sections", table(("section", "bytes"), sections, (1,))))
    return document(
        f"{found['name']} for {', '.join(dict.fromkeys(b['topology'] for b in found['builds']))}", body
    )


def compared(old: Mapping[str, Any], new: Mapping[str, Any], changes: Iterable[str]) -> str:
    """The page of two inspections: what both have built, one above the other on one scale, and the changes as text."""
    builds = [{(b["program"], b["topology"]): b for b in found["builds"]} for found in (old, new)]
    body = [
        f"<h1>{escape(new['name'])}</h1><p class=soft>{escape(old['file'])}, then {escape(new['file'])}</p>"
    ]
    for program, topology in (key for key in builds[0] if key in builds[1]):
        a, b = (of[program, topology] for of in builds)
        body.append(f"<h2>{escape(program.capitalize())} on {escape(topology)}</h2>")
        body.append(_comparison([a, b], ("before", "after")))
        if a.get("replay") and b.get("replay"):
            clock = b["chip"]["clock"]
            length = max(one["replay"]["timeline"]["length"] for one in (a, b))
            for title, one in (("Before", a), ("After", b)):
                body.append(f"<h3>{title}</h3>{timeline_html.chart(one['replay'], clock, length)}")
                listed = timeline_html.worst(one["replay"], clock)
                body.append(details("The collectives that are waited for longest", listed))
            body.append(timeline_html.legend(a["replay"], b["replay"]))
    text = "\n".join(changes) or "no difference"
    body.append(f"<h2>Changes</h2><pre>{escape(text)}</pre>")
    return document(f"{old['file']} and {new['file']}", body)


def _signature(found: Mapping[str, Any]) -> str:
    weights = found["weights"]
    rows = [(tensor(spec, spec["name"]),) for spec in found["inputs"]]
    held = f"{weights['held']} held" if weights["held"] < weights["count"] else "all held"
    pairs = [
        (words.counted(len(found["inputs"]), "input"), "tensors of a call"),
        (words.counted(weights["count"], "weight"), f"{words.size(weights['bytes'])}, {held}"),
        (words.counted(len(found["programs"]), "program"), ", ".join(found["programs"])),
    ]
    if found["ranks"] is not None:
        pairs.append((words.counted(found["ranks"], "rank"), "one program for all; tensors are those of one"))
    if found["traced_as"] is not None:
        rank, ranks = found["traced_as"]
        pairs.append((f"rank {rank} of {ranks}", "traced this: where ranks differ, its numbers"))
    changed = ""
    if weights["changed"]:
        changed = details(
            f"{words.counted(len(weights['changed']), 'weight')} changed by a call",
            table(("name",), [(name,) for name in weights["changed"]]),
        )
    return facts(*pairs) + details("Inputs", table(("input",), rows)) + changed


def _comparison(builds: list[Mapping[str, Any]], names: Sequence[str] = ()) -> str:
    rows = []
    for i, build in enumerate(builds):
        cycles = build.get("cycles")
        memory = build["memory"].get("peak", 0)
        rows.append(
            (
                names[i] if names else build["topology"],
                build["program"],
                f"{1e3 * cycles['seconds']:.3g} ms" if cycles else "",
                f"{words.number(cycles['total'])}" if cycles else "",
                f"{words.number(cycles['exposed'])}" if cycles and build["replay"] else "",
                f"{100 * build['share_of_peak']:.0f}%" if cycles else "",
                words.size(memory),
                f"{100 * memory / build['hbm']:.0f}%" if build["hbm"] else "",
                f"{sum(build['stages'].values()):.1f} s",
            )
        )
    head = ("program", "time", "cycles", "exposed", "of peak FLOP/s", "memory", "of HBM", "compiled in")
    return table(("" if names else "topology", *head), rows, (2, 3, 4, 5, 6, 7, 8))


def _program(kind: str, program: Mapping[str, Any]) -> str:
    peak = program["peak"]
    rows = [
        (words.size(t["bytes"]), t["role"], t["type"], t["name"], words.place(t)) for t in peak["largest"]
    ]
    listed = table(("bytes", "role", "type", "made by", "line"), rows, numbers=(0,))
    return (
        f"<h2>{escape(kind.capitalize())}</h2>"
        + facts(
            (words.counted(program["operations"], "operation"), f"of {program['nodes']} operators"),
            (f"{words.number(program['flops'])}FLOP", "arithmetic"),
            (words.size(program["bytes"]), "moved, fused"),
            (f"{program['flops'] / max(program['bytes'], 1):.3g}", "FLOP a byte"),
            (words.size(peak["bytes"]), "predicted peak"),
        )
        + f"<h3>Memory over the schedule</h3>{memory_chart(program['analysis'])}"
        + details("The largest tensors at the peak", listed, True)
        + _passes(program)
    )


def _passes(found: Mapping[str, Any]) -> str:
    rows = [(name, one["rewrites"], f"{1e3 * one['seconds']:.3f}") for name, one in found["passes"].items()]
    return details("Our passes", table(("pass", "rewrites", "ms"), rows, (1, 2))) if rows else ""


def _overlap(build: Mapping[str, Any]) -> str:
    replay, clock = build["replay"], build["chip"]["clock"]
    return (
        "<h3>Computation and communication</h3>"
        + timeline_html.chart(replay, clock)
        + timeline_html.legend(replay)
        + details(
            "The collectives that are waited for longest", timeline_html.worst(replay, clock), opened=True
        )
    )


def _build(build: Mapping[str, Any], program: Mapping[str, Any]) -> str:
    parts = [f"<h2>{escape(build['program'].capitalize())} on {escape(build['topology'])}</h2>"]
    memory, cycles = build["memory"], build.get("cycles")
    peak, hbm = memory.get("peak", 0), build["hbm"]
    pairs = [
        (
            words.size(peak),
            f"peak memory, {100 * peak / hbm:.0f}% of {words.size(hbm)}" if hbm else "peak memory",
        )
    ]
    if build["predicted"]:
        pairs.append((words.size(build["predicted"]), "predicted, behind the passes for TPUs"))
    if cycles:
        pairs = [
            (f"{1e3 * cycles['seconds']:.3g} ms", "estimated"),
            (f"{words.number(cycles['total'])}", "cycles"),
            (f"{100 * build['share_of_peak']:.0f}%", f"of the peak of {build['chip']['name']}"),
            *pairs,
        ]
        if build["replay"]:
            pairs.append((f"{words.number(cycles['exposed'])}", "cycles waiting for links"))
    parts.append(facts(*pairs))
    if build.get("replay"):
        parts.append(_overlap(build))
    if cycles:
        for title, counts in (("line", cycles["by_line"]), ("operator family", cycles["by_family"])):
            shown = list(counts.items())[:MOST]
            rows = [
                (
                    words.short_line(name) if title == "line" and name else name or "no line",
                    count,
                    words.number(count),
                )
                for name, count in shown
            ]
            if len(counts) > MOST:
                rest = sum(list(counts.values())[MOST:])
                rows.append((f"{len(counts) - MOST} others", rest, words.number(rest)))
            parts.append(f"<h3>Cycles by {title}</h3>{bars(rows, cycles['total'])}")
        opcodes = [(name, words.number(count)) for name, count in cycles["by_opcode"].items()]
        parts.append(details("Cycles by HLO opcode", table(("opcode", "cycles"), opcodes, (1,))))
        unpriced = [
            (
                k["name"],
                k["runs"],
                words.size(k["bytes"]),
                f"{words.number(k['flops'])}FLOP",
                words.number(k["cycles"]),
            )
            for k in cycles["kernels"]
        ]
        if unpriced:
            head = ("kernel", "runs", "bytes", "arithmetic", "least cycles")
            parts.append(details("Kernels without an estimate", table(head, unpriced, (1, 2, 3, 4))))
        for title, names in (("unknown", cycles["unknown"]), ("unknown_trips", cycles["unknown_trips"])):
            if names:
                what = (
                    "Without an estimate"
                    if title == "unknown"
                    else "Loops that run an unknown number of times"
                )
                parts.append(details(what, table(("instruction",), [(name,) for name in names])))
    parts.append(_passes(build))
    if build["decisions"]:
        parts.append(details("What they decided of collectives", decision_table(build["decisions"])))
    sizes = [(name, words.size(count)) for name, count in memory.items()]
    parts.append(details("Memory by category", table(("what", "bytes"), sizes, (1,))))
    options = [(name, str(value)) for name, value in build["compiled_with"].items()]
    versions = [(name, str(value)) for name, value in build["plugin"].items()]
    parts.append(details("Versions and options", table(("what", "value"), [*versions, *options])))
    return "\n".join(parts)
