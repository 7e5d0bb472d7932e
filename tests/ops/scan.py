"""Cumulative operations along a dimension."""

import torch

from tests.ops import bf16, case, f32, i64, mask

nan, inf = float("nan"), float("inf")

CASES = [
    case("cumsum", lambda x: x.cumsum(-1), f32(3, 5), train=True),
    case("cummax", lambda x: x.cummax(1), f32(2, 7)),
    case("logcumsumexp", lambda x: x.logcumsumexp(0), f32(6, 2)),
    case("cumsum_bool", lambda x: x.cumsum(0), mask(9), fixture=False),
    case("cumsum_bf16", lambda x: x.cumsum(0), bf16(33, 2), fixture=False),
    case("cumsum_dtype", lambda x: x.cumsum(0, dtype=torch.float64), i64(4), fixture=False),
    case("cumsum_zero_dim", lambda x: x.cumsum(0), f32(), fixture=False),
    case("cumsum_empty", lambda x: x.cumsum(1), f32(2, 0), fixture=False),
    case("cumsum_long", lambda x: x.cumsum(0), i64(1000), fixture=False),
    case("cumprod", lambda x: x.cumprod(1), f32(2, 6), fixture=False),
    case("cumprod_int", lambda x: x.cumprod(0), i64(5), fixture=False),
    case("cummax_ties", lambda x: x.cummax(0), i64(20, low=-2, high=2), fixture=False),
    case("cummin_ties", lambda x: x.cummin(0), i64(20, low=-2, high=2), fixture=False),
    case("cummin_bool", lambda x: x.cummin(-1), mask(3, 5), fixture=False),
    case("cummax_zero_dim", lambda x: x.cummax(0), f32(), fixture=False),
    case(
        "cummax_nan",
        lambda x: x.cummax(0),
        f32(6, then=lambda t: t.index_fill(0, torch.tensor([1, 3]), nan)),
        fixture=False,
    ),
    case(
        "cummin_nan",
        lambda x: x.cummin(0),
        f32(6, then=lambda t: t.index_fill(0, torch.tensor([2]), nan)),
        fixture=False,
    ),
    case("cummax_train", lambda x: x.cummax(1)[0], f32(3, 8), train=True, fixture=False),
    case("logcumsumexp_bf16", lambda x: x.logcumsumexp(1), bf16(2, 9), fixture=False),
    case(
        "logcumsumexp_inf",
        lambda x: x.logcumsumexp(0),
        f32(
            6,
            then=lambda t: t.index_fill(0, torch.tensor([0, 1]), -inf).index_fill(0, torch.tensor([4]), inf),
        ),
        fixture=False,
    ),
    case("logcumsumexp_train", lambda x: x.logcumsumexp(1), f32(2, 5), train=True, fixture=False),
]
