"""DistributedDataParallel, both ways: by default torch averages gradients outside of the graphs, of which there is one a
bucket; with `python_reducer`, and the backward compiled with the rest, a graph has the collectives.

torchrun --nproc-per-node 4 -m examples.distributed.data_parallel_ddp"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from .common import Transformer, batches, check, loss_of, share, train


def by_bucket(data: list[Tensor]) -> None:
    model = DistributedDataParallel(Transformer())
    compiled = torch.compile(model, backend="tpu")
    losses = train(lambda tokens: loss_of(compiled(tokens), tokens), model.parameters(), data)
    check(losses, model.module, Transformer())


@torch._dynamo.config.patch(optimize_ddp="python_reducer", compiled_autograd=True)
def in_the_graph(data: list[Tensor]) -> None:
    model = DistributedDataParallel(Transformer())

    @torch.compile(backend="tpu")
    def step(tokens: Tensor) -> Tensor:
        loss = loss_of(model(tokens), tokens)
        loss.backward()
        return loss.detach()

    losses = train(step, model.parameters(), data)
    check(losses, model.module, Transformer())


def main() -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    data = [share(batch, rank, ranks) for batch in batches()]
    by_bucket(data)
    in_the_graph(data)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main()
    dist.destroy_process_group()
