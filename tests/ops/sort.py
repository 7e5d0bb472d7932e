"""Sort, topk, order statistics, searchsorted."""

import torch

from tests.ops import bf16, case, f32, i32, i64, mask, u8

nan = float("nan")


def some_nan(t: torch.Tensor) -> torch.Tensor:
    return t.index_fill(-1, torch.tensor([1, 4]), nan)


def rising(t: torch.Tensor) -> torch.Tensor:
    return t.sort().values


CASES = [
    case("sort", lambda x: x.sort(-1), f32(3, 5), train=True),
    case("topk", lambda x: x.topk(2), f32(3, 5), train=True),
    case("median_dim", lambda x: x.median(1), f32(2, 5)),
    case("mode", lambda x: x.mode(-1), i64(3, 9, low=0, high=3)),
    case("searchsorted", torch.searchsorted, f32(3, 6, then=rising), f32(3, 4)),
    case(
        "sort_descending_stable",
        lambda x: x.sort(dim=0, descending=True, stable=True),
        i64(20, low=0, high=3),
        fixture=False,
    ),
    case("sort_stable_nan", lambda x: x.sort(stable=True), f32(2, 7, then=some_nan), fixture=False),
    case(
        "sort_descending_nan",
        lambda x: x.sort(stable=True, descending=True),
        f32(2, 7, then=some_nan),
        fixture=False,
    ),
    case("sort_bool", lambda x: x.sort(stable=True), mask(9), fixture=False),
    case("sort_bf16", lambda x: x.sort(stable=True, dim=0), bf16(9, 2), fixture=False),
    case("sort_u8", lambda x: x.sort(stable=True, dim=0), u8(9), fixture=False),
    case("sort_zero_dim", lambda x: x.sort(), f32(), fixture=False),
    case("sort_empty", lambda x: x.sort(), f32(2, 0), fixture=False),
    case("argsort", lambda x: x.argsort(0), f32(7), fixture=False),
    case("msort", torch.msort, f32(4, 3), fixture=False),
    case("topk_smallest", lambda x: x.topk(3, dim=0, largest=False), f32(5, 2), fixture=False),
    case("topk_zero_dim", lambda x: x.topk(1), f32(), fixture=False),
    case("topk_nan", lambda x: x.topk(3).values, f32(7, then=some_nan), fixture=False),
    case("kthvalue", lambda x: x.kthvalue(2, 1, keepdim=True), f32(3, 5), train=True, fixture=False),
    case("kthvalue_int", lambda x: x.kthvalue(4)[0], i32(9), fixture=False),
    case("median", torch.median, f32(4, 5), train=True, fixture=False),
    case("median_even", torch.median, i64(6), fixture=False),
    case("median_nan", lambda x: x.median(1), f32(2, 7, then=some_nan), fixture=False),
    case("median_all_nan", torch.median, f32(7, then=some_nan), fixture=False),
    case("nanmedian", torch.nanmedian, f32(2, 7, then=some_nan), fixture=False),
    case("nanmedian_dim", lambda x: x.nanmedian(-1, keepdim=True), f32(2, 7, then=some_nan), fixture=False),
    case("nanmedian_only_nan", lambda x: x.nanmedian(0), f32(3, then=lambda t: t * nan), fixture=False),
    case("median_zero_dim", lambda x: x.median(0), f32(), fixture=False),
    case(
        "mode_keepdim", lambda x: x.mode(0, keepdim=True), f32(9, 2, then=lambda t: t.round()), fixture=False
    ),
    case("mode_one", lambda x: x.mode(), i64(1), fixture=False),
    case(
        "searchsorted_right",
        lambda s, v: torch.searchsorted(s, v, right=True),
        i64(9, then=rising),
        i64(3, 4),
        fixture=False,
    ),
    case(
        "searchsorted_side",
        lambda s, v: torch.searchsorted(s, v, side="right", out_int32=True),
        f32(9, then=rising),
        f32(),
        fixture=False,
    ),
    case("searchsorted_number", lambda s: torch.searchsorted(s, 0.5), f32(9, then=rising), fixture=False),
    case("searchsorted_nan", torch.searchsorted, f32(9, then=rising), f32(7, then=some_nan), fixture=False),
    case(
        "searchsorted_sorter",
        lambda s, v: torch.searchsorted(s, v, sorter=s.argsort()),
        f32(9),
        f32(5),
        fixture=False,
    ),
    case(
        "searchsorted_long",
        torch.searchsorted,
        i64(3000, low=0, high=2000, then=rising),
        i64(7, 9, low=-5, high=2005),
        fixture=False,
    ),
    case(
        "searchsorted_long_rows",
        lambda s, v: torch.searchsorted(s, v, right=True),
        i32(2, 2000, high=900, then=rising),
        i32(2, 9, high=1000),
        fixture=False,
    ),
    case("bucketize", torch.bucketize, f32(3, 4), f32(6, then=rising), fixture=False),
    case(
        "bucketize_right",
        lambda x, b: torch.bucketize(x, b, right=True),
        i64(9),
        i64(6, then=rising),
        fixture=False,
    ),
]
