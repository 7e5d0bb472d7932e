"""An `Explanation` as a page: one file, no scripts, no network, light and dark.

Everything that comes from the user's program passes `escape`. Nothing here may measure or compile."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from . import report_text as words
from .html_parts import decision_table, details, document, facts, memory_chart, table

if TYPE_CHECKING:
    from .explanation import Explanation, FxNode, GraphReport

EACH_OPERATOR = 60
"""Graphs of up to this many operators are drawn operator by operator, larger ones line by line."""
MOST_BOXES = 400


def page(explanation: Explanation) -> str:
    """The whole page."""
    body = [f"<h1>{escape(explanation.name)}</h1><p class=soft>{escape(words.summary(explanation))}</p>"]
    if explanation.breaks:
        body.append("<h2>Breaks</h2>")
        for broken in explanation.breaks:
            where = ", from ".join(f"{words.short(f)}:{n} in {function}" for f, n, function in broken.lines)
            body.append(f"<p><b>{escape(where) or 'unknown line'}</b></p><pre>{escape(broken.reason)}</pre>")
    if explanation.recompilations:
        rows = [(r.graph, r.reason) for r in explanation.recompilations]
        body.append(f"<h2>Recompilations</h2>{table(('graph', 'reason'), rows)}")
    body += [section(graph) for graph in explanation.graphs]
    return document(f"{explanation.name} explained", body)


def section(graph: GraphReport) -> str:
    """One graph: figures, picture, memory, tables."""
    parts = [f"<h2>Graph {graph.index}, {escape(graph.kind)}</h2>"]
    if graph.error is not None:
        parts.append(f"<pre>{escape(graph.error)}</pre>")
    program = graph.program
    if program is not None:
        fused = program["memory"]["fused"]
        parts.append(
            facts(
                (words.counted(words.operations(program), "operation"), f"of {len(graph.nodes)} operators"),
                (f"{words.number(program['flops'])}FLOP", "arithmetic"),
                (words.size(program["bytes_fused"]), "moved, fused"),
                (f"{program['flops'] / max(program['bytes_fused'], 1):.3g}", "FLOP a byte"),
                (words.size(fused["bytes"]), "predicted peak"),
                (f"{sum(graph.stages.values()):.2f} s", "compilation"),
            )
        )
    parts.append(f"<h3>Graph</h3>{picture(graph.nodes)}")
    if program is not None:
        parts.append(f"<h3>Memory over the schedule</h3>{memory_chart(program)}")
        rows = [
            (
                words.size(t["bytes"]),
                t["role"],
                t["type"],
                words.name_of(program["nodes"][t["node"]]),
                words.place(program["nodes"][t["node"]]),
            )
            for t in fused["tensors"]
        ]
        rest = f"<p class=soft>{fused['count'] - len(rows)} smaller ones are not listed</p>"
        listed = table(("bytes", "role", "type", "made by", "line"), rows, numbers=(0,))
        parts.append(
            details("Tensors at the peak", listed + (rest if fused["count"] > len(rows) else ""), True)
        )
    parts += [details(title, text) for title, text in tables(graph)]
    return "\n".join(parts)


def tables(graph: GraphReport) -> list[tuple[str, str]]:
    """What is folded away at first."""
    found = [("Operators by family", table(("family", "operators"), graph.families.items(), numbers=(1,)))]
    hlo = (graph.xla or {}).get("hlo")
    if hlo:
        rows = [
            (
                words.size(f["bytes"]),
                f["shape"],
                sum(f["ops"].values()),
                f["name"],
                words.listed(f["ops"]),
                lines_of(f),
            )
            for f in hlo["fusions"][:100]
        ]
        title = f"{words.counted(len(hlo['fusions']), 'fusion')} of {sum(hlo['kernels'].values())} kernels"
        columns = ("bytes", "writes", "ops", "name", "inside", "lines")
        found.append((title, f"<p>{escape(words.listed(hlo['kernels']))}</p>{table(columns, rows, (0, 2))}"))
    if graph.xla and graph.xla.get("memory"):
        sizes = [(name, words.size(count)) for name, count in graph.xla["memory"].items()]
        found.append(("Memory as the plugin reports it", table(("what", "bytes"), sizes, (1,))))
    times: list[tuple[str, str]] = [
        (stage, f"{1e3 * seconds:.2f}") for stage, seconds in graph.stages.items()
    ]
    found.append(("Stages", table(("stage", "ms"), times, (1,))))
    passes = [
        (p["name"], p["rewrites"], f"{1e3 * p['seconds']:.2f}", p["nodes_before"], p["nodes_after"])
        for p in graph.passes
    ]
    if graph.decisions:
        found.append(("Collectives on a TPU", decision_table(graph.decisions)))
    found.append(("Passes", table(("pass", "rewrites", "ms", "nodes before", "after"), passes, (1, 2, 3, 4))))
    return found


def lines_of(fusion: Mapping[str, Any]) -> str:
    return ", ".join(words.short_line(line) for line in fusion["lines"])


@dataclasses.dataclass
class Box:
    """One or more operators in a row that are drawn together."""

    title: str
    place: str
    nodes: list[FxNode]
    sources: set[int]
    """Boxes that this one reads."""
    rank: int = 0
    x: float = 0.0
    y: float = 0.0


_BOX = (190, 40)  # width and height
_GAP = (16, 30)


def boxes(nodes: Sequence[FxNode]) -> list[Box]:
    """Operators, or where there are many, the runs of operators of one line, or else of one function. A run only reads
    runs before it, so that what is drawn has no cycle."""
    keys: list[Any] = list(range(len(nodes)))
    if len(nodes) > EACH_OPERATOR:
        keys = [node.line for node in nodes]
    if runs(keys) > MOST_BOXES:
        keys = [node.function for node in nodes]
    found: list[Box] = []
    box_of: list[int] = []
    for i, node in enumerate(nodes):
        if i == 0 or keys[i] != keys[i - 1]:
            found.append(Box("", words.short_line(node.line) if node.line else "", [], set()))
        box = found[-1]
        box.nodes.append(node)
        box_of.append(len(found) - 1)
        box.sources |= {box_of[source] for source in node.operands if source < i} - {len(found) - 1}
    for box in found:
        first = box.nodes[0]
        name = first.target.removeprefix("aten.").removesuffix(".default")
        box.title = name if len(box.nodes) == 1 else f"{first.function or name}: {len(box.nodes)} operators"
    return found


def runs(keys: Sequence[Any]) -> int:
    return sum(i == 0 or keys[i] != keys[i - 1] for i in range(len(keys)))


def lay_out(found: list[Box]) -> tuple[float, float]:
    """Places boxes in rows below what they read, near to it; width and height of all."""
    rows: dict[int, list[Box]] = {}
    for box in found:
        box.rank = 1 + max((found[s].rank for s in box.sources), default=-1)
        rows.setdefault(box.rank, []).append(box)
    widest = max((len(row) for row in rows.values()), default=1)
    (width, height), (gap_x, gap_y) = _BOX, _GAP
    total = widest * (width + gap_x) + gap_x
    for rank, row in sorted(rows.items()):
        middle = {
            id(b): sum(found[s].x for s in b.sources) / len(b.sources) if b.sources else 0.0 for b in row
        }
        row.sort(key=lambda b: middle[id(b)])
        start = (total - len(row) * (width + gap_x) + gap_x) / 2
        for i, box in enumerate(row):
            box.x, box.y = start + i * (width + gap_x), gap_y / 2 + rank * (height + gap_y)
    return total, len(rows) * (height + gap_y)


def picture(nodes: Sequence[FxNode]) -> str:
    """The graph as a drawing: operators (or lines of the user's), coloured by what they compute most of."""
    found = boxes(nodes)
    shown = found[:MOST_BOXES]
    if not shown:
        return "<p class=soft>no operators</p>"
    width, height = lay_out(shown)
    dearest = max((sum(n.flops for n in box.nodes) for box in shown), default=0) or 1
    (box_width, box_height), parts = _BOX, []
    for box in shown:
        for source in sorted(box.sources):
            a = shown[source]
            x0, y0, x1, y1 = a.x + box_width / 2, a.y + box_height, box.x + box_width / 2, box.y
            far = " far" if box.rank - a.rank > 3 else ""
            bend = min(60.0, (y1 - y0) / 2)
            curve = f"M{x0:.0f} {y0:.0f}C{x0:.0f} {y0 + bend:.0f} {x1:.0f} {y1 - bend:.0f} {x1:.0f} {y1:.0f}"
            parts.append(f'<path class="edge{far}" d="{curve}"/>')
    for box in shown:
        flops, moved = sum(n.flops for n in box.nodes), sum(n.bytes for n in box.nodes)
        names = ", ".join(dict.fromkeys(n.target for n in box.nodes))
        title = f"{names}\n{box.nodes[-1].type}\n{words.number(flops)}FLOP, {words.size(moved)}\n{box.place}"
        heat = 0.05 + 0.45 * flops / dearest if flops else 0.0
        parts.append(
            f"<g><title>{escape(title)}</title>"
            f'<rect class="box" x="{box.x:.0f}" y="{box.y:.0f}" width="{box_width}" height="{box_height}" rx="5"/>'
            f'<rect x="{box.x:.0f}" y="{box.y:.0f}" width="{box_width}" height="{box_height}" rx="5" '
            f'fill="var(--mark)" fill-opacity="{heat:.2f}"/>'
            f'<text x="{box.x + 8:.0f}" y="{box.y + 16:.0f}">{escape(cut(box.title))}</text>'
            f'<text class="soft" x="{box.x + 8:.0f}" y="{box.y + 32:.0f}">{escape(cut(box.place))}</text></g>'
        )
    note = f"<p class=soft>the first {len(shown)} of {len(found)}</p>" if len(found) > len(shown) else ""
    drawing = f'<svg width="{width:.0f}" height="{height:.0f}" role="img">{"".join(parts)}</svg>'
    return f'<div class="scroll">{drawing}</div>{note}'


def cut(text: str, most: int = 26) -> str:
    """The end of a long text says more than its beginning."""
    return text if len(text) <= most else "…" + text[1 - most :]
