"""Pointwise arithmetic, comparison, logic and special functions."""

import torch

from tests.ops import bf16, case, f32, i64, mask

CASES = [
    case("sin", torch.sin, f32(2, 3)),
    case("exp_of_int", torch.exp, i64(4)),
    case("add_broadcast", torch.add, f32(2, 3), f32(3)),
    case("add_alpha", lambda x, y: torch.add(x, y, alpha=2), bf16(2, 3), bf16(2, 3)),
    case("mul_bool", lambda x, y: x * y, mask(5), mask(5)),
    case("eq_number", lambda x: x == 1, i64(5)),
]
