"""Expert parallelism for a layer like Mixtral's: each rank has some of the experts, and tokens travel to the ranks of
theirs and back. An expert takes the same number of tokens from every rank, so that all sizes are fixed.

torchrun --nproc-per-node 4 -m examples.distributed.expert_parallel"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn import functional as F

from torchtpu_dynamo.distributed import fully_shard

from .common import VOCABULARY, WIDTH, batches, check, loss_of, share, train

EXPERTS, CHOSEN, CAPACITY = 8, 2, 8


class Experts(nn.Module):
    """SwiGLU with weights `[expert, in, out]`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(0.3 * torch.randn(EXPERTS, WIDTH, 2 * WIDTH))
        self.up = nn.Parameter(0.3 * torch.randn(EXPERTS, WIDTH, 2 * WIDTH))
        self.down = nn.Parameter(0.3 * torch.randn(EXPERTS, 2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        gate, up, down = (p.to_local() if isinstance(p, DTensor) else p for p in self.parameters())
        return (F.silu(x @ gate) * (x @ up)) @ down


class Mixture(nn.Module):
    """A mixture of experts between an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = Experts()
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.ranks = 1

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens.flatten())
        best = self.router(x).topk(CHOSEN)
        weights = x.new_zeros(len(x), EXPERTS).scatter(1, best.indices, best.values.softmax(-1))
        taken = weights.t().topk(CAPACITY)  # by expert: the tokens that want it most
        y = self.back(self.experts(self.there(x[taken.indices])))
        x = x.index_add(0, taken.indices.flatten(), (y * taken.values.unsqueeze(-1)).flatten(0, 1))
        return self.head(x).unflatten(0, tokens.shape)

    def there(self, x: Tensor) -> Tensor:
        """From `[expert, token]` of this rank's tokens to that of this rank's experts."""
        if self.ranks == 1:
            return x
        x = all_to_all_single_autograd(x, None, None, dist.group.WORLD)
        return x.unflatten(0, (self.ranks, -1)).transpose(0, 1).flatten(1, 2)

    def back(self, x: Tensor) -> Tensor:
        if self.ranks == 1:
            return x
        x = x.unflatten(1, (self.ranks, -1)).transpose(0, 1).flatten(0, 1)
        return all_to_all_single_autograd(x.contiguous(), None, None, dist.group.WORLD)


def distribute(model: Mixture) -> None:
    """The experts over all ranks, and the rest fully sharded."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for name, parameter in list(model.experts.named_parameters()):
        experts = nn.Parameter(distribute_tensor(parameter, mesh, [Shard(0)]))
        # It has all ranks' tokens, and what counts is the mean of their losses.
        experts.register_hook(lambda gradient: gradient / mesh.size())
        setattr(model.experts, name, experts)
    for module in (model.embedding, model.router, model.head):
        fully_shard(module, mesh)
    model.ranks = mesh.size()


def main() -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    model = Mixture()
    distribute(model)
    compiled = torch.compile(lambda tokens: loss_of(model(tokens), tokens), backend="tpu", fullgraph=True)
    losses = train(compiled, model.parameters(), [share(batch, rank, ranks) for batch in batches()])
    check(losses, model, Mixture(), parts=ranks)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main()
    dist.destroy_process_group()
