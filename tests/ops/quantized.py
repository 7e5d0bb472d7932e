"""Products of scaled 8-bit floats, and quantisation written as operators."""

import torch
import torch.ao.quantization.fx._decomposed  # registers quantized_decomposed

from tests.ops import Maker, case, f32, i8, tensor

q = torch.ops.quantized_decomposed


def f8(*shape: int) -> Maker:
    return tensor(torch.float8_e4m3fn, *shape)


def scales(*shape: int) -> Maker:
    return f32(*shape, low=0.1, high=1)


ZERO = torch.tensor([0, 3, -2])

CASES = [
    case(
        "scaled_mm",
        lambda a, b, s, r: torch._scaled_mm(a, b.t(), s, r, out_dtype=torch.bfloat16),
        f8(16, 32),
        f8(16, 32),
        scales(16, 1),
        scales(1, 16),
    ),
    case("to_float8", lambda x: x.to(torch.float8_e4m3fn), f32(9, low=-900, high=900)),
    case("to_exponent", lambda x: x.to(torch.float8_e8m0fnu), f32(9), fixture=False),
    case(
        "quantize_per_tensor",
        lambda x, s: q.quantize_per_tensor.tensor(x, s, torch.tensor(3), -128, 127, torch.int8),
        f32(3, 4),
        scales(),
    ),
    case(
        "quantize_per_channel",
        lambda x, s: q.quantize_per_channel(x, s, ZERO, 0, -128, 127, torch.int8),
        f32(3, 4),
        scales(3),
        fixture=False,
    ),
    case(
        "dequantize_per_channel",
        lambda x, s: q.dequantize_per_channel(x, s, ZERO, 0, -128, 127, torch.int8),
        i8(3, 4),
        scales(3),
    ),
    case(
        "fake_quantize",
        lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 3, -128, 127),
        f32(3, 4, high=20),
    ),
    case(
        "fake_quantize_edges",
        lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 3, -128, 127),
        tensor(torch.float32, 4, then=lambda _: torch.tensor([float("nan"), 20.0, -20.0, 0.05])),
        train=True,
        fixture=False,
    ),
    case(
        "fake_quantize_by_tensors",
        lambda x, s, on: torch.ops.aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams(
            x, s, torch.tensor(3, dtype=torch.int32), on, 0, 255
        ),
        f32(3, 4, high=20),
        scales(),
        tensor(torch.int64, 1, low=0, high=2),
        fixture=False,
    ),
    case(
        "fake_quantize_channels",
        lambda x, s: torch.fake_quantize_per_channel_affine(x, s, ZERO.int(), 1, -128, 127),
        f32(2, 3, 4, high=20),
        scales(3),
        fixture=False,
    ),
]
