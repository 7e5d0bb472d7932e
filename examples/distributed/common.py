"""What the examples share: a small transformer, its data, and the reference that each is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

STEPS = 5
VOCABULARY, WIDTH, HEADS, LENGTH, BATCH = 32, 16, 4, 8, 8


class Block(nn.Module):
    """Causal attention and an MLP, each on what a norm gives."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        # As many heads as there are features: tensor parallelism gives each rank some of them.
        q, k, v = (
            f(y).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2)
            for f in (self.query, self.key, self.value)
        )
        x = x + self.out(self.attend(q, k, v).transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)


class Transformer(nn.Module):
    """The same on every rank that makes it."""

    def __init__(self, layers: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(layers))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def loss_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """That of the next token; here each token's own successor in the vocabulary."""
    return F.cross_entropy(logits.flatten(0, 1), (tokens.flatten() + 1) % VOCABULARY)


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCABULARY, (BATCH, LENGTH), generator=generator) for _ in range(STEPS)]


def share(batch: Tensor, rank: int, ranks: int) -> Tensor:
    """One rank's part of a batch."""
    return batch.chunk(ranks)[rank]


def train(
    step: Callable[[Tensor], Tensor], parameters: Iterable[Tensor], data: Iterable[Tensor]
) -> list[float]:
    """The losses, where `step` gives the loss of one batch, whose gradients it may have made already."""
    # Adam divides each gradient by its own size, and so would magnify what rounding makes of those near zero.
    optimizer = torch.optim.SGD(parameters, lr=0.2, momentum=0.9)
    losses = []
    for batch in data:
        optimizer.zero_grad()
        loss = step(batch)
        if loss.requires_grad:
            loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def check(losses: list[float], model: nn.Module, reference: nn.Module, parts: int = 1) -> None:
    """Compares with the reference, trained by one process in eager, on `parts` of each batch at a time: the mean of all
    ranks' losses, and every parameter."""

    def step(batch: Tensor) -> Tensor:
        return torch.stack([loss_of(reference(part), part) for part in batch.chunk(parts)]).mean()

    expected = train(step, reference.parameters(), batches())
    mean = torch.tensor(losses)
    dist.all_reduce(mean)
    mean /= dist.get_world_size()
    if dist.get_rank() == 0:
        print("\n".join(f"step {i}  loss {loss:.4f}" for i, loss in enumerate(mean.tolist())), flush=True)
    torch.testing.assert_close(mean, torch.tensor(expected))
    wanted = reference.state_dict()
    for name, value in model.state_dict().items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        torch.testing.assert_close(whole, wanted[name], msg=lambda text, name=name: f"{name}: {text}")
