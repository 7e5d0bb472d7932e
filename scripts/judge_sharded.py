"""What libtpu makes of the sharded programs of docs/overlap.md, compiled from PyTorch source, as `make judge` prints it.

    python scripts/judge_sharded.py tp4_all_reduce --chip v5e
    python scripts/judge_sharded.py --disable ring ring_gradients scatter_sums early_sums merge_gathers tiles_in_turn
    python scripts/judge_sharded.py mixtral_ep8 --disable exchange   # not among those of the default

Millions of cycles of one chip: what the core works, and what it waits for the links (`compiler/hlo/src/replay.rs` has the
model). Nothing is executed and no weight is allocated."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts import judging

PROGRAMS = {"tp4_all_reduce": 4, "tp4_sequence": 4, "fsdp4_train": 4, "fsdp8_train": 8}
# By name alone.
MORE = {
    "ddp4_train": 4,
    "fsdp4_layers4_train": 4,
    "fsdp16_train": 16,
    "fsdp4_mlp_train": 4,
    "fsdp4_tp4_train": 16,
    "mixtral_ep8": 8,
}
TOPOLOGIES = {
    "v5e": {4: "v5e:2x2", 8: "v5e:2x4", 16: "v5e:4x4"},
    "v6e": {4: "v6e:2x2", 8: "v6e:2x4", 16: "v6e:4x4"},
    "v5p": {4: "v5p:2x2x1", 8: "v5p:2x2x2", 16: "v5p:2x2x4"},
    "tpu7x": {4: "tpu7x:2x2x1", 8: "tpu7x:2x2x1", 16: "tpu7x:2x2x2"},
}
HEAD = (
    "program",
    "chip",
    "compute",
    "exposed",
    "share",
    "collectives",
    "peak, MB (prediction off)",
    "libtpu",
)


def main() -> None:
    args = judging.parser(__doc__, tuple(PROGRAMS), tuple(TOPOLOGIES), tuple(MORE)).parse_args()
    judging.head(HEAD)
    rows = [(name, chip) for chip in args.chip for name in args.program]

    def judged(row: tuple[str, str]) -> str:
        shown = "| " + " | ".join(row)
        given = {"option": args.option, "disable": args.disable}
        given["keep"] = str(args.keep / "-".join(row)) + ".ttpu" if args.keep else None
        found, error = judging.child(__file__, *row, given)
        if found is None:
            return f"{shown} | {error} |"
        replay, peaks, seconds = found
        compute, exposed = replay["compute"], replay["exposed"]
        kinds = [
            f"{n} {kind}{how}"
            for how, of in ((" waited for", "synchronous"), ("", "asynchronous"))
            for kind, n in replay[of].items()
        ]
        return (
            f"{shown} | {compute / 1e6:.2f} | {exposed / 1e6:.2f} "
            f"| {exposed / (compute + exposed):.1%} | {', '.join(kinds)} | {peaks} | {seconds:.0f} s |"
        )

    judging.rows(rows, judged, args.jobs)


def program(name: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A function and its arguments, which hold nothing, as rank 0 has them."""
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from scripts import scaling
    from scripts.bench_models import MLP, LlamaLayer

    ranks = ranks_of(name)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    if name == "fsdp4_tp4_train":
        return scaling.built(scaling.Program("8b", "layer", data=4, tensor=4, batch=1))
    x = torch.empty(1, 2048, 4096, dtype=torch.bfloat16, device="meta")
    if name.startswith("mixtral"):
        return expert_parallel(ranks), (x,)
    if name.startswith("tp"):
        sequence = name.endswith("sequence")
        return tensor_parallel(ranks, sequence), (x[:, : 2048 // ranks] if sequence else x,)
    mlp = "mlp" in name
    with torch.device("meta"):
        layers = 4 if "layers4" in name else 1
        module = MLP() if mlp else nn.Sequential(*(LlamaLayer(4096, 32, 8, 14336) for _ in range(layers)))
        if mlp:
            x = torch.empty(2048, 1024)
    x, module = x.to(torch.bfloat16), module.to(torch.bfloat16)
    # Of Llama the norms are whole everywhere, and with copies of the layer all weights.
    copies = name.startswith("ddp")
    whole = {n: p.detach() for n, p in module.named_parameters() if copies or (p.ndim == 1 and not mlp)}
    rows = {n: p.detach() for n, p in module.named_parameters() if n not in whole}
    shards = {n: p[: p.shape[0] // ranks] for n, p in rows.items()}
    return sharded_step(module), (shards, whole, x, x)


def ranks_of(name: str) -> int:
    return (PROGRAMS | MORE)[name]


def sharded_step(module: Any) -> Callable[..., Any]:
    """The module's result and the gradients of all weights, sharded, and of the input, for a given cotangent."""
    import torch
    import torch.distributed as dist
    from torch import Tensor
    from torch.distributed._functional_collectives import (
        all_gather_tensor,
        all_reduce,
        reduce_scatter_tensor,
    )

    world = dist.group.WORLD

    def step(shards: dict[str, Tensor], whole: dict[str, Tensor], x: Tensor, cotangent: Tensor) -> Any:
        weights = {n: all_gather_tensor(p, 0, world) for n, p in shards.items()} | whole
        y, pull = torch.func.vjp(lambda w, x: torch.func.functional_call(module, w, (x,)), weights, x)
        gradients, of_x = pull(cotangent)
        summed = {
            n: all_reduce(g, "sum", world) if n in whole else reduce_scatter_tensor(g, "sum", 0, world)
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


def one(name: str, chip: str, given: dict[str, Any]) -> tuple[dict[str, Any], str, float]:
    """The replay of what is compiled, a program or a forward and its backward, peaks of memory, and libtpu's seconds."""
    import torchtpu_dynamo

    fn, inputs = program(name)
    topology = TOPOLOGIES[chip][ranks_of(name)]
    start = time.perf_counter()
    artifact = torchtpu_dynamo.aot_compile(
        fn,
        inputs,
        topology=topology,
        train=name == "fsdp4_tp4_train",
        options=judging.options(given),
        output=given["keep"],
        weights=False,
    )
    seconds = time.perf_counter() - start
    replays = [judging.judged(artifact, kind, topology)["replay"] for kind in artifact.programs]
    found = {key: sum(replay[key] for replay in replays) for key in ("compute", "exposed")}
    for key in ("synchronous", "asynchronous"):
        found[key] = sum((Counter(replay[key]) for replay in replays), Counter())
    return found, judging.peaks(artifact, topology), seconds


if __name__ == "__main__":
    judging.run(main, one)
