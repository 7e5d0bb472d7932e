"""Tensor parallelism within pairs of ranks, fully sharded data parallelism between them.

torchrun --nproc-per-node 4 -m examples.distributed.two_dimensional"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import loss_parallel

from torchtpu_dynamo.distributed import fully_shard

from .common import Transformer, batches, check, loss_of, share, train
from .tensor_parallel import parallelize


def main() -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("data", "tensor"))
    model = Transformer()
    parallelize(model, mesh["tensor"])
    fully_shard(model, mesh["data"])
    data = [share(batch, mesh.get_local_rank("data"), mesh["data"].size()) for batch in batches()]
    compiled = torch.compile(lambda tokens: loss_of(model(tokens), tokens), backend="tpu", fullgraph=True)
    with loss_parallel():
        losses = train(compiled, model.parameters(), data)
    check(losses, model, Transformer())


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main()
    dist.destroy_process_group()
