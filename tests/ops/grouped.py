"""Grouped matrix products."""

import torch
import transformers.integrations.moe  # noqa: F401  registers the op

from tests.ops import Maker, bf16, case, f32

ends = Maker(torch.int32, (3,), low=1, high=2, then=lambda t: t.cumsum(0).to(torch.int32))
# Rows beyond the last end are whatever memory held in eager, so here there are none.
full = Maker(torch.int32, (3,), then=lambda t: torch.tensor([2, 5, 8], dtype=torch.int32))

CASES = [
    case("grouped_mm", torch.ops.transformers.grouped_mm_fallback, f32(6, 4), f32(3, 4, 5), ends, train=True),
    case("inner", torch._grouped_mm, bf16(8, 8), bf16(8, 16), full),
    case("columns", torch._grouped_mm, bf16(3, 8, 16), bf16(16, 8), full, fixture=False),
    case(
        "grouped_mm_bf16",
        lambda x, w, o: torch._grouped_mm(x, w, o),
        bf16(8, 16),
        bf16(3, 16, 8),
        full,
        fixture=False,
    ),
]
