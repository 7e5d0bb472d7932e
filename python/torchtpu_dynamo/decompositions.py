"""Which ATen operators are rewritten into simpler ones before the compiler sees the graph.

Torch's list for core ATen, plus `EXTRA` (torch has a rewriting, but its list leaves it out), plus the
rewritings at the end of this file, less whatever the compiler lowers itself: it says so, and a new
lowering needs no change here. Names that an older torch lacks are skipped."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch._decomp import decomposition_table
from torch._decomp.decompositions import upsample_compute_output_size
from torch._inductor import inductor_prims
from torch._ops import OpOverload

from . import attention, nn_decompositions, signal_decompositions
from ._torchtpu import lowered_targets

Table = dict[OpOverload, Callable[..., Any]]

# A name stands for all of its overloads.
EXTRA = """
_addmm_activation _batch_norm_no_update _batch_norm_with_update _batch_norm_with_update_functional
batch_norm_backward _fused_dropout native_dropout _log_softmax.default
_upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_lanczos2d_aa
_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
upsample_bicubic2d upsample_bilinear2d upsample_trilinear3d
upsample_nearest1d upsample_nearest2d upsample_nearest3d
adaptive_max_pool2d adaptive_max_pool3d addmm.dtype dist grid_sampler_2d
gru lstm rnn_relu rnn_tanh
as_strided_copy narrow_copy permute_copy unbind_copy view_copy
cauchy exponential geometric log_normal normal normal_functional uniform rrelu_with_noise_backward
polar special_ndtr std std_mean tril_indices triu_indices
var.default var.dim var_mean.default var_mean.dim
"""


@functools.cache
def table() -> Table:
    """The decompositions, by operator. Made once; the caller must not change it."""
    # core_aten_decompositions() adds what torch decomposes by itself, at 0.1 s.
    from torch._decomp import _core_aten_decompositions_post_autograd

    found: Table = {
        op: function
        for op, function in _core_aten_decompositions_post_autograd().items()
        if isinstance(op, OpOverload)
    }
    # Its backward has no decomposition, and would be fed the wrong tensors.
    found.pop(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default, None)
    for op in overloads(EXTRA):
        if op in decomposition_table:
            found[op] = decomposition_table[op]
    found.update(foreach_decompositions())
    found.update(nn_decompositions.defaults())
    if fma := getattr(inductor_prims, "fma", None):
        found[fma] = _fma
    for name, function in (_OWN | signal_decompositions.OWN).items():
        for op in overloads(name):
            found[op] = function
    for target in lowered_targets():
        namespace, _, name = target.partition(".")
        if namespace == "aten":
            for op in overloads(name):
                found.pop(op, None)
    return found


# What torch rewrites above autograd, where the table is not asked, and otherwise than eager's kernel computes it.
_BYTES_WHOLE = (
    "upsample_bilinear2d.vec upsample_bilinear2d.default upsample_bicubic2d.vec upsample_bicubic2d.default"
)


@contextlib.contextmanager
def bytes_whole() -> Iterator[None]:
    """Torch rewrites the resizing of images of u8 as sums of pixels in f32, or in integers but both axes at once. Eager
    resizes an axis at a time with 16-bit weights, as our lowering does: inside of this, the operator stays one."""
    with contextlib.ExitStack() as stack:
        for op in overloads(_BYTES_WHOLE):
            kernels = {key: functools.partial(_resized, op, kernel) for key, kernel in op.py_kernels.items()}
            stack.callback(op._dispatch_cache.clear)
            stack.enter_context(mock.patch.dict(op.py_kernels, kernels))
            op._dispatch_cache.clear()
        yield


def _resized(
    op: OpOverload,
    rewritten: Callable[..., torch.Tensor],
    x: torch.Tensor,
    size: Any,
    align_corners: bool,
    *scales: Any,
    **named: Any,
) -> torch.Tensor:
    if x.dtype != torch.uint8:
        return rewritten(x, size, align_corners, *scales, **named)
    if op._overloadname == "vec":
        factors = scales[0] if scales else named.get("scale_factors")
        size = upsample_compute_output_size(x.size(), size, factors)
        return op._overloadpacket.default(x, size, align_corners, *(factors or ()))
    with torch._C._AutoDispatchBelowAutograd():
        return op(x, size, align_corners, *scales, **named)


def overloads(names: str) -> Iterator[OpOverload]:
    """The ATen overloads that the names stand for, as far as this torch has them."""
    for name in names.split():
        packet_name, _, overload = name.partition(".")
        packet = getattr(torch.ops.aten, packet_name, None)
        if packet is None:
            continue
        for each in [overload] if overload else packet.overloads():
            if hasattr(packet, each):
                yield getattr(packet, each)


# `_foreach_*`: one operator over lists of tensors is that operator over each tensor.

_FOREACH_ELEMENT: dict[str, Callable[..., Any]] = {
    "_foreach_copy": lambda self, src, non_blocking=False: torch.ops.aten.copy(self, src),
    "_foreach_norm": lambda self, ord=2, dtype=None: torch.linalg.vector_norm(self, ord, dtype=dtype),
    "_foreach_powsum": lambda self, ord=2, dtype=None: torch.sum(torch.abs(self) ** ord, dtype=dtype),
    "_foreach_zero": torch.zeros_like,
}


def foreach_decompositions() -> Table:
    """One entry for each overload of each functional `_foreach` operator."""
    found: Table = {}
    for schema in torch._C._jit_get_all_schemas():
        name = schema.name.removeprefix("aten::")
        if name.startswith("_foreach_") and not schema.is_mutable:
            overload = schema.overload_name or "default"
            op = getattr(getattr(torch.ops.aten, name), overload)
            found[op] = _foreach(op, _FOREACH_ELEMENT.get(name) or _element(name, overload))
    return found


def _element(name: str, overload: str) -> Callable[..., Any]:
    base = name.removeprefix("_foreach_")
    if base in ("addcmul", "addcdiv"):
        combine = torch.mul if base == "addcmul" else torch.div
        return lambda self, a, b, value=1: self + value * combine(a, b)
    if base in ("maximum", "minimum") and overload.startswith("Scalar"):
        base = "clamp_min" if base == "maximum" else "clamp_max"
    return getattr(torch.ops.aten, base)


def _foreach(op: OpOverload, element: Callable[..., Any]) -> Callable[..., Any]:
    # Lists of tensors and of numbers run along with `self`; so does a tensor that holds the numbers.
    listed = [isinstance(a.type, torch.ListType) or a.name == "scalars" for a in op._schema.arguments]
    main = next(i for i, each in enumerate(listed) if each)

    def decomposition(*args: Any, **kwargs: Any) -> list[torch.Tensor]:
        def nth(i: int) -> list[Any]:
            return [a[i] if along else a for a, along in zip(args, listed, strict=False)]

        return [element(*nth(i), **kwargs) for i in range(len(args[main]))]

    return decomposition


# Our own.


def _padded(
    values: torch.Tensor, offsets: list[torch.Tensor], max_lengths: list[int], padding_value: float = 0.0
) -> torch.Tensor:
    """Rows of `values` from each offset to the next, as a batch of the same length."""
    if len(offsets) != 1:
        return NotImplemented
    begin, end = offsets[0][:-1, None], offsets[0][1:, None]
    row = begin + torch.arange(max_lengths[0], device=values.device)
    # One row more, which is never read, for where there are none.
    found = torch.cat([values, values.new_zeros(1, *values.shape[1:])])[row.clamp(max=values.shape[0])]
    inside = (row < end).reshape(*row.shape, *(1 for _ in values.shape[1:]))
    return torch.where(inside, found, padding_value)


def _unpadded(dense: torch.Tensor, offsets: list[torch.Tensor], total_L: int | None = None) -> torch.Tensor:
    """The rows of a batch that are not padding, one behind the other; zeros for those that the batch is too short for."""
    if len(offsets) != 1 or total_L is None:
        return NotImplemented
    row = torch.arange(total_L, device=dense.device)
    sample = torch.searchsorted(offsets[0][1:].contiguous(), row, right=True).clamp(max=dense.shape[0] - 1)
    place = row - offsets[0][sample]
    found = dense[sample, place.clamp(max=dense.shape[1] - 1)]
    inside = (place < dense.shape[1]).reshape(-1, *(1 for _ in dense.shape[2:]))
    return torch.where(inside, found, 0.0)


def _fma(a: torch.Tensor, b: torch.Tensor | float, c: torch.Tensor) -> torch.Tensor:
    """`a * b + c`, rounded once. Dynamo makes it of `c.addcmul_(x, y, value=b)` and `addcdiv_`, as optimizers use them."""
    if isinstance(b, torch.Tensor):
        return torch.addcmul(c, a, b)
    return torch.add(c, a, alpha=b)


def _cdist_forward(x1: torch.Tensor, x2: torch.Tensor, p: float, compute_mode: int | None) -> torch.Tensor:
    difference = x1.unsqueeze(-2) - x2.unsqueeze(-3)
    if difference.shape[-1] == 0:
        # The distance of points without coordinates, though not every norm of nothing is defined.
        return difference.sum(-1)
    return torch.linalg.vector_norm(difference, p, dim=-1)


def _cdist_backward(
    grad: torch.Tensor, x1: torch.Tensor, x2: torch.Tensor, p: float, cdist: torch.Tensor
) -> torch.Tensor:
    difference = x1.unsqueeze(-2) - x2.unsqueeze(-3)
    return torch.sum(grad.unsqueeze(-1) * _distance_slope(difference, p, cdist.unsqueeze(-1)), -2)


def _pdist_forward(self: torch.Tensor, p: float = 2) -> torch.Tensor:
    first, second = torch.triu_indices(self.shape[0], self.shape[0], 1, device=self.device)
    return torch.linalg.vector_norm(self[first] - self[second], p, dim=-1)


def _pdist_backward(grad: torch.Tensor, self: torch.Tensor, p: float, pdist: torch.Tensor) -> torch.Tensor:
    first, second = torch.triu_indices(self.shape[0], self.shape[0], 1, device=self.device)
    slope = grad.unsqueeze(-1) * _distance_slope(self[first] - self[second], p, pdist.unsqueeze(-1))
    return torch.zeros_like(self).index_add(0, first, slope).index_add(0, second, -slope)


def _distance_slope(difference: torch.Tensor, p: float, distance: torch.Tensor) -> torch.Tensor:
    """The derivative of a p-norm, zero where it has none."""
    if p == 0:
        return torch.zeros_like(difference)
    if p == 1:
        return torch.sign(difference)
    if math.isinf(p):
        return torch.sign(difference) * (difference.abs() == distance)
    slope = torch.sign(difference) * difference.abs() ** (p - 1) / distance ** (p - 1)
    return torch.where(distance == 0, 0, slope)


def mkldnn_rnn_layer(
    input: torch.Tensor,
    weight_ih: torch.Tensor,
    weight_hh: torch.Tensor,
    bias_ih: torch.Tensor,
    bias_hh: torch.Tensor,
    h: torch.Tensor,
    c: torch.Tensor,
    reverse: bool,
    batch_sizes: list[int],
    mode: int,
    hidden_size: int,
    num_layers: int,
    has_biases: bool,
    bidirectional: bool,
    batch_first: bool,
    train: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """One direction of one LSTM layer, time first, which torch chooses on CPUs when nothing needs a
    gradient."""
    from torch._decomp.decompositions import one_layer_lstm

    params = [weight_ih, weight_hh] + ([bias_ih, bias_hh] if has_biases else [])
    output, (hy, cy) = one_layer_lstm(
        input, (h.squeeze(0), c.squeeze(0)), params, has_biases, reverse=reverse
    )
    return output, hy.unsqueeze(0), cy.unsqueeze(0), input.new_empty(0, dtype=torch.uint8)


def mkldnn_rnn_layer_backward(
    input: torch.Tensor,
    weight_ih: torch.Tensor,
    weight_hh: torch.Tensor,
    bias_ih: torch.Tensor,
    bias_hh: torch.Tensor,
    h: torch.Tensor,
    c: torch.Tensor,
    output: torch.Tensor,
    hy: torch.Tensor,
    cy: torch.Tensor,
    grad_output: torch.Tensor | None,
    grad_hy: torch.Tensor | None,
    grad_cy: torch.Tensor | None,
    reverse: bool,
    mode: int,
    hidden_size: int,
    num_layers: int,
    has_biases: bool,
    *_: Any,
) -> tuple[torch.Tensor, ...]:
    """The derivative of `mkldnn_rnn_layer`: gradients of its tensor arguments, in order."""
    order = range(input.shape[0])[:: -1 if reverse else 1]
    projected = torch.nn.functional.linear(input, weight_ih, bias_ih if has_biases else None)
    hidden, cell = h.squeeze(0), c.squeeze(0)
    steps = []
    for t in order:
        gates = projected[t] + torch.nn.functional.linear(hidden, weight_hh, bias_hh if has_biases else None)
        i, f, g, o = gates.chunk(4, 1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        steps.append((t, i, f, g, o, hidden, cell))
        cell = f * cell + i * g
        hidden = o * cell.tanh()
    d_hidden = torch.zeros_like(hidden) if grad_hy is None else grad_hy.squeeze(0)
    d_cell = torch.zeros_like(cell) if grad_cy is None else grad_cy.squeeze(0)
    d_gates: list[torch.Tensor] = [input] * len(steps)
    before: list[torch.Tensor] = [hidden] * len(steps)
    for t, i, f, g, o, hidden, cell in reversed(steps):
        if grad_output is not None:
            d_hidden = d_hidden + grad_output[t]
        after = (f * cell + i * g).tanh()
        d_cell = d_cell + d_hidden * o * (1 - after * after)
        slopes = [d_cell * g * i * (1 - i), d_cell * cell * f * (1 - f), d_cell * i * (1 - g * g)]
        d_gates[t] = torch.cat([*slopes, d_hidden * after * o * (1 - o)], 1)
        before[t] = hidden
        d_hidden, d_cell = d_gates[t] @ weight_hh, d_cell * f
    stacked = torch.stack(d_gates)
    flat = stacked.flatten(0, 1)
    d_bias = flat.sum(0)
    d_weight_ih = flat.t() @ input.flatten(0, 1)
    d_weight_hh = flat.t() @ torch.cat(before)
    return (
        stacked @ weight_ih,
        d_weight_ih,
        d_weight_hh,
        d_bias,
        d_bias,
        d_hidden.unsqueeze(0),
        d_cell.unsqueeze(0),
    )


# int4 weights as torch packs them for its own CPU kernels: blocks of output features, each [in, block / 2] bytes of
# two features. Which two, and how many a block has, depends on the instructions that torch found at start.


@functools.cache
def int4_layout() -> tuple[int, bool]:
    """The features of a block, and whether the two of a byte are half a block apart in a whole block; else, and in
    the rest that fills no block, they are neighbours. Read off what torch packs."""
    with torch.utils._python_dispatch._disable_current_modes():
        weight = torch.zeros(256, 16, dtype=torch.int32, device="cpu")
        weight[0, 1] = weight[1, 0] = 1
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(weight, 1).flatten().tolist()
    second_row = next(i for i, byte in enumerate(packed) if i > 1 and byte)
    return 2 * second_row, packed[0] == 0


def _int4_blocks(features: int) -> Iterator[tuple[int, int, bool]]:
    """Start, end and kind of each run of blocks: whole blocks, then the rest."""
    block, halves = int4_layout()
    whole = features // block * block
    if whole:
        yield 0, whole, halves
    if whole < features:
        yield whole, features, False


def _int4_unpacked(packed: torch.Tensor) -> torch.Tensor:
    """int32[out, in] of 0 to 15 from uint8[out, in / 2]."""
    features, depth = packed.shape[0], 2 * packed.shape[1]
    runs = []
    for start, end, halves in _int4_blocks(features):
        size = min(int4_layout()[0], end - start)
        blocks = packed[start:end].reshape(-1, depth, size // 2).to(torch.int32)
        two = torch.stack([blocks & 15, blocks >> 4], -2 if halves else -1)
        runs.append(two.reshape(-1, depth, size).transpose(1, 2).reshape(end - start, depth))
    return torch.cat(runs)


def _int4_packed(weight: torch.Tensor, inner_k_tiles: int) -> torch.Tensor:
    features, depth = weight.shape
    runs = []
    for start, end, halves in _int4_blocks(features):
        size = min(int4_layout()[0], end - start)
        blocks = weight[start:end].reshape(-1, size, depth).transpose(1, 2)
        two = blocks.reshape(-1, depth, *((2, size // 2) if halves else (size // 2, 2)))
        low, high = two.unbind(-2 if halves else -1)
        runs.append((low | high << 4).to(torch.uint8).reshape(end - start, depth // 2))
    return torch.cat(runs)


def _int4_weight_mm(
    self: torch.Tensor, packed: torch.Tensor, group_size: int, scale_and_zero: torch.Tensor
) -> torch.Tensor:
    weight = (_int4_unpacked(packed) - 8).to(torch.float32)
    groups = weight.unflatten(1, (-1, group_size))
    # [in / group, out, 2]: the weight is `(q - 8) * scale + zero`.
    scale, zero = scale_and_zero.to(torch.float32).permute(2, 1, 0).unsqueeze(-1).unbind()
    weight = (groups * scale + zero).flatten(1)
    return (self.to(torch.float32) @ weight.t()).to(self.dtype)


# Quantization that training is to learn of: rounded to the steps that an integer will have, with where it was in range.


def _fake_quantize(
    self: torch.Tensor, scale: torch.Tensor | float, zero_point: torch.Tensor | int, low: int, high: int
) -> tuple[torch.Tensor, torch.Tensor]:
    value = self.to(torch.float32)
    if not isinstance(scale, torch.Tensor):
        scale = torch.full((), scale, dtype=torch.float32, device=self.device)
    steps = value * scale.to(torch.float32).reciprocal()
    if isinstance(zero_point, torch.Tensor) and zero_point.is_floating_point():
        step = torch.round(steps + zero_point)
    else:
        step = torch.round(steps) + zero_point
    above = step >= low
    # NaN is the lowest step, as what it becomes in eager's conversion to an integer.
    result = (torch.where(above, step.clamp(max=high), low) - zero_point) * scale
    return result.to(self.dtype), above & (step <= high)


def _fake_quantize_by_tensors(
    self: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    enabled: torch.Tensor,
    low: int,
    high: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    result, mask = _fake_quantize(self, scale, zero_point, low, high)
    on = enabled != 0
    return torch.where(on, result, self), mask | ~on


def _fake_quantize_channels(
    self: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, axis: int, low: int, high: int
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = [-1 if dim == axis % self.dim() else 1 for dim in range(self.dim())]
    return _fake_quantize(self, scale.view(shape), zero_point.view(shape), low, high)


def _repeat_interleave(repeats: torch.Tensor, *, output_size: int | None = None) -> torch.Tensor:
    """Which row each place of the result repeats: how many rows have ended before it. Where the sum of `repeats` is another
    than the stated size, PyTorch raises; here rows are cut, and places behind the last row repeat that."""
    if output_size is None:
        return NotImplemented  # A size that the data decide.
    ends = repeats.cumsum(0)
    rows = torch.searchsorted(ends, torch.arange(output_size, device=repeats.device), right=True)
    return rows.clamp(max=max(repeats.shape[0] - 1, 0)).to(repeats.dtype)


_OWN: dict[str, Callable[..., Any]] = {
    "_convert_weight_to_int4pack_for_cpu": _int4_packed,
    "_weight_int4pack_mm_for_cpu": _int4_weight_mm,
    "_cdist_backward": _cdist_backward,
    "_cdist_forward": _cdist_forward,
    "_efficientzerotensor.default": torch.zeros,
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams": _fake_quantize_by_tensors,
    "fake_quantize_per_channel_affine_cachemask": _fake_quantize_channels,
    "fake_quantize_per_tensor_affine_cachemask": _fake_quantize,
    "_jagged_to_padded_dense_forward": _padded,
    "_padded_dense_to_jagged_forward": _unpadded,
    "_pdist_backward": _pdist_backward,
    "_pdist_forward": _pdist_forward,
    "_scaled_dot_product_flash_attention_for_cpu_backward.default": attention.without_logsumexp,
    "mkldnn_rnn_layer.default": mkldnn_rnn_layer,
    "mkldnn_rnn_layer_backward.default": mkldnn_rnn_layer_backward,
    "repeat_interleave.Tensor": _repeat_interleave,
}
