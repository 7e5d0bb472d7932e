"""A data-parallel training step, compiled ahead for as many devices as a pod has:

    DEVICES=8960 torchtpu compile examples.data_parallel:step -t v5p:16x20x28 -o step.ttpu
    torchtpu compile examples.data_parallel:step --ranks 8960 --sample-ranks -t v5p:16x20x28 -o step.ttpu

Every device has the whole model and a part of the batch; gradients are averaged over all devices. No device and no other
process is needed: the process group is one of torch's that only says how many ranks there are. With --ranks it is there
already, and the program is known to be the same for all ranks."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_reduce

Weights = dict[str, Tensor]


def step(
    width: int = 1024, batch: int = 64
) -> tuple[Callable[..., tuple[Tensor, Weights]], tuple[object, ...]]:
    """Loss and averaged gradients of a three-layer MLP in bfloat16, on a part of the batch."""
    devices = int(os.environ.get("DEVICES", "4"))
    if not dist.is_initialized():
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=devices)
    with torch.device("meta"):
        layers = [nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)]
        module = nn.Sequential(*layers, nn.Linear(width, 128)).to(torch.bfloat16)
        x, target = torch.empty(batch, width, dtype=torch.bfloat16), torch.empty(batch, 128)
    weights = {name: p.detach() for name, p in module.named_parameters()}

    def loss_of(weights: Weights, x: Tensor, target: Tensor) -> Tensor:
        y = torch.func.functional_call(module, weights, (x,))
        return nn.functional.mse_loss(y.float(), target)

    def training_step(weights: Weights, x: Tensor, target: Tensor) -> tuple[Tensor, Weights]:
        gradients, loss = torch.func.grad_and_value(loss_of)(weights, x, target)
        mean = {name: all_reduce(g, "avg", dist.group.WORLD) for name, g in gradients.items()}
        return all_reduce(loss, "avg", dist.group.WORLD), mean

    return training_step, (weights, x, target)
