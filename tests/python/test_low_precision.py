"""8-bit floats, and weights of 8 and 4 bits: conversions, products, and the graphs that torchao makes of them."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # registers quantized_decomposed
import torch.nn.functional as F
from torch import Tensor

import torchtpu_dynamo
from torchtpu_dynamo import testing

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
FLOAT8 = [E4M3, E5M2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu]
WIDE = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def compiled(fn: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(fn, backend="tpu", fullgraph=True)


def check(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    testing.assert_matches_eager(fn, *args, **kwargs)


def exactly(fn: Callable[..., Any], *args: Any) -> None:
    torch.testing.assert_close(compiled(fn)(*args), fn(*args), rtol=0, atol=0, equal_nan=True)


def float8(*shape: int, dtype: torch.dtype = E4M3, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape) * scale).to(dtype)


# Conversion


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_every_value_converts(dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(dtype)
    exactly(lambda x: [x.to(wide) for wide in WIDE], codes)


def edges() -> Tensor:
    """Ties, ends and subnormals of every format, and numbers of every magnitude."""
    ends = [240, 247, 248, 249, 448, 463.99, 464, 464.01, 465, 480, 57344, 59392, 61439.9, 61440, 65536, 1e30]
    small = [2.0**-k * f for k in range(6, 19) for f in (1, 1.0001, 1.25, 1.5, 1.75)]
    ties = [1.0625, 1.125, 1.1875, 1.25, 1.375, 1.5, 3.0]
    special = [0.0, float("inf"), float("nan"), 2.0**-127, 2.0**-128, 1.5 * 2.0**-127, 1.7e38, 3e38]
    values = torch.tensor(ends + small + ties + special)
    magnitudes = torch.randn(2000) * torch.exp2(torch.randint(-20, 18, (2000,)).float())
    return torch.cat([values, -values, magnitudes])


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_rounding_and_overflow_are_torchs(dtype: torch.dtype) -> None:
    x = edges()
    # The CPU plugin flushes an f64 that becomes a subnormal f32.
    wide = x[(x.abs() >= 2.0**-126) | (x == 0) | x.isnan()].double()
    inputs = [x, x.bfloat16(), x.half(), wide]
    results = compiled(lambda xs: [x.to(dtype) for x in xs])(inputs)
    for actual, each in zip(results, inputs, strict=True):
        expected = each.to(dtype)
        # A NaN's sign and payload are the machine's.
        nan = expected.float().isnan()
        assert torch.equal(actual.float().isnan(), nan)
        assert torch.equal(actual.view(torch.uint8)[~nan], expected.view(torch.uint8)[~nan])


@pytest.mark.parametrize("dtype", FLOAT8[:4], ids=str)
def test_integers_and_booleans_convert(dtype: torch.dtype) -> None:
    exactly(
        lambda n, b: (n.to(dtype).float(), b.to(dtype).float()), torch.arange(-600, 600), torch.tensor([True])
    )


@pytest.mark.parametrize("dtype", [E4M3, E5M2], ids=str)
def test_shapes_and_copies(dtype: torch.dtype) -> None:
    def fn(x: Tensor, y: Tensor, at: Tensor) -> list[Tensor]:
        z = x.clone()
        z[0] = 2.0
        some = [torch.cat([x, y]), x.t().contiguous(), x[at], torch.where(x.float() > 0, x, y), z]
        some += [F.pad(x, (1, 1)), x.flip(0), torch.stack([x, y]), x.abs(), x * y, x.view(torch.uint8) + 1]
        return [each.view(torch.uint8) for each in some]

    exactly(
        fn, float8(4, 6, dtype=dtype, scale=30), float8(4, 6, dtype=dtype, scale=30), torch.tensor([2, 0])
    )


def test_constants_and_buffers() -> None:
    weight = float8(4, 4)
    check(lambda x: (x @ weight.float(), torch.full((2,), 3.3, dtype=E4M3).float()), torch.randn(2, 4))


# Scaled products of 8-bit floats

A, B = (16, 32), (48, 32)


@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_scaled_mm(out: torch.dtype) -> None:
    def fn(a: Tensor, b: Tensor, s: Tensor, r: Tensor) -> Tensor:
        return torch._scaled_mm(a, b.t(), s, r, out_dtype=out, use_fast_accum=True)

    check(fn, float8(*A), float8(*B), torch.tensor(0.5), torch.tensor(1.25))


@pytest.mark.parametrize("out", [None, E4M3], ids=str)
def test_scaled_mm_in_8_bits(out: torch.dtype | None) -> None:
    """The product in float32, rounded once: eager rounds it to float16 first on processors that compute in float16."""

    def fn(a: Tensor, b: Tensor, s: Tensor, r: Tensor) -> Tensor:
        return torch._scaled_mm(a, b.t(), s, r, out_dtype=out, use_fast_accum=True)

    args = float8(*A), float8(*B), torch.tensor(0.5), torch.tensor(1.25)
    wide = torch._scaled_mm(args[0], args[1].t(), *args[2:], out_dtype=torch.float32)
    found = compiled(fn)(*args)
    assert found.dtype == E4M3
    torch.testing.assert_close(found.float(), wide.to(E4M3).float(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [E4M3, E5M2], ids=str)
def test_scaled_mm_by_row(dtype: torch.dtype) -> None:
    def fn(a: Tensor, b: Tensor, s: Tensor, r: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        plain = torch._scaled_mm(a, b.t(), s, r, out_dtype=torch.bfloat16)
        return plain, torch._scaled_mm(a, b.t(), s, r, bias=bias, out_dtype=torch.bfloat16)

    scales = torch.rand(16, 1) + 0.5, torch.rand(1, 48) + 0.5
    check(fn, float8(*A), float8(*B, dtype=dtype), *scales, torch.randn(48).bfloat16())


def test_scaled_mm_of_a_scaled_result() -> None:
    def fn(a: Tensor, b: Tensor, s: Tensor, r: Tensor) -> Tensor:
        return torch._scaled_mm(a, b.t(), s, s, scale_result=r, out_dtype=E4M3).float()

    args = float8(*A), float8(*B), torch.tensor(0.5), torch.tensor(3.0)
    wide = torch._scaled_mm(args[0], args[1].t(), args[2], args[2], out_dtype=torch.float32)
    expected = (wide * (1 / args[3])).to(E4M3).float()
    torch.testing.assert_close(compiled(fn)(*args), expected, rtol=0, atol=0)


@pytest.mark.skipif(not hasattr(F, "scaled_mm"), reason="newer than this torch")
def test_scaled_mm_with_recipes() -> None:
    kind = F.ScalingType

    def fn(a: Tensor, b: Tensor, one: Tensor, s: Tensor, r: Tensor) -> tuple[Tensor, ...]:
        return (
            F.scaled_mm(a, b.t(), one, kind.TensorWise, one, kind.TensorWise),
            F.scaled_mm(a, b.t(), s, kind.RowWise, r, kind.RowWise, output_dtype=torch.float32),
        )

    scales = torch.tensor(0.5), torch.rand(16, 1) + 0.5, torch.rand(1, 48) + 0.5
    check(fn, float8(*A), float8(*B), *scales)


def test_blockwise_scales_are_refused() -> None:
    def fn(a: Tensor, b: Tensor, s: Tensor, r: Tensor) -> Tensor:
        return torch._scaled_mm(a, b.t(), s, r, out_dtype=torch.bfloat16)

    with pytest.raises((torchtpu_dynamo.TorchTPUError, RuntimeError, ValueError), match="scal"):
        compiled(fn)(float8(16, 256), float8(48, 256), torch.rand(16, 2), torch.rand(2, 48))


def test_product_is_of_8_bit_floats() -> None:
    def fn(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
        return torch._scaled_mm(a, b.t(), s, s, out_dtype=torch.bfloat16)

    text = (
        torchtpu_dynamo.lower(fn, float8(*A), float8(*B), torch.tensor(1.0)).programs["inference"].as_text()
    )
    assert "(tensor<16x32xf8E4M3FN>, tensor<48x32xf8E4M3FN>) -> tensor<16x48xf32>" in text


def test_scaled_grouped_mm() -> None:
    """Eager has it on CUDA alone, so this is the formula."""
    a, b = float8(48, 16), float8(3, 32, 16)
    s, r = torch.rand(48) + 0.5, torch.rand(3, 32) + 0.5
    ends = torch.tensor([16, 16, 48], dtype=torch.int32)

    def fn(a: Tensor, b: Tensor, s: Tensor, r: Tensor, ends: Tensor) -> Tensor:
        return torch._scaled_grouped_mm(a, b.transpose(1, 2), s, r, offs=ends, out_dtype=torch.bfloat16)

    group = torch.tensor([0] * 16 + [2] * 32)
    weights = (b.double() * r.double().unsqueeze(-1))[group]
    expected = torch.einsum("mk,mnk->mn", a.double() * s.double().unsqueeze(-1), weights)
    torch.testing.assert_close(compiled(fn)(a, b, s, r, ends), expected.bfloat16())


# Integer weights


def int8(*shape: int) -> Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8)


def test_int8_products() -> None:
    exactly(torch._int_mm, int8(32, 16), int8(16, 8))
    text = torchtpu_dynamo.lower(torch._int_mm, int8(32, 16), int8(16, 8)).programs["inference"].as_text()
    assert "(tensor<32x16xi8>, tensor<16x8xi8>) -> tensor<32x8xi32>" in text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=str)
def test_int8_weight(dtype: torch.dtype) -> None:
    x, scales = torch.randn(4, 64).to(dtype), (torch.rand(32) + 0.5).to(dtype)
    weight = int8(32, 64)
    expected = (x.double() @ weight.double().t() * scales.double()).to(dtype)
    actual = compiled(torch.ops.aten._weight_int8pack_mm)(x, weight, scales)
    loose = {"rtol": 1e-5, "atol": 1e-3} if dtype == torch.float32 else {}
    torch.testing.assert_close(actual, expected, **loose)


INT4 = """
import torch

torch.manual_seed(0)
pack, mm = torch.ops.aten._convert_weight_to_int4pack_for_cpu, torch.ops.aten._weight_int4pack_mm_for_cpu
def compiled(fn):
    torch._dynamo.reset()
    return torch.compile(fn, backend="tpu", fullgraph=True)
for features in (48, 144):
    weight = torch.randint(0, 16, (features, 128), dtype=torch.int32)
    packed = pack(weight, 8)
    assert torch.equal(compiled(lambda w: pack(w, 8))(weight), packed), features
    x, scales = torch.randn(4, 128).bfloat16(), torch.rand(4, features, 2).bfloat16()
    actual = compiled(lambda *args: mm(args[0], args[1], 32, args[2]))(x, packed, scales)
    torch.testing.assert_close(actual, mm(x, packed, 32, scales))
"""


@pytest.mark.parametrize("instructions", ["", "avx2", "default"])
def test_int4_weight_packed_by_torch(instructions: str) -> None:
    """What torch packs depends on the instructions that it found."""
    variables = {"ATEN_CPU_CAPABILITY": instructions} if instructions else {}
    done = subprocess.run(
        [sys.executable, "-c", INT4], env={**os.environ, **variables}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_four_bit_weight_of_two_a_byte() -> None:
    """The plain layout: nibbles by shifts and masks, a scale and zero point a group."""

    def fn(x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        nibbles = torch.stack([packed >> 4, packed & 0xF], -1).flatten(1)
        groups = nibbles.unflatten(1, (-1, 16)).to(x.dtype)
        weight = ((groups - zero.unsqueeze(-1)) * scale.unsqueeze(-1)).flatten(1)
        return F.linear(x, weight)

    packed = torch.randint(0, 256, (8, 32), dtype=torch.uint8)
    check(fn, torch.randn(3, 64), packed, torch.rand(8, 4), torch.randint(0, 16, (8, 4)).float())

    def signed(packed: Tensor) -> tuple[Tensor, Tensor]:
        x = packed.view(torch.int8)
        return x << 4 >> 4, x >> 4

    exactly(signed, torch.arange(256, dtype=torch.uint8))


@pytest.mark.parametrize("dtype", [torch.int8, E4M3], ids=str)
def test_weights_updated_in_place_are_read_anew(dtype: torch.dtype) -> None:
    """Large enough for a library that remembers packed operands by their address."""

    def fn(x: Tensor, w: Tensor) -> Tensor:
        if dtype is torch.int8:
            return torch._int_mm(x, w)
        return torch._scaled_mm(x, w, one, one, out_dtype=torch.float32)

    one = torch.tensor(1.0)
    x, w = (torch.randint(-9, 9, shape).to(dtype) for shape in ((256, 768), (768, 1024)))
    run = compiled(fn)
    for _ in range(3):
        # Sums of small integers are exact in both.
        torch.testing.assert_close(run(x, w), fn(x, w), rtol=0, atol=0)
        w.copy_(torch.randint(-9, 9, w.shape).to(dtype))


# As torchao writes them


def int8_weight_only(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return F.linear(x, (weight.to(x.dtype) * scale.to(x.dtype).unsqueeze(-1)))


def rows_to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = (x.float().abs().amax(-1, keepdim=True) / 127.5).clamp(min=torch.finfo(torch.float32).eps)
    return torch.clamp(torch.round(x.float() * (1.0 / scale)), -128, 127).to(torch.int8), scale


def int8_dynamic_activation(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    q, scales = rows_to_int8(x)
    product = torch._int_mm(q, weight.t()).to(torch.float32)
    return (product * scales * scale).to(x.dtype)


def float8_weight_only(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return F.linear(x, (weight.view(E4M3).to(torch.float32) * scale.unsqueeze(-1)).to(x.dtype))


def float8_dynamic_activation(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    amax = x.abs().amax(-1, keepdim=True).to(torch.float32)
    scales = (amax / torch.finfo(E4M3).max).clamp(min=torch.finfo(torch.float32).tiny)
    q = (x.to(torch.float32) / scales).clamp(-448, 448).to(E4M3)
    return torch._scaled_mm(q, weight.view(E4M3).t(), scales, scale.unsqueeze(0), out_dtype=torch.bfloat16)


@pytest.mark.parametrize(
    "fn", [int8_weight_only, int8_dynamic_activation, float8_weight_only, float8_dynamic_activation]
)
def test_linear_layers_of_torchao(fn: Callable[..., Tensor]) -> None:
    # Each row's greatest value gives a scale that is a power of two. Else XLA's division by a constant, which is a
    # multiplication by its inverse, may move a value across a tie, by a whole step of the short format.
    x, scale = torch.randn(32, 64).clamp(-3, 3).bfloat16(), torch.rand(48) + 0.5
    x[:, 0] = 3.5 if "float8" in fn.__name__ else 255 / 64
    weight = float8(48, 64).view(torch.int8) if "float8" in fn.__name__ else int8(48, 64)
    check(fn, x, weight, scale)


def quantizers() -> dict[str, Callable[[Tensor], Tensor]]:
    q = torch.ops.quantized_decomposed
    one, zero = torch.tensor([0.037]), torch.tensor([3])
    byte, token = torch.rand(32) / 9 + 0.01, torch.rand(6, 1) / 9 + 0.01
    channel, point = torch.rand(6) / 9 + 0.01, torch.randint(0, 9, (6,))
    groups = torch.rand(6, 4) / 3 + 0.1
    none = torch.zeros(6, 4, dtype=torch.int32)
    to = torch.int8
    ends = torch.tensor(-100), torch.tensor(99)
    return {
        "tensor": lambda x: q.quantize_per_tensor(x, 0.037, 3, -128, 127, to),
        "tensor scale": lambda x: q.quantize_per_tensor.tensor(x, one, zero, -128, 127, to),
        "tensor ends": lambda x: q.quantize_per_tensor.tensor2(x, one, zero, *ends, to),
        "rows": lambda x: q.quantize_per_channel(x, channel, point, 0, -128, 127, to),
        "columns": lambda x: q.quantize_per_channel(x, byte, torch.arange(32), 1, 0, 255, torch.uint8),
        "tokens": lambda x: q.quantize_per_token(x, token, point.unsqueeze(1), -128, 127, to),
        "tokens f64": lambda x: q.quantize_per_token(x, token.double(), point.unsqueeze(1), -128, 127, to),
        "groups": lambda x: q.quantize_per_channel_group(x, groups, none, -8, 7, to, 8),
        "back tensor": lambda x: q.dequantize_per_tensor(x.to(to), 0.037, 3, -128, 127, to),
        "back bf16": lambda x: q.dequantize_per_tensor(
            x.to(to), 0.037, 3, -128, 127, to, out_dtype=torch.bfloat16
        ),
        "back scale": lambda x: q.dequantize_per_tensor.tensor(x.to(to), one, zero, -128, 127, to),
        "back rows": lambda x: q.dequantize_per_channel(x.to(to), channel, point, 0, -128, 127, to),
        "back plain": lambda x: q.dequantize_per_channel(x.to(to), channel, None, 0, -128, 127, to),
        "back tokens": lambda x: q.dequantize_per_token(
            x.to(to), token, point.unsqueeze(1), -128, 127, to, torch.float32
        ),
        "back groups": lambda x: q.dequantize_per_channel_group(
            x.to(to), groups, none, -8, 7, to, 8, torch.bfloat16
        ),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_quantized_decomposed(dtype: torch.dtype) -> None:
    forms = quantizers()
    exactly(lambda x: {name: form(x) for name, form in forms.items()}, (torch.randn(6, 32) * 4).to(dtype))


# Grouped products

ENDS = torch.tensor([8, 8, 24], dtype=torch.int32)
GROUPED: dict[str, tuple[tuple[int, ...], tuple[int, ...], Tensor | None]] = {
    "rows": ((24, 16), (3, 16, 8), ENDS),
    "columns": ((3, 8, 16), (16, 24), ENDS),
    "inner": ((8, 24), (24, 16), ENDS),
    "batches": ((3, 8, 16), (3, 16, 8), None),
}


@pytest.mark.skipif(
    not hasattr(F, "grouped_mm"), reason="torch.nn.functional.grouped_mm is newer than this torch"
)
@pytest.mark.parametrize("name", GROUPED)
def test_grouped_mm(name: str) -> None:
    left, right, ends = GROUPED[name]
    a, b = (torch.randn(s).bfloat16().requires_grad_() for s in (left, right))
    # Its backward takes no expanded gradient, as that of a sum is.
    check(lambda a, b: F.grouped_mm(a, b, offs=ends).sin(), a, b, train=True)


def test_mixture_of_experts() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        vocab_size=64,
        experts_implementation="grouped_mm",
    )
    model = MixtralForCausalLM(config)
    ids = torch.randint(0, 64, (2, 7))
    results = []
    for run in (model, compiled(model)):
        model.zero_grad()
        loss = run(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        results.append((loss.detach(), [p.grad for p in model.parameters()]))
    torch.testing.assert_close(results[1], results[0])
