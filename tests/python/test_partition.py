"""What a forward saves for its backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._functorch.aot_autograd import aot_function, make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition

from torchtpu_dynamo import custom_ops
from torchtpu_dynamo.partition import partition

HEADS, KEY_HEADS, ROWS, FEATURES = 8, 2, 16, 4


def grouped(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention whose key heads are repeated as Transformers does it."""

    def repeated(x: Tensor) -> Tensor:
        times = HEADS // KEY_HEADS
        return x[:, :, None].expand(1, KEY_HEADS, times, ROWS, FEATURES).reshape(1, HEADS, ROWS, FEATURES)

    return F.scaled_dot_product_attention(query, repeated(key.sin()), repeated(value.sin()), is_causal=True)


def arguments() -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    return tuple(torch.randn(1, n, ROWS, FEATURES, requires_grad=True) for n in (HEADS, KEY_HEADS, KEY_HEADS))


def read_by_backward(partition_fn: object) -> int:
    """Elements of the backward's inputs."""
    seen: list[int] = []

    def note(gm: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        seen.append(sum(n.meta["val"].numel() for n in gm.graph.nodes if n.op == "placeholder"))
        return make_boxed_func(gm)

    compiled = aot_function(
        grouped,
        fw_compiler=lambda gm, _: make_boxed_func(gm),
        bw_compiler=note,
        partition_fn=partition_fn,
        decompositions=custom_ops.table(),
    )
    compiled(*arguments()).sum().backward()
    return seen[0]


def test_copies_of_a_key_head_are_not_saved() -> None:
    copies = 2 * (HEADS - KEY_HEADS) * ROWS * FEATURES
    assert read_by_backward(partition) <= read_by_backward(min_cut_rematerialization_partition) - copies


def test_gradients_are_those_of_eager() -> None:
    expected, found = arguments(), arguments()
    grouped(*expected).square().sum().backward()
    torch.compile(grouped, backend="tpu")(*found).square().sum().backward()
    torch.testing.assert_close([x.grad for x in found], [x.grad for x in expected])
