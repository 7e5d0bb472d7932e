"""Convolution, transposed convolution and their backward."""

import torch
from torch.nn import functional as F

from tests.ops import bf16, case, f32, f64, i64

CASES = [
    case("conv1d", F.conv1d, f32(2, 3, 8), f32(4, 3, 3), f32(4), train=True),
    case(
        "conv2d",
        lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1),
        f32(2, 3, 9, 8),
        f32(4, 3, 3, 3),
        f32(4),
        train=True,
    ),
    case(
        "conv2d_dilated",
        lambda x, w: F.conv2d(x, w, stride=(2, 1), padding=(2, 1), dilation=(2, 3)),
        f32(1, 2, 11, 12),
        f32(3, 2, 3, 2),
        train=True,
    ),
    case(
        "conv2d_grouped",
        lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1, groups=2),
        f32(2, 4, 7, 7),
        f32(6, 2, 3, 3),
        f32(6),
        train=True,
    ),
    case(
        "conv2d_depthwise",
        lambda x, w: F.conv2d(x, w, padding=1, groups=4),
        f32(2, 4, 6, 6),
        f32(8, 1, 3, 3),
        train=True,
    ),
    case(
        "conv2d_bf16",
        lambda x, w, b: F.conv2d(x, w, b, padding=1),
        bf16(2, 3, 6, 6),
        bf16(4, 3, 3, 3),
        bf16(4),
        train=True,
        fixture=False,
    ),
    case(
        "conv2d_f64",
        lambda x, w, b: F.conv2d(x, w, b, padding="same"),
        f64(2, 3, 6, 6),
        f64(4, 3, 3, 3),
        f64(4),
        train=True,
        fixture=False,
    ),
    case(
        "conv2d_int", lambda x, w: F.conv2d(x, w, padding=1), i64(1, 2, 5, 5), i64(3, 2, 3, 3), fixture=False
    ),
    case("conv2d_unbatched", F.conv2d, f32(3, 6, 6), f32(4, 3, 3, 3), f32(4), fixture=False),
    case("conv2d_empty_batch", F.conv2d, f32(0, 3, 6, 6), f32(4, 3, 3, 3), f32(4), train=True, fixture=False),
    case(
        "conv3d",
        lambda x, w, b: F.conv3d(x, w, b, stride=(1, 2, 2), padding=1),
        f32(1, 2, 5, 6, 7),
        f32(3, 2, 3, 3, 3),
        f32(3),
        train=True,
        fixture=False,
    ),
    case(
        "conv_transpose1d",
        lambda x, w, b: F.conv_transpose1d(x, w, b, stride=2),
        f32(2, 3, 5),
        f32(3, 4, 3),
        f32(4),
        train=True,
        fixture=False,
    ),
    case(
        "conv_transpose2d",
        lambda x, w, b: F.conv_transpose2d(x, w, b, stride=(3, 2), padding=(1, 0), output_padding=(2, 1)),
        f32(2, 3, 5, 4),
        f32(3, 4, 3, 2),
        f32(4),
        train=True,
    ),
    case(
        "conv_transpose2d_grouped",
        lambda x, w, b: F.conv_transpose2d(
            x, w, b, stride=2, padding=2, output_padding=1, groups=2, dilation=2
        ),
        f32(2, 4, 5, 4),
        f32(4, 3, 3, 3),
        f32(6),
        train=True,
    ),
    case(
        "conv_transpose3d",
        lambda x, w: F.conv_transpose3d(x, w, stride=2, groups=2),
        f32(1, 2, 3, 4, 3),
        f32(2, 2, 2, 3, 2),
        train=True,
        fixture=False,
    ),
    case(
        "conv_transpose2d_far",
        lambda x, w: F.conv_transpose2d(x, w, padding=3),
        f32(1, 2, 6, 6),
        f32(2, 3, 3, 3),
        train=True,
        fixture=False,
    ),
    case(
        "conv_tbc",
        lambda x, w, b: torch.conv_tbc(x, w, b, 1),
        f32(5, 2, 3),
        f32(2, 3, 4),
        f32(4),
        train=True,
        fixture=False,
    ),
]
