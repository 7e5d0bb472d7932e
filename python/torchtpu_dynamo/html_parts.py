"""Parts of a page: one file, no scripts, no network, light and dark. All text passes `escape`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from . import report_text as words

MOST_STEPS = 600

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #646b73; --line: #d9dde1; --ground: #fff; --box: #f6f7f9;
  --mark: #c2410c; --area: #9db8e8; --base: #d5deee; --wait: #dc2626; --a: #5fb3a1; --b: #c9a227; --c: #a78bda;
  --d: #7f8fa6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --soft: #9aa2ab; --line: #353b42; --ground: #16191c;
  --box: #1f2327; --mark: #fb923c; --area: #3f66a8; --base: #2a3a55; --wait: #ef4444; --a: #2f7d6d; --b: #8f7318;
  --c: #6f55a8; --d: #55617a; } }
body { font: 14px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); max-width: 1080px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: .95rem; margin: 1.5rem 0 .4rem; } p { margin: .3rem 0; } .soft { color: var(--soft); }
.facts { display: flex; flex-wrap: wrap; gap: .6rem; margin: .8rem 0; }
.facts div { background: var(--box); border: 1px solid var(--line); border-radius: 6px; padding: .4rem .8rem; }
.facts b { display: block; font-size: 1.15rem; font-weight: 600; } .facts span { color: var(--soft); font-size: .8rem; }
table { border-collapse: collapse; font-size: .85rem; } td, th { text-align: left; padding: .15rem 1rem .15rem 0;
  border-bottom: 1px solid var(--line); vertical-align: top; } th { color: var(--soft); font-weight: 500; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } code, pre { font: .8rem ui-monospace, monospace; }
pre { background: var(--box); border: 1px solid var(--line); border-radius: 6px; padding: .6rem; overflow: auto; }
.scroll { overflow: auto; max-height: 640px; border: 1px solid var(--line); border-radius: 6px; background: var(--box); }
summary { cursor: pointer; color: var(--soft); } details { margin: .6rem 0; }
svg text { font: 11px ui-monospace, monospace; fill: var(--ink); } svg .soft { fill: var(--soft); }
svg .edge { fill: none; stroke: var(--soft); stroke-opacity: .45; } svg .far { stroke-opacity: .2; }
svg rect.box { fill: var(--ground); stroke: var(--line); } svg g:hover rect.box { stroke: var(--mark); }
svg .mark { stroke: var(--mark); fill: none; stroke-dasharray: 3 3; } svg .step { fill: transparent; }
td.bar { width: 260px; } td.bar i { display: block; height: .75rem; border-radius: 2px; background: var(--area); }
svg.lanes g:hover rect { fill-opacity: .7; } .legend i { display: inline-block; width: .8rem; height: .8rem;
  margin: 0 .35rem 0 0; vertical-align: -.1rem; } .legend span { margin-right: 1.2rem; white-space: nowrap; }
.work { fill: var(--area); background: var(--area); } .wait { fill: var(--wait); background: var(--wait); }
.all-gather { fill: var(--a); background: var(--a); } .reduce-scatter { fill: var(--b); background: var(--b); }
.all-reduce { fill: var(--c); background: var(--c); } .other { fill: var(--d); background: var(--d); }
rect.synchronous { stroke: var(--wait); } i.synchronous { border: 1px solid var(--wait); box-sizing: border-box; }
svg .step:hover { fill: var(--mark); fill-opacity: .25; } svg .area { fill: var(--area); } svg .base { fill: var(--base); }
"""


def document(title: str, body: Iterable[str]) -> str:
    """The whole page; `title` is text, `body` is HTML."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], numbers: Sequence[int] = ()) -> str:
    """A table; the columns in `numbers` are to the right."""

    def cells(tag: str, row: Sequence[Any]) -> str:
        marked = (
            f"<{tag}{' class=n' if i in numbers else ''}>{escape(str(c))}</{tag}>" for i, c in enumerate(row)
        )
        return f"<tr>{''.join(marked)}</tr>"

    return f"<table>{cells('th', head)}{''.join(cells('td', row) for row in rows)}</table>"


def facts(*pairs: tuple[str, str]) -> str:
    return f"<div class=facts>{''.join(f'<div><b>{escape(b)}</b><span>{escape(s)}</span></div>' for b, s in pairs)}</div>"


def details(title: str, text: str, opened: bool = False) -> str:
    return f"<details{' open' if opened else ''}><summary>{escape(title)}</summary>{text}</details>"


def bars(rows: Sequence[tuple[str, float, str]], total: float) -> str:
    """A bar a row, by its share of `total`: label, value, and the value as text."""
    most = max((value for _, value, _ in rows), default=0) or 1
    lines = []
    for label, value, text in rows:
        share = f"{100 * value / total:.1f}%" if total else ""
        lines.append(
            f"<tr><td class=n>{escape(text)}</td><td class=n>{share}</td><td class=bar>"
            f'<i style="width:{100 * value / most:.1f}%"></i></td><td><code>{escape(label)}</code></td></tr>'
        )
    return f"<table class=bars>{''.join(lines)}</table>"


def memory_chart(program: Mapping[str, Any]) -> str:
    """Bytes held over the steps of the schedule, the peak marked; every step says what it is."""
    memory = program["memory"]
    fused = memory["fused"]
    profile: list[int] = fused["profile"]
    if not profile:
        return "<p class=soft>nothing runs</p>"
    # Many steps share a column, which shows the highest of them.
    each = -(-len(profile) // MOST_STEPS)
    columns = [
        max(range(i, min(i + each, len(profile))), key=profile.__getitem__)
        for i in range(0, len(profile), each)
    ]
    width, height, top = 1000, 180, 16
    column = width / len(columns)
    scale = (height - top) / max(fused["bytes"], 1)

    def y(count: float) -> float:
        return height - count * scale

    base = memory["arguments"] + memory["constants"]
    line = "".join(
        f"L{i * column:.1f} {y(profile[s]):.1f}L{(i + 1) * column:.1f} {y(profile[s]):.1f}"
        for i, s in enumerate(columns)
    )
    steps = []
    for i, s in enumerate(columns):
        made = program["nodes"][fused["steps"][s]]
        title = f"step {s + 1}: {words.size(profile[s])}\n{made['op']} {made['type']}\n{words.place(made)}"
        steps.append(
            f'<g><title>{escape(title)}</title><rect class="step" x="{i * column:.1f}" y="0" '
            f'width="{column:.1f}" height="{height}"/></g>'
        )
    at = (fused["step"] // each + 0.5) * column
    anchor = "end" if at > width / 2 else "start"
    label = f"peak {words.size(fused['bytes'])}, step {fused['step'] + 1} of {len(profile)}"
    return (
        f'<svg viewBox="0 0 {width} {height + 4}" width="100%" role="img">'
        f'<path class="area" d="M0 {height}{line}L{width} {height}Z"/>'
        f'<rect class="base" x="0" y="{y(base):.1f}" width="{width}" height="{base * scale:.1f}"/>'
        f'<text class="soft" x="6" y="{height - 6}">arguments and constants {words.size(base)}</text>'
        f'<path class="mark" d="M{at:.1f} {top}V{height}"/>'
        f'<text x="{at + (-6 if anchor == "end" else 6):.1f}" y="12" text-anchor="{anchor}">{label}</text>'
        f"{''.join(steps)}</svg>"
    )


def decision_table(found: Sequence[Mapping[str, Any]]) -> str:
    """What passes said of single operations."""
    rows = [(one["op"], one["line"] or "", one["pass"], one["text"]) for one in found]
    return table(("operation", "line", "pass", "decision"), rows)
