"""GPT-2 small under `torch.compile(backend="tpu")`: prefill, then a few training steps with AdamW.

Random weights, no download. Prints eager against compiled: error, time, ratio; and what was compiled.
`python -m examples.demo [--layers N] [--steps N]`.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

import torchtpu_dynamo


def progress(text: str) -> None:
    """One line that is overwritten on a terminal and kept in a log."""
    end = "\r" if sys.stderr.isatty() else "\n"
    print(f"\x1b[2K{text}" if sys.stderr.isatty() else text, end=end, file=sys.stderr, flush=True)


def timed(fn: Callable[[], Any], repeat: int = 1) -> tuple[Any, float]:
    """Result and the best of `repeat` times in seconds."""
    best = float("inf")
    result = None
    for _ in range(repeat):
        start = time.perf_counter()
        result = fn()
        best = min(best, time.perf_counter() - start)
    return result, best


def table(rows: list[tuple[str, ...]], header: tuple[str, ...]) -> None:
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]
    for r in [header, tuple("-" * w for w in widths), *rows]:
        print("  " + "  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    dump = Path(os.environ.setdefault("TORCHTPU_DUMP", str(Path("build") / "demo")))

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=args.layers, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, use_cache=False
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    twin = copy.deepcopy(model)
    ids = torch.randint(0, config.vocab_size, (args.batch, args.tokens))
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(
        f"GPT-2 small, {size:.0f} M parameters, {args.batch} x {args.tokens} tokens, f32, {torch.get_num_threads()} threads"
    )

    rows = []
    with torch.no_grad():
        progress("prefill: eager")
        expected, eager_time = timed(lambda: model(ids).logits, 3)
        compiled = torch.compile(model, backend="tpu", fullgraph=True)
        progress("prefill: compiling")
        _, first = timed(lambda: compiled(ids).logits)
        progress("prefill: compiled")
        actual, compiled_time = timed(lambda: compiled(ids).logits, 3)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    error = (actual - expected).abs().max().item()
    rows.append(
        (
            "prefill",
            f"{error:.1e}",
            f"{eager_time:.3f} s",
            f"{compiled_time:.3f} s",
            f"{compiled_time / eager_time:.2f}",
            f"{first:.1f} s",
        )
    )

    def loss_of(net: torch.nn.Module) -> torch.Tensor:
        logits = net(ids).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    def train(
        net: torch.nn.Module, loss_fn: Callable[..., torch.Tensor], name: str
    ) -> tuple[list[float], list[float]]:
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
        losses, times = [], []
        for step in range(args.steps):
            progress(f"training, {name}: step {step + 1} of {args.steps}")
            start = time.perf_counter()
            optimizer.zero_grad()
            loss = loss_fn(net)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            times.append(time.perf_counter() - start)
        return losses, times

    eager_losses, eager_times = train(model, loss_of, "eager")
    losses, times = train(twin, torch.compile(loss_of, backend="tpu", fullgraph=True), "compiled")
    torch.testing.assert_close(losses, eager_losses, rtol=1e-4, atol=1e-4)
    error = max(abs(a - b) for a, b in zip(losses, eager_losses, strict=True))
    rows.append(
        (
            "training step",
            f"{error:.1e}",
            f"{min(eager_times):.3f} s",
            f"{min(times):.3f} s",
            f"{min(times) / min(eager_times):.2f}",
            f"{times[0]:.1f} s",
        )
    )
    progress("")
    table(rows, ("", "max error", "eager", "compiled", "ratio", "first call"))
    print(f"  losses: {', '.join(f'{x:.4f}' for x in losses)}\n")

    stats = torchtpu_dynamo.stats()
    print(f"{stats.compilations} graphs compiled, {stats.executions} executions")
    stages = "  ".join(f"{name} {seconds:.2f} s" for name, seconds in stats.stage_seconds.items())
    print(f"  compile time by stage: {stages}")
    files = sorted(dump.rglob("stablehlo.mlir"))
    for file in files[-3:]:
        ops = sum(" = " in line for line in file.read_text().splitlines())
        print(f"  {ops:5d} StableHLO ops  {file}")


if __name__ == "__main__":
    main()
