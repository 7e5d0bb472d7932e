"""Rewritings of neural-network operators for which torch has none: sampling grids, fractional pooling, chunked
losses. Plain functions of tensors, as eager PyTorch computes them; `decompositions` puts them in its table."""

from __future__ import annotations

import builtins
import contextlib
import importlib
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Fractional pooling: the windows of each image and channel start where its random samples say.


def _fractional_starts(samples: Tensor, size: int, out: int, window: int) -> Tensor:
    """First positions of `out` windows in a dimension of `size`: (N, C) samples to (N, C, out)."""
    if out == 1:
        return torch.full((*samples.shape, 1), size - window, dtype=torch.int64, device=samples.device)
    step = (size - window) / (out - 1)
    # As eager does: in the dtype of the samples, the step rounded to it.
    alpha = torch.full((), step, dtype=samples.dtype, device=samples.device)
    sample = samples.unsqueeze(-1)
    i = torch.arange(out, dtype=samples.dtype, device=samples.device)
    starts = ((i + sample) * alpha).to(torch.int64) - (sample * alpha).to(torch.int64)
    return torch.where(i == out - 1, size - window, starts)


def _fractional_max_pool(
    self: Tensor,
    kernel_size: Sequence[int],
    output_size: Sequence[int],
    samples: Tensor,
    order: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """`order[d]` is the position of spatial dimension `d`'s sample."""
    n = len(kernel_size)
    x = self if self.dim() == n + 2 else self.unsqueeze(0)
    sizes = x.shape[2:]
    lead = x.shape[:2]
    # Samples beyond the images and channels that there are go unused.
    samples = samples[: lead[0], : lead[1]]
    flat = torch.zeros((), dtype=torch.int64, device=x.device)
    for d in range(n):
        starts = _fractional_starts(samples[..., order[d]], sizes[d], output_size[d], kernel_size[d])
        at = starts.unsqueeze(-1) + torch.arange(kernel_size[d], device=x.device)
        shape = [1] * (2 * n)
        shape[d], shape[n + d] = output_size[d], kernel_size[d]
        flat = flat * sizes[d] + at.reshape(*at.shape[:2], *shape)
    flat = flat.expand(*lead, *output_size, *kernel_size).flatten(2 + n)
    values = torch.gather(x.flatten(2), 2, flat.flatten(2)).reshape(flat.shape)
    best, place = values.max(-1)
    indices = torch.gather(flat, -1, place.unsqueeze(-1)).squeeze(-1)
    return (best, indices) if x is self else (best.squeeze(0), indices.squeeze(0))


def fractional_max_pool2d(
    self: Tensor, kernel_size: Sequence[int], output_size: Sequence[int], random_samples: Tensor
) -> tuple[Tensor, Tensor]:
    # The sample of the width comes first.
    return _fractional_max_pool(self, kernel_size, output_size, random_samples, (1, 0))


def fractional_max_pool3d(
    self: Tensor, kernel_size: Sequence[int], output_size: Sequence[int], random_samples: Tensor
) -> tuple[Tensor, Tensor]:
    return _fractional_max_pool(self, kernel_size, output_size, random_samples, (0, 1, 2))


def fractional_max_pool_backward(
    grad_output: Tensor, self: Tensor, kernel_size: Sequence[int], output_size: Sequence[int], indices: Tensor
) -> Tensor:
    first = self.dim() - len(kernel_size)
    zeros = torch.zeros_like(self).flatten(first)
    return zeros.scatter_add(first, indices.flatten(first), grad_output.flatten(first)).reshape(self.shape)


# Histograms: the bins are half open but for the last, and what lies outside of all counts nowhere.


def _edges(x: Tensor, bins: int, span: Sequence[float] | None) -> Tensor:
    """Edges of `bins` equal bins from the least element to the largest, or over `span`; one value is widened to 1."""
    if span is not None:
        low = torch.full((), span[0], dtype=x.dtype, device=x.device)
        high = torch.full((), span[1], dtype=x.dtype, device=x.device)
    elif x.numel() == 0:
        low, high = (
            torch.zeros((), dtype=x.dtype, device=x.device),
            torch.ones((), dtype=x.dtype, device=x.device),
        )
    else:
        low, high = x.amin(), x.amax()
    single = low == high
    low, high = torch.where(single, low - 0.5, low), torch.where(single, high + 0.5, high)
    i = torch.arange(bins + 1, dtype=x.dtype, device=x.device)
    step = (high - low) / bins
    # From both ends, as linspace does.
    return torch.where(i < (bins + 1) // 2, low + step * i, high - step * (bins - i))


def _histogram(x: Tensor, edges: Sequence[Tensor], weight: Tensor | None, density: bool) -> Tensor:
    """Sums of weights of the rows of `x` (elements, dimensions) by bin, shaped as the bins are."""
    counts = [e.shape[0] - 1 for e in edges]
    flat = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    inside = torch.ones(x.shape[0], dtype=torch.bool, device=x.device)
    for d, (edge, bins) in enumerate(zip(edges, counts, strict=True)):
        column = x[:, d].contiguous()
        at = torch.bucketize(column, edge.contiguous(), right=True) - 1
        at = torch.where(column == edge[-1], bins - 1, at)
        inside = inside & (column >= edge[0]) & (column <= edge[-1])
        flat = flat * bins + at.clamp(0, bins - 1)
    ones = torch.ones(x.shape[0], dtype=x.dtype, device=x.device) if weight is None else weight.reshape(-1)
    hist = torch.zeros(math.prod(counts), dtype=x.dtype, device=x.device)
    hist = hist.index_add(0, flat, torch.where(inside, ones, 0)).reshape(counts)
    if density:
        hist = hist / hist.sum()
        for d, edge in enumerate(edges):
            hist = hist / edge.diff().reshape([-1 if k == d else 1 for k in range(len(edges))])
    return hist


def histogram_of_count(
    self: Tensor,
    bins: int = 100,
    *,
    range: Sequence[float] | None = None,
    weight: Tensor | None = None,
    density: bool = False,
) -> tuple[Tensor, Tensor]:
    edges = _edges(self, bins, range)
    return _histogram(self.reshape(-1, 1), [edges], weight, density), edges


def histogram_of_edges(
    self: Tensor, bins: Tensor, *, weight: Tensor | None = None, density: bool = False
) -> tuple[Tensor, Tensor]:
    return _histogram(self.reshape(-1, 1), [bins], weight, density), bins.clone()


def histogramdd_bin_edges(
    self: Tensor,
    bins: Sequence[int],
    *,
    range: Sequence[float] | None = None,
    weight: Tensor | None = None,
    density: bool = False,
) -> list[Tensor]:
    spans = [None if range is None else range[2 * d : 2 * d + 2] for d in builtins.range(len(bins))]
    columns = self.reshape(-1, len(bins)).unbind(1)
    return [_edges(x, n, span) for x, n, span in zip(columns, bins, spans, strict=True)]


def histogramdd_from_bin_cts(
    self: Tensor,
    bins: Sequence[int],
    *,
    range: Sequence[float] | None = None,
    weight: Tensor | None = None,
    density: bool = False,
) -> Tensor:
    edges = histogramdd_bin_edges(self, bins, range=range)
    return _histogram(self.reshape(-1, len(bins)), edges, weight, density)


def histogramdd_from_bin_tensors(
    self: Tensor, bins: Sequence[Tensor], *, weight: Tensor | None = None, density: bool = False
) -> Tensor:
    return _histogram(self.reshape(-1, len(bins)), bins, weight, density)


# Embedding rows


def embedding_renorm(self: Tensor, indices: Tensor, max_norm: float, norm_type: float) -> Tensor:
    """The rows that `indices` names, scaled down to `max_norm` where their norm is above it."""
    named = torch.zeros(self.shape[0], dtype=torch.bool, device=self.device)
    named = named.index_fill(0, indices.reshape(-1), True)
    norms = torch.linalg.vector_norm(self, norm_type, dim=1)
    scale = torch.where(named & (norms > max_norm), max_norm / (norms + 1e-7), 1)
    return self * scale.to(self.dtype).unsqueeze(1)


# Sampling at the points of a grid: along each dimension a point has taps, each with a weight.

_BILINEAR, _NEAREST, _BICUBIC = range(3)
_ZEROS, _BORDER, _REFLECTION = range(3)
_CUBIC = -0.75


class _Tap(NamedTuple):
    """Along one dimension: an index in range (`at`), whether the input has it, the weight, and the weight's slope."""

    at: Tensor
    inside: Tensor
    weight: Tensor
    slope: Tensor


def _clip(x: Tensor, slope: Tensor, size: int) -> tuple[Tensor, Tensor]:
    return x.clamp(0, size - 1), torch.where((x > 0) & (x < size - 1), slope, 0)


def _reflect(x: Tensor, slope: Tensor, twice_low: int, twice_high: int) -> tuple[Tensor, Tensor]:
    if twice_low == twice_high:
        return torch.zeros_like(x), torch.zeros_like(slope)
    low, span = twice_low / 2, (twice_high - twice_low) / 2
    slope = torch.where(x < low, -slope, slope)
    x = (x - low).abs()
    extra = torch.fmod(x, span)
    even = torch.floor(x / span) % 2 == 0
    return torch.where(even, extra + low, span - extra + low), torch.where(even, slope, -slope)


def _padded(x: Tensor, slope: Tensor, size: int, padding: int, align: bool) -> tuple[Tensor, Tensor]:
    if padding == _REFLECTION:
        x, slope = _reflect(x, slope, *((0, 2 * (size - 1)) if align else (-1, 2 * size - 1)))
    return (x, slope) if padding == _ZEROS else _clip(x, slope, size)


def _tap(x: Tensor, weight: Tensor, slope: Tensor, size: int) -> _Tap:
    inside = (x >= 0) & (x <= size - 1)
    return _Tap(torch.where(inside, x, 0).to(torch.int64), inside, weight, slope)


def _taps(coordinate: Tensor, size: int, mode: int, padding: int, align: bool) -> list[_Tap]:
    """The taps of points whose coordinates go from -1 to 1."""
    scale = (size - 1) / 2 if align else size / 2
    x = (coordinate + 1) * scale - (0.0 if align else 0.5)
    slope = torch.full_like(x, scale)
    if mode == _BICUBIC:
        left = torch.floor(x)
        t = x - left
        taps = []
        for k in (-1, 0, 1, 2):
            at, _ = _padded(left + k, slope, size, padding, align)
            weight, rate = _cubic(t - k)
            taps.append(_tap(at, weight, rate * slope, size))
        return taps
    x, slope = _padded(x, slope, size, padding, align)
    if mode == _NEAREST:
        return [_tap(torch.round(x), torch.ones_like(x), torch.zeros_like(x), size)]
    left = torch.floor(x)
    t = x - left
    return [_tap(left, 1 - t, -slope, size), _tap(left + 1, t, slope, size)]


def _cubic(t: Tensor) -> tuple[Tensor, Tensor]:
    """The cubic kernel and its derivative, for distances below 2."""
    a, d = _CUBIC, t.abs()
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    near_slope = (3 * (a + 2) * d - 2 * (a + 3)) * d
    far_slope = (3 * a * d - 10 * a) * d + 8 * a
    slope = torch.where(d <= 1, near_slope, far_slope) * torch.sign(t)
    return torch.where(d <= 1, near, far), slope


class _Corner(NamedTuple):
    """One combination of taps: flat (N, 1, points) index, validity, and the taps, dimension by dimension."""

    at: Tensor
    inside: Tensor
    taps: tuple[_Tap, ...]


def _corners(grid: Tensor, sizes: Sequence[int], mode: int, padding: int, align: bool) -> list[_Corner]:
    points = grid.flatten(1, -2)
    # The last coordinate of a point is that of the first spatial dimension.
    along = [
        _taps(points[..., len(sizes) - 1 - d], size, mode, padding, align) for d, size in enumerate(sizes)
    ]
    corners = []
    for taps in itertools.product(*along):
        index, inside = taps[0].at, taps[0].inside
        for tap, size in zip(taps[1:], sizes[1:], strict=True):
            index, inside = index * size + tap.at, inside & tap.inside
        corners.append(_Corner(index.unsqueeze(1), inside.unsqueeze(1), taps))
    return corners


def _product(factors: Sequence[Tensor]) -> Tensor:
    return math.prod(factors[1:], start=factors[0]).unsqueeze(1)


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def grid_sampler(
    input: Tensor, grid: Tensor, interpolation_mode: int, padding_mode: int, align_corners: bool
) -> Tensor:
    """(N, C, spatial) sampled at (N, points, dimensions)."""
    flat = _widened(input).flatten(2)
    total = flat.new_zeros((*flat.shape[:2], math.prod(grid.shape[1:-1])))
    wide = _widened(grid)
    for corner in _corners(wide, input.shape[2:], interpolation_mode, padding_mode, align_corners):
        value = torch.gather(flat, 2, corner.at.expand(-1, flat.shape[1], -1))
        weight = _product([tap.weight for tap in corner.taps])
        total = total + torch.where(corner.inside, value, 0) * weight
    return total.reshape(*input.shape[:2], *grid.shape[1:-1]).to(input.dtype)


def grid_sampler_backward(
    grad_output: Tensor,
    input: Tensor,
    grid: Tensor,
    interpolation_mode: int,
    padding_mode: int,
    align_corners: bool,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    flat, wide = _widened(input).flatten(2), _widened(grid)
    grad = _widened(grad_output).flatten(2)
    dims = input.dim() - 2
    d_input = torch.zeros_like(flat)
    d_points = [wide.new_zeros(wide.shape[0], math.prod(wide.shape[1:-1]))] * dims
    for corner in _corners(wide, input.shape[2:], interpolation_mode, padding_mode, align_corners):
        index = corner.at.expand(-1, flat.shape[1], -1)
        weights = [tap.weight for tap in corner.taps]
        if output_mask[0]:
            d_value = torch.where(corner.inside, grad * _product(weights), 0)
            d_input = d_input.scatter_add(2, index, d_value)
        if output_mask[1] and interpolation_mode != _NEAREST:
            value = torch.where(corner.inside, torch.gather(flat, 2, index), 0)
            d_weight = (grad * value).sum(1)
            for d in range(dims):
                factors = [tap.slope if i == d else tap.weight for i, tap in enumerate(corner.taps)]
                d_points[d] = d_points[d] + d_weight * _product(factors).squeeze(1)
    d_grid = torch.stack(d_points[::-1], -1).reshape(grid.shape).to(grid.dtype)
    d_input = d_input.reshape(input.shape).to(input.dtype)
    return d_input if output_mask[0] else None, d_grid if output_mask[1] else None


# The chunks are there to bound memory on a device that runs one operator at a time; a compiled program has its own
# plan of memory.


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    batch_chunk_size: int,
    acc_policy: str,
    acc_dtype: torch.dtype,
    allow_retain_graph: bool,
    compute_input_grad: bool,
    compute_linear_weight_grad: bool,
    compute_linear_bias_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss of (N, features), and the gradients that its backward scales."""
    x, w = input.to(acc_dtype), linear_weight.to(acc_dtype)
    wanted, log_probability, mass = _expected(
        x, w, target, linear_bias, weight, ignore_index, label_smoothing, acc_dtype
    )
    loss = -(wanted * log_probability).sum()
    slope = log_probability.exp() * wanted.sum(1, keepdim=True) - wanted
    if reduction == "mean":
        loss, slope = loss / mass, slope / mass
    none = input.new_empty
    return (
        loss.to(input.dtype),
        (slope @ w).to(input.dtype) if compute_input_grad else none((0, 0)),
        (slope.t() @ x).to(input.dtype) if compute_linear_weight_grad else none((0, 0)),
        slope.sum(0).to(input.dtype) if compute_linear_bias_grad else none((0,)),
    )


def linear_cross_entropy_rows(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    ignore_index: int,
    batch_chunk_size: int,
    acc_policy: str,
    acc_dtype: torch.dtype,
) -> Tensor:
    """The loss of each row."""
    x, w = input.to(acc_dtype), linear_weight.to(acc_dtype)
    wanted, log_probability, _ = _expected(x, w, target, linear_bias, weight, ignore_index, 0.0, acc_dtype)
    return -(wanted * log_probability).sum(1).to(input.dtype)


def _expected(
    x: Tensor,
    w: Tensor,
    target: Tensor,
    bias: Tensor | None,
    weight: Tensor | None,
    ignore_index: int,
    smoothing: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor | int]:
    """The weight of each class in each row, the logarithms of their probabilities, and what a mean divides by."""
    logits = x @ w.t() if bias is None else x @ w.t() + bias.to(dtype)
    classes = logits.shape[1]
    each = torch.ones(classes, dtype=dtype, device=x.device) if weight is None else weight.to(dtype)
    if target.is_floating_point():
        wanted = each * ((1 - smoothing) * target.to(dtype) + smoothing / classes)
        return wanted, logits.log_softmax(1), x.shape[0]
    kept = (target != ignore_index).unsqueeze(1)
    hit = (target.unsqueeze(1) == torch.arange(classes, device=x.device)) & kept
    one_hot = torch.where(hit, each, 0)
    wanted = (1 - smoothing) * one_hot + torch.where(kept, each, 0) * (smoothing / classes)
    return wanted, logits.log_softmax(1), one_hot.sum()


# Bags of embeddings: which bag an index lies in follows from the offsets.

_SUM, _MEAN, _MAX = range(3)


def embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = _SUM,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The bags (bags, features); the bag of each index; the size of each bag without padding; for `max`, the row
    that each element is from."""
    bags = offsets.shape[0] - include_last_offset
    place = torch.arange(indices.shape[0], dtype=offsets.dtype, device=indices.device)
    # An empty bag starts where the next one does, and the last of those has the index.
    bag = torch.searchsorted(offsets[:bags], place, right=True).to(offsets.dtype) - 1
    kept = indices != padding_idx
    size = torch.zeros(bags, dtype=offsets.dtype, device=weight.device)
    size = size.index_add(0, bag, kept.to(offsets.dtype))
    rows = weight[indices]
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(1)
    if mode == _MAX:
        least = torch.full((bags, weight.shape[1]), -math.inf, dtype=weight.dtype, device=weight.device)
        into = bag.unsqueeze(1).expand_as(rows)
        rows = torch.where(kept.unsqueeze(1), rows, -math.inf)
        most = least.scatter_reduce(0, into, rows, "amax")
        last = torch.full_like(most, indices.shape[0], dtype=offsets.dtype)
        wins = (rows == most[bag]) & kept.unsqueeze(1)
        at = torch.where(wins, place.unsqueeze(1), indices.shape[0])
        first = last.scatter_reduce(0, into, at, "amin").clamp(max=max(indices.shape[0] - 1, 0))
        filled = (size > 0).unsqueeze(1)
        source = indices[first] if indices.shape[0] else torch.zeros_like(first)
        return torch.where(filled, most, 0), bag, size, torch.where(filled, source.to(offsets.dtype), 0)
    rows = torch.where(kept.unsqueeze(1), rows, 0)
    sums = torch.zeros((bags, weight.shape[1]), dtype=weight.dtype, device=weight.device)
    sums = sums.index_add(0, bag, rows)
    if mode == _MEAN:
        sums = sums / size.clamp(min=1).unsqueeze(1).to(weight.dtype)
    return sums, bag, size, torch.zeros_like(size)


def embedding_bag_backward(
    grad: Tensor,
    indices: Tensor,
    offsets: Tensor,
    offset2bag: Tensor,
    bag_size: Tensor,
    maximum_indices: Tensor,
    num_weights: int,
    scale_grad_by_freq: bool,
    mode: int,
    sparse: bool,
    per_sample_weights: Tensor | None,
    padding_idx: int = -1,
) -> Tensor:
    if sparse:
        return NotImplemented  # a sparse gradient, which the compiler refuses by name
    return embedding_bag_dense_backward(
        grad,
        indices,
        offset2bag,
        bag_size,
        maximum_indices,
        num_weights,
        scale_grad_by_freq,
        mode,
        per_sample_weights,
        padding_idx,
    )


def embedding_bag_dense_backward(
    grad: Tensor,
    indices: Tensor,
    offset2bag: Tensor,
    bag_size: Tensor,
    maximum_indices: Tensor,
    num_weights: int,
    scale_grad_by_freq: bool,
    mode: int,
    per_sample_weights: Tensor | None,
    padding_idx: int = -1,
) -> Tensor:
    zeros = torch.zeros((num_weights, grad.shape[1]), dtype=grad.dtype, device=grad.device)
    if mode == _MAX:
        return zeros.scatter_add(0, maximum_indices, torch.where((bag_size > 0).unsqueeze(1), grad, 0))
    rows = grad[offset2bag]
    if mode == _MEAN:
        rows = rows / bag_size[offset2bag].clamp(min=1).unsqueeze(1).to(grad.dtype)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(1)
    if scale_grad_by_freq:
        count = torch.zeros(num_weights, dtype=grad.dtype, device=grad.device)
        count = count.index_add(0, indices, torch.ones_like(indices, dtype=grad.dtype))
        rows = rows / count[indices].unsqueeze(1)
    return zeros.index_add(0, indices, torch.where((indices != padding_idx).unsqueeze(1), rows, 0))


def embedding_bag_per_sample_weights_backward(
    grad: Tensor,
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    offset2bag: Tensor,
    mode: int,
    padding_idx: int = -1,
) -> Tensor:
    return torch.where(indices != padding_idx, (grad[offset2bag] * weight[indices]).sum(1), 0)


def native_channel_shuffle(self: Tensor, groups: int) -> Tensor:
    return self.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def soft_margin_loss_backward(grad_output: Tensor, self: Tensor, target: Tensor, reduction: int) -> Tensor:
    # Torch's own takes 1 from a sigmoid that is near it, and loses the digits that eager keeps.
    grad = -target * grad_output * torch.sigmoid(-target * self)
    return grad / self.numel() if reduction == 1 else grad


def conv_tbc(self: Tensor, weight: Tensor, bias: Tensor, pad: int = 0) -> Tensor:
    x = torch.conv1d(self.permute(1, 2, 0), weight.permute(2, 1, 0), bias, padding=pad)
    return x.permute(2, 0, 1).contiguous()


def weight_norm_backward(
    grad_w: Tensor, saved_v: Tensor, saved_g: Tensor, saved_norms: Tensor, dim: int
) -> tuple[Tensor, Tensor]:
    """Of `w = v * g / norm(v)`, with the norm over all dimensions but one; eager keeps short floats' norms wide."""
    others = [d for d in range(saved_v.dim()) if d != dim % saved_v.dim()]
    grad, v, g = (x.to(saved_norms.dtype) for x in (grad_w, saved_v, saved_g))
    along = grad * v
    along = along.sum(others, keepdim=True) if others else along
    grad_v = g / saved_norms * (grad - v * (along / saved_norms**2))
    return grad_v.to(saved_v.dtype), (along / saved_norms).to(saved_g.dtype)


def transformer_encoder_layer(
    src: Tensor,
    embed_dim: int,
    num_heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: Tensor,
    norm_bias_1: Tensor,
    norm_weight_2: Tensor,
    norm_bias_2: Tensor,
    ffn_weight_1: Tensor,
    ffn_bias_1: Tensor,
    ffn_weight_2: Tensor,
    ffn_bias_2: Tensor,
    mask: Tensor | None = None,
    mask_type: int | None = None,
) -> Tensor:
    """What `nn.TransformerEncoderLayer` is in inference. The mask says what is hidden, whatever its dtype: 0 of `[L, L]`, 1
    of keys, `[B, L]`, 2 of both, `[B, heads, L, L]`."""
    seen = None if mask is None else mask.to(torch.bool).logical_not()
    if seen is not None and mask_type == 1:
        seen = seen[:, None, None, :]

    def attend(x: Tensor) -> Tensor:
        heads = F.linear(x, qkv_weight, qkv_bias).unflatten(-1, (3, num_heads, embed_dim // num_heads))
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind()
        result = F.scaled_dot_product_attention(query, key, value, seen)
        return F.linear(result.transpose(1, 2).flatten(-2), proj_weight, proj_bias)

    def feed(x: Tensor) -> Tensor:
        hidden = F.linear(x, ffn_weight_1, ffn_bias_1)
        return F.linear(F.gelu(hidden) if use_gelu else F.relu(hidden), ffn_weight_2, ffn_bias_2)

    x = src
    for block, weight, bias in ((attend, norm_weight_1, norm_bias_1), (feed, norm_weight_2, norm_bias_2)):
        if norm_first:
            x = x + block(F.layer_norm(x, (embed_dim,), weight, bias, eps))
        else:
            x = F.layer_norm(x + block(x), (embed_dim,), weight, bias, eps)
    return x


OWN: dict[str, Callable[..., Any]] = {
    "aten::_transformer_encoder_layer_fwd": transformer_encoder_layer,
    "aten::soft_margin_loss_backward": soft_margin_loss_backward,
    "aten::_embedding_bag": embedding_bag,
    "aten::_embedding_bag_backward": embedding_bag_backward,
    "aten::_embedding_bag_dense_backward": embedding_bag_dense_backward,
    "aten::_embedding_bag_forward_only": embedding_bag,
    "aten::_embedding_bag_per_sample_weights_backward": embedding_bag_per_sample_weights_backward,
    "aten::embedding_renorm": embedding_renorm,
    "aten::histogram.bin_ct": histogram_of_count,
    "aten::histogram.bins_tensor": histogram_of_edges,
    "aten::_histogramdd_bin_edges": histogramdd_bin_edges,
    "aten::_histogramdd_from_bin_cts": histogramdd_from_bin_cts,
    "aten::_histogramdd_from_bin_tensors": histogramdd_from_bin_tensors,
    "aten::conv_tbc": conv_tbc,
    "aten::fractional_max_pool2d": fractional_max_pool2d,
    "aten::fractional_max_pool2d_backward": fractional_max_pool_backward,
    "aten::fractional_max_pool3d": fractional_max_pool3d,
    "aten::fractional_max_pool3d_backward": fractional_max_pool_backward,
    "aten::grid_sampler_2d_backward": grid_sampler_backward,
    "aten::grid_sampler_3d": grid_sampler,
    "aten::grid_sampler_3d_backward": grid_sampler_backward,
    "aten::native_channel_shuffle": native_channel_shuffle,
    "aten::_weight_norm_interface_backward": weight_norm_backward,
    "torch_nn::_linear_cross_entropy_batch_chunked": linear_cross_entropy,
    "torch_nn::_linear_cross_entropy_batch_chunked_no_reduction": linear_cross_entropy_rows,
}


def defaults() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """Those that this torch has; without a name the default overload."""
    with contextlib.suppress(ImportError):
        # Registers its operators, which torch itself only does once the loss is first used.
        importlib.import_module("torch.nn.modules.linear_cross_entropy")
    found = {}
    for name, function in OWN.items():
        namespace, _, op = name.partition("::")
        op, _, overload = op.partition(".")
        packet = getattr(getattr(torch.ops, namespace), op, None)
        if packet is not None:
            found[getattr(packet, overload or "default")] = function
    return found
