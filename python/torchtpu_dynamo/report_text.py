"""An `Explanation` as text of at most 100 columns. Nothing here may measure or compile."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .explanation import Explanation, GraphReport

WIDTH = 100
LARGEST = 10
DECISIONS = 12


def text(explanation: Explanation) -> str:
    """The whole report."""
    lines = [summary(explanation)]
    for graph in explanation.graphs:
        lines += ["", *graph_lines(graph)]
    for number, broken in enumerate(explanation.breaks, 1):
        where = ", from ".join(f"{short(f)}:{n} in {function}" for f, n, function in broken.lines[:3])
        first, *rest = broken.reason.strip().splitlines() or ["unknown"]
        lines += ["", *wrapped(f"break {number}   ", f"{first} at {where}" if where else first)]
        lines += wrapped("          ", " ".join(line.strip() for line in rest))[:3]
    for recompiled in explanation.recompilations:
        lines += ["", *wrapped(f"recompiled {recompiled.graph}: ", " ".join(recompiled.reason.split()))]
    return "\n".join(lines)


def summary(explanation: Explanation) -> str:
    """One line."""
    parts = [
        counted(len(explanation.graphs), "graph"),
        counted(len(explanation.breaks), "break"),
        counted(len(explanation.recompilations), "recompilation"),
    ]
    where = f" for {explanation.plugin}" if explanation.plugin else ""
    return f"{explanation.name}: {', '.join(parts)}; compiled{where} in {explanation.seconds:.2f} s"


def graph_lines(graph: GraphReport) -> list[str]:
    """One graph."""
    title = f"graph {graph.index} {graph.kind}: {counted(len(graph.nodes), 'operator')}"
    if graph.program is None:
        return [title, *wrapped("  error     ", graph.error or "")]
    program = graph.program
    lines = [
        f"{title} -> {counted(operations(program), 'operation')} in {counted(program['groups'], 'group')}"
    ]
    lines += wrapped("  families  ", listed(graph.families))
    lines += wrapped("  cost      ", cost_text(program))
    lines += wrapped("  memory    ", memory_text(program))
    if graph.xla is not None:
        lines += wrapped("  plugin    ", plugin_text(graph.xla))
    seconds = ", ".join(f"{stage} {1e3 * s:.1f}" for stage, s in graph.stages.items())
    lines += wrapped("  stages    ", f"{seconds} (ms)")
    lines += wrapped("  rewrites  ", listed({k: v for k, v in graph.rewrites.items() if v}) or "none")
    if graph.decisions:
        lines.append("  on a TPU  of the collectives (`torchtpu compile` and `inspect` show what it costs)")
        lines += decision_lines(graph.decisions, DECISIONS)
    if graph.error is not None:
        lines += wrapped("  error     ", graph.error)
    tensors = program["memory"]["fused"]["tensors"][:LARGEST]
    if tensors:
        lines.append("  the largest tensors at the peak")
        rows = []
        for t in tensors:
            made = program["nodes"][t["node"]]
            rows.append((size(t["bytes"]), t["role"], t["type"], name_of(made), place(made)))
        lines += table(rows)
    fusions = ((graph.xla or {}).get("hlo") or {}).get("fusions", [])[:5]
    if fusions:
        lines.append("  the largest fusions")
        rows = [
            (
                size(f["bytes"]),
                f["shape"],
                counted(sum(f["ops"].values()), "op"),
                f["name"],
                ", ".join(short_line(line) for line in f["lines"][:2]),
            )
            for f in fusions
        ]
        lines += table(rows)
    return lines


def decisions(reports: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What passes said of single operations: pass, operation, the user's line, text; first what they changed."""
    found = [{"pass": report["name"], **remark} for report in reports for remark in report.get("remarks", ())]
    return sorted(found, key=lambda one: one["text"].startswith("stays"))


def decision_lines(found: Sequence[Mapping[str, Any]], most: int) -> Iterator[str]:
    for one in found[:most]:
        at = f" at {short_line(one['line'])}" if one["line"] else ""
        yield from wrapped("    ", f"{one['op']}{at}, {one['pass']}: {one['text']}")
    if len(found) > most:
        yield f"    and {len(found) - most} more"


def operations(program: Mapping[str, Any]) -> int:
    return sum(node["op"] not in ("parameter", "constant") for node in program["nodes"])


def cost_text(program: Mapping[str, Any]) -> str:
    flops, moved = program["flops"], program["bytes_fused"]
    parts = [
        f"{number(flops)}FLOP, of it {number(program['transcendentals']).rstrip()} transcendental functions",
        f"{size(moved)} moved fused, {size(program['bytes_unfused'])} unfused",
        f"{flops / max(moved, 1):.3g} FLOP/byte",
    ]
    if program["unknown_loops"]:
        parts.append(f"{counted(program['unknown_loops'], 'loop')} of unknown length taken as one run")
    return ", ".join(parts)


def memory_text(program: Mapping[str, Any]) -> str:
    memory = program["memory"]
    fused = memory["fused"]
    found = f"peak {size(fused['bytes'])}, of it arguments {size(memory['arguments'])}"
    if memory["constants"]:
        found += f" and constants {size(memory['constants'])}"
    if fused["steps"]:
        at = program["nodes"][fused["steps"][fused["step"]]]
        found += f"; at step {fused['step'] + 1} of {len(fused['steps'])}, {at['op']} {place(at)}".rstrip()
    return f"{found}; {size(memory['unfused']['bytes'])} if nothing is fused"


def plugin_text(xla: Mapping[str, Any]) -> str:
    parts = []
    hlo, memory = xla.get("hlo"), xla.get("memory")
    if hlo is not None:
        parts.append(f"{counted(sum(hlo['kernels'].values()), 'kernel')} ({listed(hlo['kernels'])})")
    elif xla.get("hlo_error"):
        parts.append(f"no optimized program: {xla['hlo_error']}")
    if memory is not None:
        named = ("arguments", "outputs", "temporaries")
        parts.append(", ".join(f"{name} {size(memory[name])}" for name in named))
    return "; ".join(parts) or "tells nothing"


def name_of(node: Mapping[str, Any]) -> str:
    """An argument by its name, anything else by the operation."""
    return str(node["name"] if node["op"] == "parameter" else node["op"])


def place(node: Mapping[str, Any]) -> str:
    return f"at {short_line(node['line'])} in {node['function']}" if node["line"] else ""


def short(file: str) -> str:
    """A path from the working directory or `site-packages`; the last two parts of what lies elsewhere or is long."""
    _, _, package = file.rpartition("site-packages" + os.sep)
    found = package if package != file else os.path.relpath(file)
    return os.path.join(*file.split(os.sep)[-2:]) if found.startswith("..") or len(found) > 36 else found


def short_line(line: str) -> str:
    file, _, number = line.rpartition(":")
    return f"{short(file)}:{number}"


def size(count: float) -> str:
    """Bytes for people: powers of 1000."""
    return f"{number(count)}B"


def number(count: float) -> str:
    """A count with three digits and a prefix, ready for a unit."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if abs(count) < 999.5 or prefix == "P":
            break
        count /= 1000
    return f"{count:.3g} {prefix}"


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def wrapped(label: str, value: str) -> list[str]:
    """Text behind a label, later lines below the first."""
    if not value.strip():
        return []
    return textwrap.wrap(value, WIDTH, initial_indent=label, subsequent_indent=" " * min(len(label), 12))


def table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Columns as wide as they must be; the first is a size, to the right."""
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append(clipped("    " + "  ".join([row[0].rjust(widths[0]), *cells]).rstrip()))
    return lines


def clipped(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."
