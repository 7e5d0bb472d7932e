"""Cases that several processes run together, and what became of each: `test_torchrun.py` starts them.

    torchrun --nproc-per-node 4 -m tests.ranks FOLDER CASE...

A rank writes FOLDER/CASE.RANK: what a failure that the case asks for said, else nothing. Any other error is written too,
and ends the process: the other ranks are somewhere else then."""

from __future__ import annotations

import copy
import datetime
import faulthandler
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint
import torch.distributed.fsdp
from examples.distributed import common
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_reduce, all_to_all_single
from torch.distributed.tensor import DTensor

import torchtpu_dynamo
from torchtpu_dynamo import TorchTPUError
from torchtpu_dynamo.distributed import fully_shard

from . import tpu_ranks

SECONDS = 5


def compiled(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return torch.compile(fn, backend="torchtpu_dynamo", fullgraph=True, options=options)


class Tied(nn.Module):
    """Sizes that four ranks do not divide, one parameter under two names, and a read of another module's parameter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.hidden = nn.Embedding(7, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.hidden(self.embedding(tokens)) @ self.hidden.weight
        return self.head(x.relu()).square().mean()


def tokens() -> tuple[Tensor, Tensor]:
    """All, and this rank's."""
    whole = torch.arange(24).reshape(8, 3) % 7
    return whole, common.share(whole, dist.get_rank(), dist.get_world_size())


def whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def fully_sharded_graph() -> None:
    """One graph a direction, and eager's gradients."""
    every, mine = tokens()
    model, reference = fully_shard(Tied()), Tied()
    assert "Linear(in_features=6" in repr(model)
    assert model.hidden.weight.to_local().shape[0] <= 2 and model.head.weight is model.embedding.weight
    reference(every).backward()
    for step in (model, compiled(model)):
        model.zero_grad()
        step(mine).backward()
        for (name, parameter), expected in zip(model.named_parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad.full_tensor(), expected.grad, msg=name)
    assert torchtpu_dynamo.stats().fallbacks == {}, "a collective is no fallback"
    with torch.no_grad():
        torch.testing.assert_close(compiled(model)(mine), model(mine))


def fully_sharded_backward() -> None:
    """Gathers again what it needs, unless whole parameters are to be kept: here the second layer's weight."""
    counts = []
    for reshard in (False, True):
        torchtpu_dynamo.reset_stats()
        layers = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
        model = fully_shard(layers, reshard_after_forward=reshard)
        compiled(model)(torch.ones(2, 6)).sum().backward()
        counts.append(torchtpu_dynamo.stats().collectives)
    assert counts == [8, 9]


def fully_sharded_in_bfloat16() -> None:
    _, mine = tokens()
    model = fully_shard(Tied(), param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    eager, traced = copy.deepcopy(model), model
    eager(mine).backward()
    compiled(traced)(mine).backward()
    for p, q in zip(eager.parameters(), traced.parameters(), strict=True):
        assert p.grad.dtype == torch.float32
        torch.testing.assert_close(p.grad.to_local(), q.grad.to_local(), rtol=1.6e-2, atol=1e-2)


def fully_sharded_checkpoint() -> None:
    """What is saved is whole, whoever reads it: another rank count, or nobody's shards."""
    folder = Path(sys.argv[1]) / "checkpoint"
    model, plain = fully_shard(Tied()), Tied()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    dist.checkpoint.save(model.state_dict(), checkpoint_id=folder)
    wanted = {name: whole(value) for name, value in model.state_dict().items()}
    fresh = fully_shard(Tied())
    for reader in (fresh, plain):
        state = reader.state_dict()
        dist.checkpoint.load(state, checkpoint_id=folder)
        reader.load_state_dict(state)
        for name, value in reader.state_dict().items():
            torch.testing.assert_close(whole(value), wanted[name])


def torch_fully_shard() -> None:
    """FSDP2's own, whose collectives are outside of the graphs."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    model = common.Transformer()
    for block in model.blocks:
        torch.distributed.fsdp.fully_shard(block)
    torch.distributed.fsdp.fully_shard(model)
    step = torch.compile(model, backend="torchtpu_dynamo")
    data = [common.share(batch, rank, ranks) for batch in common.batches()]
    losses = common.train(lambda t: common.loss_of(step(t), t), model.parameters(), data)
    common.check(losses, model, common.Transformer())


def every_collective() -> None:
    """Each operator, over all ranks and over some; beside a write to an input and a size that changes."""
    ops, rank = torch.ops._c10d_functional, dist.get_rank()
    world = dist.group.WORLD.group_name
    halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    half = halves[rank // 2].group_name
    sent, received = [rank, 1, 2, 3], [rank] * 4 if rank else [0, 1, 2, 3]

    def fn(x: Tensor, state: Tensor) -> list[Tensor]:
        gathered = ops.wait_tensor(ops.all_gather_into_tensor(x.sin(), 4, world))
        scattered = ops.wait_tensor(ops.reduce_scatter_tensor(gathered * 2, "sum", 2, half))
        pair = [ops.wait_tensor(t) for t in ops.all_reduce_coalesced([x, scattered.cos()], "max", half)]
        state.add_(ops.wait_tensor(ops.all_reduce(state * x.sum(), "sum", world)))
        sent_first = ops.wait_tensor(ops.broadcast(x + 1, 0, world))
        rows = gathered[: sum(sent)]
        exchanged = ops.wait_tensor(ops.all_to_all_single(rows, received, sent, world))
        return [
            scattered,
            *pair,
            sent_first * 2,
            exchanged + 1,
            ops.wait_tensor(ops.all_reduce(x, "sum", half)),
        ]

    step = compiled(fn)
    for rows in (4, 4, 6):
        torch.manual_seed(rank)
        x, state = torch.randn(rows, 3), torch.randn(2)
        eager_state = state.clone()
        torch.testing.assert_close(step(x, state), fn(x, eager_state))
        torch.testing.assert_close(state, eager_state)
    assert torchtpu_dynamo.stats().collectives == 3 * 7


def nested_collective() -> str:
    """Processes cannot meet inside of a compiled graph."""
    group = dist.group.WORLD

    @torch.compiler.nested_compile_region
    def layer(x: Tensor) -> Tensor:
        return all_reduce(x.sin(), "sum", group)

    return first_error(lambda: compiled(lambda x: layer(layer(x)))(torch.ones(4)))


def first_error(*calls: Callable[[], Any]) -> str:
    for call in calls:
        try:
            call()
        except TorchTPUError as e:
            return str(e)
    return ""


def reduction() -> Callable[[Tensor], Tensor]:
    """A sum over the ranks of a group of its own, compiled before with a longer wait: ranks may compile for some time."""
    group = dist.new_group()
    fn = lambda x: all_reduce(x * 2, "sum", group) + 1
    compiled(fn)(torch.ones(4))
    torch.compiler.reset()
    return compiled(fn, collective_timeout=SECONDS)


def differing_rank() -> str:
    step = reduction()
    x = torch.ones(6 if dist.get_rank() == 2 else 4)
    return first_error(lambda: step(x))


def differing_splits() -> str:
    """Gloo would end the process."""
    group, rank = dist.new_group(), dist.get_rank()
    sent = [1, 2, 3, 4] if rank != 2 else [1, 2, 3, 5]
    fn = lambda x: all_to_all_single(x * 2, [rank + 1] * 4, sent, group) + 1
    return first_error(lambda: compiled(fn, collective_timeout=SECONDS)(torch.ones(sum(sent), 3)))


def missing_rank() -> str:
    step = reduction()
    return "" if dist.get_rank() == 3 else first_error(lambda: step(torch.ones(4)))


def killed_rank() -> str:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, to those that are left
    step = reduction()
    die = lambda: os._exit(1) if dist.get_rank() == 2 else None
    return first_error(lambda: step(torch.ones(4)), die, lambda: step(torch.ones(4)))


CASES: dict[str, Callable[[], str | None]] = {
    f.__name__: f
    for f in (
        fully_sharded_graph,
        fully_sharded_backward,
        fully_sharded_in_bfloat16,
        fully_sharded_checkpoint,
        torch_fully_shard,
        every_collective,
        nested_collective,
        differing_rank,
        differing_splits,
        missing_rank,
        killed_rank,
    )
}


def main(folder: Path, names: list[str]) -> None:
    faulthandler.dump_traceback_later(500, exit=True)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=120))
    for name in names:
        out = folder / f"{name}.{dist.get_rank()}"
        torch.compiler.reset()
        torchtpu_dynamo.reset_stats()
        try:
            case = CASES.get(name) or tpu_ranks.CASES.get(name)
            case = case or importlib.import_module(f"examples.distributed.{name}").main
            out.write_text(case() or "")
        except Exception:
            out.write_text(traceback.format_exc())
            os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
