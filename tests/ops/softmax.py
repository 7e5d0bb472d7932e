"""Softmax, its logarithm, and their backward."""

import torch

from tests.ops import bf16, case, f32, i64, mask

CASES = [
    case("softmax", lambda x: torch.softmax(x, -1), f32(3, 5), train=True),
    case("log_softmax", lambda x: torch.log_softmax(x, 1), f32(3, 5, 2), train=True),
    case(
        "softmax_bf16",
        lambda x: torch.softmax(x, 0),
        bf16(7, 3),
        train=True,
    ),
    case(
        "log_softmax_bf16_to_f32",
        lambda x: torch.log_softmax(x, -1, dtype=torch.float32),
        bf16(3, 50),
        train=True,
    ),
    case("softmax_large", lambda x: torch.softmax(x, 1), f32(3, 5, low=-1e4, high=1e4)),
    case("softmax_0d", lambda x: torch.softmax(x, 0), f32(), fixture=False, train=True),
    case("log_softmax_0d", lambda x: torch.log_softmax(x, -1), f32(), fixture=False),
    case("softmax_empty", lambda x: torch.softmax(x, 1), f32(2, 0), fixture=False),
    case(
        "softmax_all_masked", lambda x: torch.softmax(x * float("-inf"), 1), f32(2, 3, low=1), fixture=False
    ),
    case("softmax_of_int", lambda x: torch.softmax(x, 1, dtype=torch.float32), i64(2, 3), fixture=False),
    case(
        "masked_softmax",
        lambda x, m: torch._masked_softmax(x, m, -1, 2),
        f32(4, 6),
        mask(4, 6),
        fixture=False,
    ),
    case(
        "masked_softmax_keys",
        lambda x, m: torch._masked_softmax(x, m, -1, 1),
        f32(2, 3, 5, 5),
        mask(2, 5),
        fixture=False,
    ),
]
