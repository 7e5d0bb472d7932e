"""Pooling: maximum and average, over windows and adaptive."""

import torch
from torch.nn import functional as F

from tests.ops import bf16, case, f32, i64

IMAGE = f32(2, 3, 9, 8)
NAN = f32(1, 2, 6, 6, then=lambda t: t.masked_fill(t > 1.5, float("nan")))
LOW = f32(1, 1, 4, 4, then=lambda t: torch.full_like(t, float("-inf")))

CASES = [
    case("max_pool2d", lambda x: F.max_pool2d(x, 3, 2, 1), IMAGE, train=True),
    case(
        "max_pool2d_indices",
        lambda x: F.max_pool2d(x, (3, 2), (2, 1), (1, 0), (1, 2), ceil_mode=True, return_indices=True),
        IMAGE,
        train=True,
    ),
    case(
        "max_pool2d_ties",
        lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True),
        f32(1, 2, 7, 7, then=lambda t: t.round()),
    ),
    case("max_pool2d_nan", lambda x: F.max_pool2d(x, 2, 2, return_indices=True), NAN, fixture=False),
    case("max_pool2d_lowest", lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True), LOW, fixture=False),
    case("max_pool2d_int", lambda x: F.max_pool2d(x, 2, return_indices=True), i64(1, 2, 6, 6), fixture=False),
    case("max_pool2d_bf16", lambda x: F.max_pool2d(x, 2), bf16(1, 2, 6, 6), train=True, fixture=False),
    case(
        "max_pool2d_unbatched",
        lambda x: F.max_pool2d(x, 2, 1, return_indices=True),
        f32(2, 6, 6),
        train=True,
        fixture=False,
    ),
    case(
        "max_pool2d_wide",
        lambda x: F.max_pool2d(x, 9, 3, return_indices=True),
        f32(1, 2, 15, 15),
        train=True,
        fixture=False,
    ),
    case(
        "max_pool1d",
        lambda x: F.max_pool1d(x, 3, 2, 1, return_indices=True),
        f32(2, 3, 9),
        train=True,
        fixture=False,
    ),
    case(
        "max_pool3d",
        lambda x: F.max_pool3d(x, 2, (1, 2, 2), 1, return_indices=True),
        f32(1, 2, 4, 5, 6),
        train=True,
        fixture=False,
    ),
    case("avg_pool1d", lambda x: F.avg_pool1d(x, 3, 2, 1), f32(2, 3, 9), train=True, fixture=False),
    case("avg_pool2d", lambda x: F.avg_pool2d(x, 2), IMAGE, train=True),
    case("avg_pool2d_ceil", lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), f32(1, 2, 8, 7), train=True),
    case(
        "avg_pool2d_inside",
        lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
        f32(1, 2, 8, 7),
        train=True,
    ),
    case(
        "avg_pool2d_divisor",
        lambda x: F.avg_pool2d(x, (2, 3), (3, 2), divisor_override=5),
        IMAGE,
        train=True,
        fixture=False,
    ),
    case(
        "avg_pool2d_bf16",
        lambda x: F.avg_pool2d(x, 3, 1, 1),
        bf16(1, 2, 8, 7),
        train=True,
        fixture=False,
    ),
    case(
        "avg_pool3d",
        lambda x: F.avg_pool3d(x, 2, 2, 1, count_include_pad=False),
        f32(1, 2, 4, 5, 6),
        train=True,
        fixture=False,
    ),
    case(
        "adaptive_avg_pool1d", lambda x: F.adaptive_avg_pool1d(x, 4), f32(2, 3, 9), train=True, fixture=False
    ),
    case("adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, (3, 5)), IMAGE, train=True),
    case(
        "adaptive_avg_pool2d_global", lambda x: F.adaptive_avg_pool2d(x, 1), IMAGE, train=True, fixture=False
    ),
    case(
        "adaptive_avg_pool2d_up",
        lambda x: F.adaptive_avg_pool2d(x, (12, 8)),
        IMAGE,
        train=True,
        fixture=False,
    ),
    case(
        "adaptive_avg_pool3d",
        lambda x: F.adaptive_avg_pool3d(x, (2, 3, 4)),
        f32(1, 2, 4, 5, 6),
        train=True,
        fixture=False,
    ),
    case(
        "adaptive_max_pool1d",
        lambda x: F.adaptive_max_pool1d(x, 4, return_indices=True),
        f32(2, 3, 9),
        train=True,
        fixture=False,
    ),
    case(
        "adaptive_max_pool2d",
        lambda x: F.adaptive_max_pool2d(x, (4, 5), return_indices=True),
        IMAGE,
        train=True,
    ),
    case(
        "adaptive_max_pool3d",
        lambda x: F.adaptive_max_pool3d(x, (2, 3, 4), return_indices=True),
        f32(1, 2, 4, 5, 6),
        train=True,
        fixture=False,
    ),
    case(
        "max_unpool2d",
        lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
        f32(1, 2, 6, 6),
        train=True,
        fixture=False,
    ),
    case(
        "fractional_max_pool2d",
        lambda x, s: F.fractional_max_pool2d(x, (3, 2), (4, 5), _random_samples=s, return_indices=True),
        f32(2, 3, 9, 11),
        f32(2, 3, 2, low=0, high=1),
        fixture=False,
    ),
    case(
        "fractional_max_pool2d_backward",
        lambda x: F.fractional_max_pool2d(x, 2, (3, 1), _random_samples=torch.full((1, 3, 2), 0.6)),
        f32(3, 9, 8),
        train=True,
        fixture=False,
    ),
    case(
        "fractional_max_pool3d",
        lambda x: F.fractional_max_pool3d(
            x, (2, 3, 2), (3, 4, 1), _random_samples=torch.tensor([0.1, 0.5, 0.9]).expand(2, 3, 3)
        ),
        f32(2, 3, 7, 9, 5),
        train=True,
        fixture=False,
    ),
]
