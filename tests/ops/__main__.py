"""Writes the FX payloads of the cases: `python -m tests.ops [family ...]`.

The Rust tests read them; they change only when a case or the export changes, and are reviewed like source.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch.utils import _pytree as pytree

import torchtpu_dynamo
from tests.ops import Case, families

HERE = Path(__file__).parent


def payloads(case: Case) -> dict[str, dict]:
    """Program name to payload. Stacks keep the case's name in place of this machine's paths."""
    torch._dynamo.reset()
    inputs = case.make_inputs()
    if case.train:
        for x in pytree.tree_leaves(inputs):
            if isinstance(x, torch.Tensor) and (x.is_floating_point() or x.is_complex()):
                x.requires_grad_()
    train = any(isinstance(x, torch.Tensor) and x.requires_grad for x in pytree.tree_leaves(inputs))
    try:
        lowered = torchtpu_dynamo.lower(case.fn, *inputs, train=train)
    except torchtpu_dynamo.TorchTPUError as e:
        # A view of an input has no backward graph: AOTAutograd makes such outputs anew outside.
        if "nothing to differentiate" not in str(e):
            raise
        torch._dynamo.reset()
        lowered = torchtpu_dynamo.lower(case.fn, *case.make_inputs())
    found = {}
    for name, program in lowered.programs.items():
        payload = json.loads(program.payload)
        payload["stacks"] = [[[f"{case.name}.py", 1, "fn"]] for _ in payload["stacks"]]
        payload["name"] = case.name
        payload["torch"] = "0"
        found[name] = payload
    return found


def main(chosen: list[str]) -> None:
    for family, cases in families().items():
        if chosen and family not in chosen:
            continue
        folder = HERE / family
        folder.mkdir(exist_ok=True)
        for old in folder.glob("*.json"):
            old.unlink()
        for case in cases:
            if not case.fixture:
                continue
            programs = payloads(case)
            for name, payload in programs.items():
                stem = case.name if name != "backward" else f"{case.name}_backward"
                text = json.dumps(payload, indent=1)
                (folder / f"{stem}.json").write_text(text + "\n")
        print(f"{family}: {len(list(folder.glob('*.json')))} payloads")


if __name__ == "__main__":
    main(sys.argv[1:])
