"""What our passes take of our compiler, from the payload to StableHLO bytecode for a TPU: the table of docs/passes.md.

    make && python scripts/pass_times.py    # `make` builds for release

Nothing is executed and no weight allocated; of each program the quickest of several runs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts import judging
from scripts.scaling import Compiled

PROGRAMS = {
    "llama32": "Llama, 32 layers",
    "gpt2": "GPT-2 small",
    "gpt2_train": "GPT-2 small for training",
    "resnet50": "ResNet-50",
    "resnet50_train": "ResNet-50 for training",
}
HEAD = ("program", "FX nodes", "all, ms", "passes", "for TPUs", "share", "the longest")
ROUNDS = 8


def program(name: str) -> tuple[Any, tuple[Any, ...]]:
    """A module and its arguments, which hold nothing."""
    import torch
    from torch import nn

    from scripts import bench_models, judge

    if name != "llama32":
        module, inputs = judge.program(name.removesuffix("_train"))
        return module.to(torch.bfloat16), tuple(
            x.to(torch.bfloat16) if x.is_floating_point() else x for x in inputs
        )
    with torch.device("meta"):
        layers = (bench_models.LlamaLayer(4096, 32, 8, 14336) for _ in range(32))
        return nn.Sequential(*layers).to(torch.bfloat16), (torch.empty(1, 2048, 4096, dtype=torch.bfloat16),)


def one(name: str, topology: str) -> list[str]:
    """The rows of a program."""
    from torchtpu_dynamo.ahead.capture import captured
    from torchtpu_dynamo.options import parse_options

    module, inputs = program(name)
    train = name.endswith("train")
    options = parse_options(None)
    capture = captured(module.train(train), inputs, {}, train, options)
    rows = []
    for kind, graph in capture.graphs.items():
        text = graph.graph.source_payload({})[0]
        best = min((Compiled.of(text, topology) for _ in range(ROUNDS)), key=lambda c: c.ours)
        general, special = best.program.pass_reports(), best.prepared.pass_reports()
        of = [sum(report["seconds"] for report in reports) for reports in (general, special)]
        longest: dict[str, float] = {}
        for report in (*general, *special):
            longest[report["name"]] = longest.get(report["name"], 0.0) + report["seconds"]
        three = sorted(longest.items(), key=lambda item: -item[1])[:3]
        shown = PROGRAMS[name] + (f", {kind}" if train else "")
        cells = [shown, f"{len(json.loads(text)['nodes']):,}", f"{best.ours * 1e3:.1f}"]
        cells += [f"{s * 1e3:.1f}" for s in of] + [f"{sum(of) / best.ours:.0%}"]
        cells += [", ".join(f"`{name}` {s * 1e3:.1f}" for name, s in three)]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("program", nargs="*", default=list(PROGRAMS), choices=[*PROGRAMS, list(PROGRAMS)])
    parser.add_argument("--topology", default="v5e:1x1")
    args = parser.parse_args()
    judging.head(HEAD)
    for name in args.program:
        rows, error = judging.child(__file__, name, args.topology)
        print("\n".join(rows) if rows else f"| {name} | {error} |", flush=True)


if __name__ == "__main__":
    judging.run(main, one)
