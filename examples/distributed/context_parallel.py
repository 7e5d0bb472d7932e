"""Context parallelism: each rank has some positions of every sequence, and gathers the keys and values of all of them.

torch's own `context_parallel` knows the attention of CUDA alone.

torchrun --nproc-per-node 4 -m examples.distributed.context_parallel"""

from __future__ import annotations

import functools

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.nn import functional as F

from torchtpu_dynamo.distributed import fully_shard

from .common import Transformer, batches, check, loss_of, train


def attend(mesh: DeviceMesh, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of `[batch, head, position, feature]`, of this rank's positions to all."""

    def gathered(x: Tensor) -> Tensor:
        whole = DTensor.from_local(x, mesh, [Shard(2)]).redistribute(placements=[Replicate()])
        return whole.to_local(grad_placements=[Partial()])

    own = query.shape[2]
    positions = torch.arange(own * mesh.size())
    mask = positions <= positions.chunk(mesh.size())[mesh.get_local_rank()].unsqueeze(1)
    return F.scaled_dot_product_attention(query, gathered(key), gathered(value), attn_mask=mask)


def main() -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = fully_shard(Transformer(), mesh)
    for block in model.blocks:
        block.attend = functools.partial(attend, mesh)
    compiled = torch.compile(lambda tokens: loss_of(model(tokens), tokens), backend="tpu", fullgraph=True)
    data = [batch.chunk(mesh.size(), dim=1)[mesh.get_local_rank()] for batch in batches()]
    losses = train(compiled, model.parameters(), data)
    check(losses, model, Transformer())


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main()
    dist.destroy_process_group()
