"""Fully sharded data parallelism: each rank keeps its rows of every parameter, and gathers what it computes with.

torchrun --nproc-per-node 4 -m examples.distributed.fully_sharded"""

from __future__ import annotations

import torch
import torch.distributed as dist

from torchtpu_dynamo.distributed import fully_shard

from .common import Transformer, batches, check, loss_of, share, train


def main() -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    model = fully_shard(Transformer())
    compiled = torch.compile(lambda tokens: loss_of(model(tokens), tokens), backend="tpu", fullgraph=True)
    losses = train(compiled, model.parameters(), [share(batch, rank, ranks) for batch in batches()])
    check(losses, model, Transformer())


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main()
    dist.destroy_process_group()
