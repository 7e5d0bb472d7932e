"""What libtpu makes of the sharded programs of docs/overlap.md, compiled from PyTorch source, as `make judge` prints it.

    python scripts/judge_sharded.py tp4_all_reduce --chip v5e
    python scripts/judge_sharded.py --disable ring ring_gradients scatter_sums   # without passes
    python scripts/judge_sharded.py mixtral_ep8 --disable exchange   # not among those of the default

Millions of cycles of one chip: what the core works, and what it waits for the links (`compiler/hlo/src/replay.rs` has the
model). Nothing is executed and no weight is allocated."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts import judging

PROGRAMS = {
    "tp4_all_reduce": 4,
    "tp4_sequence": 4,
    "fsdp4_train": 4,
    "fsdp8_train": 8,
}
# Only by name: libtpu takes minutes.
SLOW = {"mixtral_ep8": 8}
RANKS = PROGRAMS | SLOW
TOPOLOGIES = {
    "v5e": {4: "v5e:2x2", 8: "v5e:2x4"},
    "v6e": {4: "v6e:2x2", 8: "v6e:2x4"},
    "v5p": {4: "v5p:2x2x1", 8: "v5p:2x2x2"},
    "tpu7x": {4: "tpu7x:2x2x1", 8: "tpu7x:2x2x1"},
}
HEAD = ("program", "chip", "compute", "exposed", "share", "collectives", "libtpu")


def main() -> None:
    args = judging.parser(__doc__, tuple(PROGRAMS), tuple(TOPOLOGIES), tuple(SLOW)).parse_args()
    judging.head(HEAD)
    for chip in args.chip:
        for name in args.program:
            given = {"option": args.option, "disable": args.disable}
            given["keep"] = str(args.keep / f"{name}-{chip}.ttpu") if args.keep else None
            found, error = judging.child(__file__, name, chip, given)
            if found is None:
                print(f"| {name} | {chip} | {error} |", flush=True)
                continue
            replay, seconds = found
            compute, exposed = replay["compute"], replay["exposed"]
            kinds = [
                f"{n} {kind}{how}"
                for how, of in ((" waited for", "synchronous"), ("", "asynchronous"))
                for kind, n in replay[of].items()
            ]
            print(
                f"| {name} | {chip} | {compute / 1e6:.2f} | {exposed / 1e6:.2f} "
                f"| {exposed / (compute + exposed):.1%} | {', '.join(kinds)} | {seconds:.0f} s |",
                flush=True,
            )


def program(name: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A function and its arguments, which hold nothing, as rank 0 has them."""
    import torch
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from scripts.bench_models import LlamaLayer

    ranks = RANKS[name]
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    x = torch.empty(1, 2048, 4096, dtype=torch.bfloat16, device="meta")
    if name.startswith("mixtral"):
        return expert_parallel(ranks), (x,)
    if name.startswith("tp"):
        sequence = name.endswith("sequence")
        return tensor_parallel(ranks, sequence), (x[:, : 2048 // ranks] if sequence else x,)
    with torch.device("meta"):
        layer = LlamaLayer(4096, 32, 8, 14336).to(torch.bfloat16)
    shards = {n: shard_of(p, ranks) for n, p in layer.named_parameters()}
    return sharded_step(layer), (shards, x, x)


def shard_of(parameter: Any, ranks: int) -> Any:
    """A rank's rows of a matrix; norms are whole everywhere."""
    parameter = parameter.detach()
    return parameter if parameter.ndim == 1 else parameter[: parameter.shape[0] // ranks]


def sharded_step(layer: Any) -> Callable[..., Any]:
    """The layer's result and the gradients of all weights, sharded, and of the input, for a given cotangent."""
    import torch
    import torch.distributed as dist
    from torch.distributed._functional_collectives import (
        all_gather_tensor,
        all_reduce,
        reduce_scatter_tensor,
    )

    world = dist.group.WORLD

    def step(shards: dict[str, torch.Tensor], x: torch.Tensor, cotangent: torch.Tensor) -> Any:
        whole = {n: p if p.ndim == 1 else all_gather_tensor(p, 0, world) for n, p in shards.items()}
        y, pull = torch.func.vjp(lambda w, x: torch.func.functional_call(layer, w, (x,)), whole, x)
        gradients, of_x = pull(cotangent)
        summed = {
            n: all_reduce(g, "sum", world) if g.ndim == 1 else reduce_scatter_tensor(g, "sum", 0, world)
            for n, g in gradients.items()
        }
        return y, summed, of_x

    return step


def tensor_parallel(ranks: int, sequence: bool) -> Any:
    """A rank's part of the layer: some heads and some features. With `sequence`, it has some positions between them."""
    import torch
    import torch.distributed as dist
    from torch import Tensor, nn
    from torch.distributed._functional_collectives import (
        all_gather_tensor,
        all_reduce,
        reduce_scatter_tensor,
    )

    from scripts.bench_models import LlamaLayer

    world = dist.group.WORLD

    class Gathered(nn.RMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return all_gather_tensor(y, 1, world) if sequence else y

    class Summed(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return reduce_scatter_tensor(y, "sum", 1, world) if sequence else all_reduce(y, "sum", world)

    with torch.device("meta"):
        layer = LlamaLayer(4096, 32, 8, 14336)
        for name, module in layer.named_children():
            if isinstance(module, nn.RMSNorm):
                setattr(layer, name, Gathered(4096, eps=1e-5))
                continue
            columns, rows = module.in_features, module.out_features
            if name in ("o", "down"):
                setattr(layer, name, Summed(columns // ranks, rows, bias=False))
            else:
                setattr(layer, name, nn.Linear(columns, rows // ranks, bias=False))
    return layer.to(torch.bfloat16)


def expert_parallel(ranks: int) -> Any:
    """A layer of Mixtral 8x7B with an expert on each rank, which has a sequence of its own. Each rank sends an expert up to
    a quarter more of its tokens than it would on average."""
    import torch
    import torch.distributed as dist
    import torch.nn.functional as F
    from torch import Tensor, nn
    from torch.distributed._functional_collectives import all_to_all_single

    from scripts.bench_models import LlamaLayer

    class Mixtral(LlamaLayer):
        def __init__(self) -> None:
            super().__init__(4096, 32, 8, 14336)
            self.router = nn.Linear(4096, ranks, bias=False)

        def experts(self, h: Tensor) -> Tensor:
            """Of `[token, width]`, each token's two."""
            chosen, rows = 2, 2 * len(h) // ranks * 5 // 4
            best = self.router(h).float().softmax(-1).topk(chosen)
            weights = (best.values / best.values.sum(-1, keepdim=True)).to(h.dtype)
            expert = best.indices.flatten()
            wants = F.one_hot(expert, ranks)
            place = (wants.cumsum(0) * wants).sum(-1) - 1
            # What comes too late for its expert has a row of its own at the end.
            row = torch.where(place < rows, expert * rows + place, ranks * rows)
            tokens = torch.arange(len(h), device=h.device).repeat_interleave(chosen)
            taken = torch.zeros(ranks * rows + 1, dtype=torch.long, device=h.device)
            taken = taken.scatter(0, row, tokens)[:-1]
            sent = all_to_all_single(h[taken], None, None, dist.group.WORLD)
            y = self.down(F.silu(self.gate(sent)) * self.up(sent))
            y = all_to_all_single(y, None, None, dist.group.WORLD)
            weights = weights * (place < rows).view_as(weights)
            row = row.clamp(max=ranks * rows - 1).view_as(weights)
            return sum(y[row[:, i]] * weights[:, i, None] for i in range(chosen))

        def mlp(self, x: Tensor) -> Tensor:
            return self.experts(x.flatten(0, 1)).view_as(x)

    with torch.device("meta"):
        return Mixtral().to(torch.bfloat16)


def one(name: str, chip: str, given: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """The replay and libtpu's seconds."""
    import torchtpu_dynamo

    fn, inputs = program(name)
    topology = TOPOLOGIES[chip][RANKS[name]]
    start = time.perf_counter()
    artifact = torchtpu_dynamo.aot_compile(
        fn, inputs, topology=topology, options=judging.options(given), output=given["keep"], weights=False
    )
    (kind,) = artifact.programs
    return judging.judged(artifact, kind, topology)["replay"], time.perf_counter() - start


if __name__ == "__main__":
    judging.run(main, one)
