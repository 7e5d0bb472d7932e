"""Conversion between dtypes, copies and reinterpretation."""

import torch

from tests.ops import Case, bf16, case, f32, f64, i32, i64, mask, tensor, u8

DTYPES = [
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


def conversions() -> list[Case]:
    sources = {
        "f32": f32(9, low=0, high=9),
        "bf16": bf16(9),
        "i64": i64(9),
        "u8": u8(9),
        "bool": mask(9),
        "f64": f64(9),
    }
    cases = []
    for name, maker in sources.items():
        for dtype in DTYPES:
            # What becomes of a negative float as an unsigned integer, C leaves open.
            if dtype == torch.uint8 and name in ("bf16", "f64"):
                continue
            to = str(dtype).removeprefix("torch.")
            fn = lambda x, dtype=dtype: x.to(dtype) + 0 if dtype != torch.bool else x.to(dtype)
            cases.append(
                case(f"{name}_to_{to}", fn, maker, fixture=(name, to) in (("f32", "int64"), ("i64", "bool")))
            )
    return cases


CASES = [
    *conversions(),
    case("train", lambda x: x.to(torch.bfloat16) * 2, f32(9), train=True),
    case("complex_from_real", lambda x: x.to(torch.complex64), f32(4)),
    case("real_of_complex", lambda x: x.real + x.imag, tensor(torch.complex64, 4), fixture=False),
    case("conj", lambda x: x.conj() * 2, tensor(torch.complex64, 4)),
    case("conj_physical", torch.conj_physical, tensor(torch.complex64, 4), fixture=False),
    case("copy", lambda x, y: torch.empty_like(x).copy_(y), f32(2, 3), i64(3), fixture=False),
    case("view_same_size", lambda x: x.view(torch.int32) + 1, f32(2, 3)),
    case("view_narrower", lambda x: x.view(torch.int16) + 1, f32(2, 3)),
    case(
        "view_wider",
        lambda x: x.view(torch.int32) + 1,
        tensor(torch.int16, 2, 6, low=-9, high=9),
        fixture=False,
    ),
    case("view_bool", lambda x: x.view(torch.uint8) + 1, mask(4), fixture=False),
    case("view_as_bool", lambda x: x.view(torch.bool) & True, u8(4, high=1), fixture=False),
    case("view_0d", lambda x: x.view(torch.float32) * 1, i32(), fixture=False),
]
