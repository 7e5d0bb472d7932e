"""Reductions of segments whose lengths are data."""

from collections.abc import Callable
from typing import Any

import torch

from tests.ops import case, f32, i64

LENGTHS = i64(4, then=lambda _: torch.tensor([2, 0, 3, 1]))
OFFSETS = i64(4, then=lambda _: torch.tensor([0, 2, 2, 6]))


def reduce(kind: str, **kw: Any) -> Callable[..., torch.Tensor]:
    return lambda x, lengths: torch.segment_reduce(x, kind, lengths=lengths, **kw)


CASES = [
    *(
        case(kind, reduce(kind), f32(6, 2), LENGTHS, train=True)
        for kind in ("sum", "mean", "max", "min", "prod")
    ),
    *(
        case(f"{kind}_initial", reduce(kind, initial=3), f32(6), LENGTHS, train=True, fixture=False)
        for kind in ("sum", "mean", "max", "min", "prod")
    ),
    case(
        "offsets",
        lambda x, offsets: torch.segment_reduce(x, "sum", offsets=offsets),
        f32(6, 3),
        OFFSETS,
        train=True,
    ),
    case(
        "axis",
        lambda x, lengths: torch.segment_reduce(x, "max", lengths=lengths, axis=1),
        f32(2, 5, 2),
        i64(2, 2, then=lambda _: torch.tensor([[1, 4], [3, 2]])),
        train=True,
        fixture=False,
    ),
    case(
        "prod_of_zeros",
        reduce("prod"),
        f32(6, then=lambda t: t.masked_fill(torch.tensor([1, 0, 1, 0, 1, 0]) > 0, 0.0)),
        LENGTHS,
        train=True,
        fixture=False,
    ),
    case(
        "max_of_equals",
        reduce("max"),
        f32(6, then=lambda t: t.round()),
        LENGTHS,
        train=True,
        fixture=False,
    ),
]
