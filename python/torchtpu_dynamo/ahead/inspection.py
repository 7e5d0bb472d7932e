"""What `torchtpu inspect` knows of an artifact: one dictionary, of which the text and the page are made.

Memory over the schedule and the largest tensors are our own model's; cycles, and memory by category, are those of the
topology's plugin and of the judge (`compiler/hlo`). Nothing here may import torch."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from .. import report_text as words
from .arrays import itemsize
from .artifact import Artifact

LARGEST = 10


def inspected(artifact: Artifact) -> dict[str, Any]:
    """All of it. Times are seconds, sizes bytes, cycles those of one device."""
    label = artifact.label
    weights = label["weights"]
    return {
        "file": os.fspath(artifact.path),
        "bytes": artifact.path.stat().st_size,
        "signed": artifact.file.signed,
        **{key: label[key] for key in ("name", "compiler", "torch", "created", "train", "stages")},
        "ranks": label.get("ranks"),
        "traced_as": label.get("traced_as"),
        "inputs": label["inputs"],
        "results": label["results"],
        "weights": {
            "count": len(weights),
            "bytes": sum(_bytes(w) for w in weights),
            "held": sum(w["held"] for w in weights),
            "changed": sorted(
                {
                    role["weight"]
                    for program in label["programs"].values()
                    for role, spec in zip(program["inputs"], program["interface"]["inputs"], strict=False)
                    if "weight" in role and spec["mutated_by"] is not None
                }
            ),
        },
        "sections": dict(artifact.file.sections()),
        "programs": {kind: _program(artifact, kind) for kind in artifact.programs},
        "builds": [_build(artifact, build) for build in label["builds"]],
    }


def _bytes(tensor: Mapping[str, Any]) -> int:
    return math.prod(tensor["shape"]) * itemsize(tensor["dtype"])


def _program(artifact: Artifact, kind: str) -> dict[str, Any]:
    analysis = artifact.analysis(kind)
    peak = analysis["memory"]["fused"]
    nodes = analysis["nodes"]
    largest = [
        {
            **{key: tensor[key] for key in ("bytes", "type", "role")},
            "name": words.name_of(nodes[tensor["node"]]),
            "line": nodes[tensor["node"]]["line"],
            "function": nodes[tensor["node"]]["function"],
        }
        for tensor in peak["tensors"][:LARGEST]
    ]
    return {
        "nodes": artifact.label["programs"][kind]["nodes"],
        "passes": _passes(artifact.label["programs"][kind]),
        "operations": sum(node["op"] != "parameter" for node in nodes),
        "flops": analysis["flops"],
        "bytes": analysis["bytes_fused"],
        "peak": {
            "bytes": peak["bytes"],
            "step": peak["step"],
            "steps": len(peak["steps"]),
            "largest": largest,
        },
        "flops_by_family": _by_family(artifact, kind, {}, _flops(nodes)),
        "analysis": analysis,
    }


def _passes(label: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What each pass of ours did, by name; nothing in older artifacts."""
    found: dict[str, dict[str, Any]] = {}
    for report in label.get("passes", ()):
        one = found.setdefault(report["name"], {"rewrites": 0, "seconds": 0.0})
        one["rewrites"] += report["rewrites"]
        one["seconds"] += report["seconds"]
    return found


def _flops(nodes: list[dict[str, Any]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in nodes:
        found[node["name"]] = found.get(node["name"], 0) + node["flops"]
    return found


def _by_family(
    artifact: Artifact, kind: str, start: dict[str, int], by_name: Mapping[str, int]
) -> dict[str, int]:
    """A figure by operator name, summed by the operators' families; the largest first."""
    families = artifact.label["programs"][kind]["families"]
    of = {name: family for family, names in families.items() for name in names}
    total = dict(start)
    for name, count in by_name.items():
        if count:
            family = of.get(name.rpartition("/")[2], "other")
            total[family] = total.get(family, 0) + count
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def _build(artifact: Artifact, build: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        key: build[key] for key in ("program", "topology", "devices", "memory", "plugin", "options", "stages")
    }
    found["hbm"] = build.get("hbm")
    found["compiled_with"] = build.get("compiled_with", build["options"]["xla_options"])
    found["form"] = build.get("form")
    found["predicted"] = build.get("predicted")
    found["passes"] = _passes(build)
    found["decisions"] = words.decisions(build.get("passes", ()))
    if "hlo" not in build:
        return found
    judged = artifact.judged(build["program"], build["topology"])
    cost, chip = judged["cost"], judged["chip"]
    found["kernels"] = judged["summary"]["kernels"]
    if cost is None:
        found["cycles"] = None  # a generation that is not in the table: bandwidth and clock are not known
        return found
    cycles = cost["estimated"] + cost["floor"]
    total = cycles + (judged["replay"] or {}).get("exposed", 0.0)
    found["cycles"] = {
        "total": total,
        "estimated": cost["estimated"],
        "floor": cost["floor"],
        "exposed": (judged["replay"] or {}).get("exposed", 0.0),
        "seconds": total / chip["clock"],
        "by_opcode": _sorted(cost["by_opcode"]),
        "by_family": _by_family(artifact, build["program"], {}, cost["by_name"]),
        "by_line": _sorted(cost["by_line"]),
        "unknown": cost["unknown"],
        "unknown_trips": cost["unknown_trips"],
        "kernels": cost["kernels"],
    }
    flops = artifact.analysis(build["program"])["flops"]
    found["share_of_peak"] = flops / (chip["peak"] * total / chip["clock"]) if total else 0.0
    found["chip"] = chip
    found["replay"] = judged["replay"]
    return found


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
