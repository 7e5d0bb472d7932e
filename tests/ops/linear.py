"""Matrix products."""

import torch
from torch.nn import functional

from tests.ops import bf16, case, f32, f64, i64, tensor

NAN = f32(2, 4, then=lambda t: t * float("nan"))

CASES = [
    case("mm", torch.mm, f32(2, 3), f32(3, 4), train=True),
    case("mm_bf16", torch.mm, bf16(4, 8), bf16(8, 4)),
    case("mm_int", torch.mm, i64(2, 3), i64(3, 4)),
    case("mm_empty", torch.mm, f32(2, 0), f32(0, 4)),
    case("mm_complex", torch.mm, tensor(torch.complex64, 2, 3), tensor(torch.complex64, 3, 2), fixture=False),
    case(
        "mm_u8",
        torch.mm,
        tensor(torch.uint8, 2, 3, low=0, high=90),
        tensor(torch.uint8, 3, 2, low=0, high=90),
        fixture=False,
    ),
    case("bmm", torch.bmm, f32(2, 3, 4), f32(2, 4, 5), train=True),
    case("bmm_f64", torch.bmm, f64(2, 3, 4), f64(2, 4, 5), fixture=False),
    case(
        "int_mm",
        torch._int_mm,
        tensor(torch.int8, 17, 16, low=-100, high=100),
        tensor(torch.int8, 16, 8, low=-100, high=100),
    ),
    case(
        "int8_weight",
        torch.ops.aten._weight_int8pack_mm,
        bf16(4, 16),
        tensor(torch.int8, 8, 16, low=-100, high=100),
        bf16(8, low=0.1, high=1),
    ),
    case("mv", torch.mv, f32(2, 3), f32(3), train=True, fixture=False),
    case("mv_int", torch.mv, i64(2, 3), i64(3), fixture=False),
    case("dot", torch.dot, f32(5), f32(5), fixture=False),
    case("dot_int", torch.dot, i64(5), i64(5), fixture=False),
    case("vdot", torch.vdot, tensor(torch.complex64, 5), tensor(torch.complex64, 5), fixture=False),
    case("addmm", torch.addmm, f32(4), f32(2, 3), f32(3, 4), train=True),
    case(
        "addmm_scaled",
        lambda c, a, b: torch.addmm(c, a, b, beta=0.5, alpha=2),
        bf16(2, 4),
        bf16(2, 3),
        bf16(3, 4),
    ),
    case(
        "addmm_beta_0",
        lambda c, a, b: torch.addmm(c, a, b, beta=0, alpha=2),
        NAN,
        f32(2, 3),
        f32(3, 4),
        fixture=False,
    ),
    case(
        "addmm_int",
        lambda c, a, b: torch.addmm(c, a, b, beta=3, alpha=2),
        i64(2, 4),
        i64(2, 3),
        i64(3, 4),
        fixture=False,
    ),
    case(
        "addmv",
        lambda c, a, b: torch.addmv(c, a, b, beta=3, alpha=2),
        f32(2),
        f32(2, 3),
        f32(3),
        fixture=False,
    ),
    case(
        "addbmm",
        lambda c, a, b: torch.addbmm(c, a, b, beta=3, alpha=2),
        f32(3, 5),
        f32(2, 3, 4),
        f32(2, 4, 5),
    ),
    case(
        "baddbmm",
        lambda c, a, b: torch.baddbmm(c, a, b, beta=3, alpha=2),
        f32(3, 5),
        f32(2, 3, 4),
        f32(2, 4, 5),
        fixture=False,
    ),
    case("linear", functional.linear, f32(2, 5, 3), f32(4, 3), f32(4), train=True),
    case(
        "linear_bf16",
        functional.linear,
        bf16(5, 3),
        bf16(4, 3),
        bf16(4),
        train=True,
        fixture=False,
    ),
    case(
        "bilinear", functional.bilinear, f32(2, 3), f32(2, 4), f32(5, 3, 4), f32(5), train=True, fixture=False
    ),
    case("matmul_vector", torch.matmul, f32(2, 3, 4), f32(4), train=True, fixture=False),
]
