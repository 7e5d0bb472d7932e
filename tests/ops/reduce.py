"""Reductions: sums, extremes, their places, logic, moments and norms."""

import torch

from tests.ops import bf16, case, f32, f64, i64, mask, tensor, u8

aten = torch.ops.aten


def with_nan(t):
    return t.index_fill(-1, torch.tensor([1]), float("nan"))


CASES = [
    case("histc", lambda x: torch.histc(x, bins=5, min=-1, max=2), f32(17)),
    case("histc_of_data", lambda x: torch.histc(x, bins=4), f32(3, 5), fixture=False),
    case("histc_flat", lambda x: torch.histc(x * 0, bins=4), f32(5), fixture=False),
    case("sum_dim", lambda x: x.sum(-1, keepdim=True), f32(2, 3, 4), train=True),
    case("sum_bf16", lambda x: x.sum((0, 2)), bf16(4, 3, 50)),
    case("sum_bool", torch.sum, mask(3, 5)),
    case("mean_all", torch.mean, f32(3, 5), train=True),
    case("amax_nan", lambda x: x.amax(1), f32(3, 4, then=with_nan)),
    case("max_dim", lambda x: torch.max(x, -2), f32(4, 3), train=True),
    case("argmax_ties", lambda x: x.argmax(1), i64(6, 7, low=0, high=2)),
    case("any_dims", lambda x: torch.any(x, (0, -1)), mask(2, 3, 4)),
    case("var_mean", lambda x: torch.var_mean(x, 1), f32(3, 6), train=True),
    case("vector_norm", lambda x: torch.linalg.vector_norm(x, dim=1), f32(3, 6), train=True),
    case("sum_empty", lambda x: x.sum(1), f32(3, 0), fixture=False),
    case("sum_0d", lambda x: x.sum(0), f32(), fixture=False),
    case("sum_no_dims", lambda x: x.sum(()), f32(2, 3), fixture=False),
    case("sum_dtype", lambda x: x.sum(dtype=torch.float64), i64(9), fixture=False),
    case("sum_u8", torch.sum, u8(400), fixture=False),
    case("sum_complex", lambda x: x.sum(0), tensor(torch.complex64, 3, 4), fixture=False),
    case("mean_empty", torch.mean, f32(0), fixture=False),
    case("mean_bf16", lambda x: x.mean((0, -1), keepdim=True), bf16(4, 3, 50), fixture=False),
    case("nansum", torch.nansum, f32(3, 4, then=with_nan), fixture=False),
    case("prod", lambda x: x.prod(), i64(5), fixture=False),
    case("prod_dim", lambda x: x.prod(1), f32(3, 4), fixture=False, train=True),
    case("prod_bool", lambda x: x.prod(0), mask(2, 5), fixture=False),
    case("amin_bool", lambda x: x.amin((0, 1)), mask(2, 5), fixture=False),
    case("amax_all", lambda x: x.amax(), bf16(4, 6), fixture=False, train=True),
    case("max_all", torch.max, i64(4, 6), fixture=False),
    case("min_all", torch.min, f32(4, 6), fixture=False, train=True),
    case("min_dim_bool", lambda x: torch.min(x, 1), mask(6, 3), fixture=False),
    case("max_dim_0d", lambda x: torch.max(x, 0), f32(), fixture=False),
    case("max_dim_nan", lambda x: torch.max(x, 1, keepdim=True), f32(2, 5, then=with_nan), fixture=False),
    case("aminmax", lambda x: torch.aminmax(x, dim=-1), f32(4, 6), fixture=False),
    case("argmin_all", lambda x: x.argmin(), f32(4, 6), fixture=False),
    case("argmax_all_keepdim", lambda x: x.argmax(keepdim=True), f32(4, 6), fixture=False),
    case("argmin_nan", lambda x: x.argmin(0), bf16(4, 6, then=with_nan), fixture=False),
    case("argmax_0d", lambda x: x.argmax(), f32(), fixture=False),
    case("any", torch.any, f32(3, 3), fixture=False),
    case("any_u8", lambda x: torch.any(x, 1), u8(4, 3, high=1), fixture=False),
    case("any_no_dims", lambda x: aten.any.dims(x, []), i64(4, 3, low=0, high=1), fixture=False),
    case("all", torch.all, mask(3), fixture=False),
    case("all_dim", lambda x: torch.all(x, -1, keepdim=True), f32(3, 3), fixture=False),
    case("all_empty", lambda x: torch.all(x, 0), f32(0, 3), fixture=False),
    case("count_nonzero", lambda x: torch.count_nonzero(x, 1), i64(4, 6, low=-1, high=1), fixture=False),
    case(
        "var_uncorrected",
        lambda x: torch.var(x, (0, 2), correction=0),
        f64(3, 2, 6),
        fixture=False,
        train=True,
    ),
    case("var_of_one", lambda x: torch.var(x, 0), f32(1, 3), fixture=False),
    case("var_complex", lambda x: torch.var(x, 0), tensor(torch.complex64, 5, 3), fixture=False),
    case("std_bf16", lambda x: torch.std(x, -1), bf16(3, 60), fixture=False),
    case("std_mean", lambda x: torch.std_mean(x, 1, keepdim=True), f32(3, 6), fixture=False, train=True),
    case(
        "cdist", lambda x, y: torch.cdist(x, y, p=3.0), f32(2, 3, 4), f32(2, 5, 4), train=True, fixture=False
    ),
    case(
        "cdist_of_nothing",
        lambda x, y: torch.cdist(x, y, p=float("inf")),
        f32(3, 0),
        f32(2, 0),
        fixture=False,
    ),
    case("norm_1", lambda x: torch.linalg.vector_norm(x, 1), bf16(3, 6), fixture=False),
    case("norm_3", lambda x: torch.linalg.vector_norm(x, 3, dim=0), f32(3, 6), fixture=False, train=True),
    case("norm_0", lambda x: torch.linalg.vector_norm(x, 0), f32(3, 6), fixture=False),
    case("norm_inf", lambda x: torch.linalg.vector_norm(x, float("inf"), dim=1), f32(3, 6), fixture=False),
    case("norm_complex", lambda x: torch.linalg.vector_norm(x), tensor(torch.complex64, 4), fixture=False),
    case("norm_dtype", lambda x: torch.norm(x, dim=1, dtype=torch.float32), bf16(3, 6), fixture=False),
    case(
        "logsumexp",
        lambda x: torch.logsumexp(x, (0, -1), keepdim=True),
        f32(3, 2, 6),
        fixture=False,
        train=True,
    ),
    case(
        "logsumexp_inf",
        lambda x: torch.logsumexp(x, 1),
        f32(2, 3, then=lambda t: t * float("inf")),
        fixture=False,
    ),
    case("logsumexp_bf16", lambda x: torch.logsumexp(x, 1), bf16(3, 60), fixture=False),
    case("hash_tensor", torch.hash_tensor, f32(3, 4)),
    case("hash_tensor_dim", lambda x: torch.hash_tensor(x, 1, keepdim=True), i64(3, 4), fixture=False),
    case("histogram", lambda x: torch.histogram(x, 7), f32(50), fixture=False),
    case(
        "histogram_range",
        lambda x: torch.histogram(x, 5, range=(-1.0, 1.0), density=True),
        f32(50),
        fixture=False,
    ),
    case(
        "histogram_edges",
        lambda x: torch.histogram(x, torch.tensor([-1.0, 0.0, 0.5, 2.0])),
        f32(50),
        fixture=False,
    ),
    case("histogram_one_value", lambda x: torch.histogram(x * 0 + 3, 4), f32(5), fixture=False),
    case(
        "histogramdd",
        lambda x, w: torch.histogramdd(x, [3, 4], weight=w)[0],
        f32(40, 2),
        f32(40, low=0.1),
        fixture=False,
    ),
]
