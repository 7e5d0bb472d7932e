"""What libtpu estimates for the programs of docs/passes.md, compiled from PyTorch source: `make judge` prints its tables.

    python scripts/judge.py llama gpt2 --chip v5e v6e --dtype bf16
    python scripts/judge.py llama --option xla_tpu_scoped_vmem_limit_kib=32768 --disable tile_batch

Millions of cycles of one chip, with the floors of kernels that libtpu does not price; `share` is that of the matrix unit's
limit for the dots and convolutions of the program. Nothing is executed and no weight is allocated."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts import judging

PROGRAMS = ("llama", "llama_train", "gpt2", "resnet50", "mlp", "loss_train")
DTYPES = {"bf16": "bfloat16", "f32": "float32"}
HEAD = ("program", "dtype", "chip", "Mcycles", "limit", "share", "peak, MB (prediction off)", "libtpu")


def main() -> None:
    parser = judging.parser(__doc__, PROGRAMS)
    parser.add_argument("--dtype", nargs="+", default=["bf16"], choices=DTYPES)
    parser.add_argument("--precision", default="medium", help="torch.set_float32_matmul_precision")
    parser.add_argument("--activation-memory", type=int, metavar="BYTES", help="the backend's option")
    args = parser.parse_args()
    judging.head(HEAD)
    rows = [(p, dtype, chip) for chip in args.chip for dtype in args.dtype for p in args.program]

    def judged(row: tuple[str, str, str]) -> str:
        shown = "| " + " | ".join(row)
        given = {key: getattr(args, key) for key in ("precision", "option", "disable", "activation_memory")}
        given["keep"] = str(args.keep / "-".join(row)) + ".ttpu" if args.keep else None
        found, error = judging.child(__file__, *row, given)
        if found is None:
            return f"{shown} | {error} |"
        cycles, limit, peaks, seconds = found
        shown += f" | {cycles / 1e6:.2f} | {limit / 1e6:.2f} | {limit / cycles:.0%}"
        return f"{shown} | {peaks} | {seconds:.0f} s |"

    judging.rows(rows, judged, args.jobs)


def program(name: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A module and its arguments, which hold nothing."""
    import torch

    from scripts import bench_models

    with torch.device("meta"):
        if name.startswith("llama"):
            return bench_models.LlamaLayer(4096, 32, 8, 14336), (torch.empty(1, 2048, 4096),)
        if name == "mlp":
            return bench_models.MLP(), (torch.empty(2048, 1024),)
        if name == "loss_train":
            given = torch.empty(1, 2048, 4096), torch.zeros(1, 2048, dtype=torch.int64)
            return bench_models.Loss(4096, 128256), given
        if name == "gpt2":
            return bench_models.GPT2(), (torch.zeros(4, 512, dtype=torch.int64),)
        import timm

        return timm.create_model("resnet50"), (torch.empty(32, 3, 224, 224),)


def one(name: str, dtype: str, chip: str, given: dict[str, Any]) -> tuple[float, float, str, float]:
    """Cycles, the matrix unit's limit of them, peaks of memory, and libtpu's seconds."""
    import torch

    import torchtpu_dynamo

    torch.set_float32_matmul_precision(given["precision"])
    module, inputs = program(name)
    train = name.endswith("train")
    to = getattr(torch, DTYPES[dtype])
    module = module.to(to).train(train)
    inputs = tuple(x.to(to).requires_grad_(train) if x.is_floating_point() else x for x in inputs)
    topology = chip if ":" in chip else f"{chip}:1x1"
    options = judging.options(given) | {"activation_memory": given["activation_memory"]}
    start = time.perf_counter()
    artifact = torchtpu_dynamo.aot_compile(
        module, inputs, topology=topology, train=train, options=options, output=given["keep"]
    )
    seconds = time.perf_counter() - start
    cycles = limit = 0.0
    for kind in artifact.programs:
        judged = judging.judged(artifact, kind, topology)
        cost, peak = judged["cost"], judged["chip"]
        cycles += cost["estimated"] + cost["floor"]
        limit += artifact.analysis(kind)["flops"] / peak["peak"] * peak["clock"]
    return cycles, limit, judging.peaks(artifact, topology), seconds


if __name__ == "__main__":
    judging.run(main, one)
