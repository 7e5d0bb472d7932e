"""Whether a program fits into a device's memory; if not, by how much, when, what is there, and what would help.

That it does not fit is the plugin's word. What is in memory when is our own liveness analysis, which the plugin's
message lacks. Nothing here may import torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from .. import report_text as words
from .._torchtpu import ForTpu, TorchTPUError

MOST = 10
"""How many tensors an error names."""

_TOLD = re.compile(
    r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)"
    r"|Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm"
)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def capacity(described: Mapping[str, Any]) -> int | None:
    """Bytes of HBM that a program can use on one device of a topology, as libtpu describes it."""
    told = described.get("attributes", {}).get("device_memory_bytes_limit")
    return None if told is None else int(told)


def needed(message: str) -> tuple[int, int] | None:
    """What a program needs and what there is, in bytes, where that is what the plugin says."""
    found = _TOLD.search(message)
    if found is None:
        return None
    numbers = [g for g in found.groups() if g is not None]
    need, unit, have, of = numbers
    return int(float(need) * _UNITS[unit]), int(float(have) * _UNITS[of])


def analysis(prepared: ForTpu) -> dict[str, Any]:
    """Our own estimate, of the program as libtpu gets it: attention that is tiled needs a fraction of its scores."""
    return dict(json.loads(prepared.analysis()))


def explained(
    error: TorchTPUError, kind: str, prepared: ForTpu, topology: str, described: Mapping[str, Any]
) -> TorchTPUError:
    """The plugin's error, or, where memory is short, one that says what takes it."""
    short = needed(str(error))
    if short is None:
        return error
    need, have = short
    memory = analysis(prepared)
    made = TorchTPUError(
        f"the {kind} does not fit on {topology}: it needs {words.size(need)} of HBM and a device has "
        f"{words.size(have)}, {words.size(need - have)} less\n"
        + "\n".join(lines(memory))
        + f"\nhelp: {'; '.join(advice(memory, kind, need, have))}"
    )
    made.stage, made.op, made.location = "compile", None, None
    made.help = "; ".join(advice(memory, kind, need, have))
    return made


def lines(analysis: Mapping[str, Any]) -> Iterable[str]:
    """The moment of the peak, by our own estimate, and the largest tensors in memory then."""
    peak, nodes = analysis["memory"]["fused"], analysis["nodes"]
    at = nodes[peak["steps"][peak["step"]]] if peak["steps"] else None
    when = f"step {peak['step'] + 1} of {len(peak['steps'])}, {described(at)}" if at else "the start"
    yield (
        f"  by our own estimate the peak is {words.size(peak['bytes'])}, at {when}; "
        f"of the {words.counted(peak['count'], 'tensor')} in memory then the largest are:"
    )
    for tensor in peak["tensors"][:MOST]:
        made = nodes[tensor["node"]]
        yield f"  {words.size(tensor['bytes']):>10}  {tensor['type']:<20} {tensor['role']} {described(made)}"


def described(node: Mapping[str, Any]) -> str:
    return f"`{node['name']}`" + (f" at {node['line']}" if node["line"] else "")


def advice(analysis: Mapping[str, Any], kind: str, need: int, have: int) -> list[str]:
    """What would help, by what takes the memory."""
    memory, nodes = analysis["memory"], analysis["nodes"]
    found = []
    wide = sum(t["bytes"] for t in memory["fused"]["tensors"] if t["type"].startswith(("f32[", "f64[")))
    if wide > need // 4:
        found.append("bfloat16 weights and activations take half as much")
    arguments = memory["arguments"]
    temporaries = memory["fused"]["bytes"] - arguments
    if arguments > have // 2:
        found.append(
            f"the arguments alone are {words.size(arguments)}: shard them over {-(-need // have)} devices or more"
        )
    if temporaries > have // 4 and kind != "inference":
        found.append("torch.utils.checkpoint recomputes activations instead of keeping them")
    if temporaries > have // 4:
        found.append("a smaller batch makes temporaries smaller")
    outputs = memory["fused"]["outputs"]
    if outputs > (need - have) // 2 and any(n["op"] == "parameter" for n in nodes):
        found.append(
            "results written over their inputs (in-place updates of parameters or buffers) need no memory of their own"
        )
    return found or ["a topology whose chips have more memory"]
