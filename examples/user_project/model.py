"""The model of this project: a gated feed-forward block with a normalization."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.gate = nn.Linear(width, 4 * width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        gated = nn.functional.silu(self.gate(h)) * self.up(h)
        return x + self.down(gated)


def block() -> tuple[nn.Module, tuple[Tensor]]:
    """What `torchtpu compile model:block` compiles: a module and the arguments of a call."""
    torch.manual_seed(0)
    return Block().to(torch.bfloat16).eval(), (torch.zeros(128, 256, dtype=torch.bfloat16),)
