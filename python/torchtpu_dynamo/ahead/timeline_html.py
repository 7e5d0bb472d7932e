"""What a device's core and its links do over time, as pictures of two lanes. All text passes `escape`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from .. import report_text as words
from ..html_parts import table

LEFT, WIDTH = 100, 1000
CORE, FIRST, SECOND, BOTTOM = 22, 62, 80, 98
"""Where rows begin: the core, one direction of the links and the other, the axis."""
TICKS = 8
MOST = 10


def chart(replay: Mapping[str, Any], clock: float, length: float | None = None) -> str:
    """The core above the two directions of the links, time to the right; what the core waits for is marked in both.
    `length`, in cycles, is the end of the axis, where pictures are compared."""
    timeline = replay["timeline"]
    length = length or timeline["length"]
    if not length:
        return "<p class=soft>nothing runs</p>"
    scale = (WIDTH - LEFT) / length
    parts = [*_loops(timeline, scale), *_core(timeline, scale, clock), *_links(timeline, scale, clock)]
    for y, label in ((CORE + 20, "core"), (FIRST + 13, "links, one way"), (SECOND + 13, "the other")):
        parts.append(f'<text class="soft" x="0" y="{y}">{label}</text>')
    return (
        f'<svg class="lanes" viewBox="0 0 {WIDTH} {BOTTOM + 18}" width="100%" role="img">'
        f"{''.join(parts)}{''.join(_axis(length / clock, scale * clock))}</svg>"
    )


def legend(*replays: Mapping[str, Any]) -> str:
    """What the colours of these pictures mean."""
    flights = [flight for replay in replays for flight in replay["timeline"]["links"]]
    keys = [("work", "the core works"), ("wait", "it waits for a transfer; below a transfer, how long")]
    keys += [(kind, kind) for kind in sorted({flight["kind"] for flight in flights})]
    if any(flight["synchronous"] for flight in flights):
        keys.append(("synchronous", "the core does nothing beside it"))
    spans = (f'<span><i class="{_style(key)}"></i>{escape(text)}</span>' for key, text in keys)
    return f"<p class='legend soft'>{''.join(spans)}</p>"


def worst(replay: Mapping[str, Any], clock: float) -> str:
    """The lines for whose collectives the core waits longest."""
    rows = [
        (
            _time(one["exposed"], clock),
            f"{100 * one['exposed'] / replay['exposed']:.0f}%",
            _time(one["transfers"], clock),
            one["runs"],
            one["kind"],
            words.short_line(one["line"]) if one["line"] else "no line",
        )
        for one in replay["collectives"][:MOST]
        if one["exposed"]
    ]
    if not rows:
        return "<p class=soft>no transfer is waited for</p>"
    return table(("exposed", "of all", "transfers", "runs", "kind", "line"), rows, (0, 1, 2, 3))


def _time(cycles: float, clock: float) -> str:
    return f"{words.number(cycles)}cycles, {1e6 * cycles / clock:.3g} us"


def _style(kind: str) -> str:
    """A class of the page's style."""
    known = ("work", "wait", "synchronous", "all-gather", "all-reduce", "reduce-scatter")
    return kind if kind in known else "other"


def _rect(x: float, y: float, width: float, height: float, style: str) -> str:
    return (
        f'<rect class="{style}" x="{LEFT + x:.2f}" y="{y:.1f}" width="{max(width, 0.2):.2f}" '
        f'height="{height:.1f}"/>'
    )


def _line(found: Mapping[str, Any]) -> str:
    return f"\nat {words.short_line(found['line'])}" if found["line"] else ""


def _times(runs: int) -> str:
    return f", x {runs}" if runs > 1 else ""


def _core(timeline: Mapping[str, Any], scale: float, clock: float) -> Iterator[str]:
    for span in timeline["core"]:
        others = span["instructions"] - 1
        first = f"{span['opcode']} {span['name']}" + (
            f" and {words.counted(others, 'other')}" if others else ""
        )
        title = f"{first}{_line(span)}\n{_time(span['length'], clock)}{_times(span['runs'])}"
        if span["exposed"]:
            title += f"\nof it waiting {_time(span['exposed'], clock)}"
        # Neighbours that share a span are narrower than a few pixels, so that the order of work and waits is lost there.
        works = span["length"] - span["exposed"]
        yield f"<g><title>{escape(title)}</title>"
        if works > 0:
            yield _rect(span["start"] * scale, CORE, works * scale, 32, "work")
        if span["exposed"]:
            yield _rect((span["start"] + works) * scale, CORE, span["exposed"] * scale, 32, "wait")
        yield "</g>"


def _links(timeline: Mapping[str, Any], scale: float, clock: float) -> Iterator[str]:
    for flight in timeline["links"]:
        length = flight["done"] - flight["start"]
        y = SECOND if flight["lane"] == 1 else FIRST
        height = 16 if flight["lane"] is not None else SECOND + 16 - FIRST
        others = flight["transfers"] - 1
        title = flight["kind"] + (
            f" and {words.counted(others, 'other')}" if others else f" {flight['name']}"
        )
        title += f"{_line(flight)}\n{_time(length, clock)}{_times(flight['runs'])}"
        title += f"\nexposed {_time(flight['exposed'], clock)}" if flight["exposed"] else "\nhidden"
        style = _style(flight["kind"]) + (" synchronous" if flight["synchronous"] else "")
        yield f"<g><title>{escape(title)}</title>"
        yield _rect(flight["start"] * scale, y, length * scale, height, style)
        if waits := min(flight["exposed"], length):
            yield _rect((flight["done"] - waits) * scale, y + height - 4, waits * scale, 4, "wait")
        yield "</g>"


def _loops(timeline: Mapping[str, Any], scale: float) -> Iterator[str]:
    """A bracket over one trip."""
    for loop in timeline["loops"]:
        x, width = LEFT + loop["start"] * scale, loop["length"] * scale
        if loop["trips"] < 2 or width < 1:
            continue
        title = f"{loop['name']}: one trip of {loop['trips']}"
        yield (
            f'<g><title>{escape(title)}</title><path class="edge" d="M{x:.1f} {CORE}v-6h{width:.1f}v6"/>'
            f'<text x="{x + width / 2:.1f}" y="{CORE - 9}" text-anchor="middle">x {loop["trips"]}</text></g>'
        )


def _axis(seconds: float, scale: float) -> Iterator[str]:
    """Round times; `scale` is pixels a second."""
    power = 10.0 ** math.floor(math.log10(seconds / TICKS))
    step = next(power * n for n in (1, 2, 5, 10) if seconds <= power * n * TICKS)
    yield f'<path class="edge" d="M{LEFT} {BOTTOM + 2}H{WIDTH}"/>'
    for i in range(int(seconds / step) + 1):
        x = LEFT + i * step * scale
        text = f"{1e6 * i * step:.4g}" + (" us" if i == 0 else "")
        yield f'<path class="edge" d="M{x:.1f} {BOTTOM + 2}v4"/>'
        if x < WIDTH - 30:
            yield f'<text class="soft" x="{x:.1f}" y="{BOTTOM + 17}">{text}</text>'
