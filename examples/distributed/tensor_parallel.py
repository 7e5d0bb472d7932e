"""Tensor and sequence parallelism with a parallel loss: each rank has some heads, some features and some of the vocabulary,
and between them some positions of the sequence. All ranks see the whole batch.

torchrun --nproc-per-node 4 -m examples.distributed.tensor_parallel"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

from .common import Transformer, batches, check, loss_of, train


def parallelize(model: Transformer, mesh: DeviceMesh) -> None:
    plan = {
        "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Shard(-1), use_local_output=False),
    }
    block = {
        "norm1": SequenceParallel(),
        "query": ColwiseParallel(input_layouts=Shard(1)),
        "key": ColwiseParallel(input_layouts=Shard(1)),
        "value": ColwiseParallel(input_layouts=Shard(1)),
        "out": RowwiseParallel(output_layouts=Shard(1)),
        "norm2": SequenceParallel(),
        "up": ColwiseParallel(input_layouts=Shard(1)),
        "down": RowwiseParallel(output_layouts=Shard(1)),
    }
    parallelize_module(model, mesh, plan)
    for layer in model.blocks:
        parallelize_module(layer, mesh, block)


def main() -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = Transformer()
    parallelize(model, mesh)

    compiled = torch.compile(lambda tokens: loss_of(model(tokens), tokens), backend="tpu", fullgraph=True)
    with loss_parallel():
        losses = train(compiled, model.parameters(), batches())
    check(losses, model, Transformer())


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main()
    dist.destroy_process_group()
