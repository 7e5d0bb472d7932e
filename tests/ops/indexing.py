"""Index, gather, scatter, embedding, masked writes."""

import torch
import torch.nn.functional as F

from tests.ops import Case, bf16, case, f32, i32, i64, mask, tensor, u8


def put(x, indices, values, accumulate=False):
    return torch.ops.aten.index_put(x, indices, values, accumulate)


def reduces(name: str, fn) -> list[Case]:
    """Every reduction, with and without the destination's own elements."""
    return [
        case(
            f"{name}_{reduce}_{'with' if own else 'without'}_self",
            lambda *a, r=reduce, own=own: fn(*a, r, own),
            *INPUTS[name],
            fixture=False,
        )
        for reduce in ("sum", "prod", "mean", "amax", "amin")
        for own in (True, False)
        if not (name == "index_reduce" and reduce == "sum")
    ]


BAGS, OFFSETS = torch.tensor([0, 2, 3, 3, 1, 1]), torch.tensor([0, 2, 2, 6])
"""The second bag is empty, and so is the last where the last offset starts one."""

INPUTS = {
    "scatter_reduce": (f32(4, 5), i64(3, 5, low=0, high=3), f32(3, 5)),
    "index_reduce": (f32(4, 5), i64(6, low=0, high=3), f32(6, 5)),
}


def repeated(size, dim=0):
    return lambda x, counts: torch.repeat_interleave(x, counts, dim=dim, output_size=size)


CASES = [
    case(
        "repeat_interleave",
        repeated(5, 1),
        f32(2, 3),
        i64(3, then=lambda _: torch.tensor([2, 0, 3])),
        train=True,
        fixture=False,
    ),
    case(
        "repeat_interleave_i32",
        repeated(3),
        f32(2),
        i32(2, then=lambda _: torch.tensor([0, 3]).int()),
        fixture=False,
    ),
    case("repeat_interleave_none", repeated(0), f32(2), i64(2, then=torch.zeros_like), fixture=False),
    case("repeat_interleave_empty", repeated(0), f32(0, 2), i64(0), fixture=False),
    case("index", lambda x, i: x[i], f32(5, 3), i64(2, 4, low=-5, high=4), train=True),
    case(
        "index_two_apart",
        lambda x, i, j: x[i, :, j],
        f32(4, 3, 5),
        i64(2, 1, low=0, high=3),
        i64(3, low=-5, high=4),
        train=True,
    ),
    case(
        "index_put_accumulate",
        lambda x, i, v: put(x, [i], v, True),
        f32(4, 3),
        i64(6, low=-4, high=3),
        f32(6, 3),
        train=True,
    ),
    case("index_put_mask", lambda x, m, v: put(x, [m], v), f32(3, 4), mask(3, 4), f32()),
    case("gather", lambda x, i: x.gather(1, i), f32(3, 4), i64(2, 6, low=0, high=3), train=True),
    case("scatter_src", lambda x, i, s: x.scatter(0, i, s), f32(4, 3), i64(1, 2, low=0, high=3), f32(2, 3)),
    case(
        "scatter_reduce_mean",
        lambda x, i, s: x.scatter_reduce(0, i, s, "mean"),
        f32(4, 3),
        i64(6, 3, low=0, high=3),
        f32(6, 3),
        train=True,
    ),
    case(
        "embedding",
        lambda i, w: F.embedding(i, w, padding_idx=1),
        i64(2, 5, low=0, high=3),
        f32(4, 6),
        train=True,
    ),
    case("masked_scatter", lambda x, m, s: x.masked_scatter(m, s), f32(3, 4), mask(3, 4), f32(15)),
    case("index_none_first", lambda x, i: x[:, i], f32(3, 4, 2), i64(3, low=0, high=3), fixture=False),
    case(
        "index_two_adjacent",
        lambda x, i, j: x[:, i, j],
        f32(3, 4, 5),
        i64(2, 1, low=0, high=3),
        i64(3, low=0, high=4),
        train=True,
        fixture=False,
    ),
    case(
        "index_none_between_front",
        lambda x, i, j: x[i, :, :, j],
        f32(4, 3, 2, 5),
        i64(2, low=0, high=3),
        i64(2, low=0, high=4),
        fixture=False,
    ),
    case(
        "index_all",
        lambda x, i, j: x[i, j],
        i64(4, 5),
        i64(3, low=0, high=3),
        i64(3, low=0, high=4),
        fixture=False,
    ),
    case(
        "index_zero_dim_index",
        lambda x, i: torch.ops.aten.index(x, [i]),
        f32(4, 5),
        i64(low=0, high=3),
        fixture=False,
    ),
    case("index_int32", lambda x, i: x[i], bf16(4, 5), i32(3, low=-4, high=3), fixture=False),
    case("index_empty", lambda x, i: x[i], f32(4, 5), i64(0), fixture=False),
    case(
        "index_complex", lambda x, i: x[i], tensor(torch.complex64, 4), i64(3, low=0, high=3), fixture=False
    ),
    case("index_bool", lambda x, i: x[i], mask(4, 3), i64(3, low=0, high=3), fixture=False),
    case(
        "index_put",
        lambda x, v: put(x, [torch.tensor([2, -1])], v),
        f32(4, 3),
        f32(3),
        train=True,
        fixture=False,
    ),
    case(
        "index_put_two",
        lambda x, v: put(x, [torch.tensor([2, -1]), None, torch.tensor([[0], [1]])], v),
        f32(4, 3, 2),
        f32(2, 1, 3),
        train=True,
        fixture=False,
    ),
    case(
        "index_put_bf16",
        lambda x, i, v: put(x, [i], v, True),
        bf16(4),
        i64(3, low=0, high=3, then=lambda t: torch.tensor([0, 1, 3])),
        bf16(3),
        fixture=False,
    ),
    case(
        "index_put_mask_rows",
        lambda x, v: put(x, [torch.tensor([True, False, True])], v),
        f32(3, 4),
        f32(2, 4),
        train=True,
        fixture=False,
    ),
    case(
        "index_put_mask_second",
        lambda x, v: put(x, [None, torch.tensor([True, False, True, True])], v),
        f32(3, 4),
        f32(3, 3),
        fixture=False,
    ),
    *(
        case(
            f"index_put_mask_and_index_{name}",
            lambda x, m, i, v: put(x, [m, i], v),
            f32(6, 4),
            mask(6, then=lambda _, chosen=chosen: torch.isin(torch.arange(6), torch.tensor(chosen))),
            i64(3, low=-4, high=3),
            f32(3),
            fixture=False,
        )
        for name, chosen in (("each", [0, 2, 3]), ("one", [4]))
    ),
    case(
        "index_put_mask_of_nothing",
        lambda x, m, v: put(x, [m], v),
        f32(3, 4),
        mask(3, then=torch.zeros_like),
        f32(0, 4),
        train=True,
        fixture=False,
    ),
    case(
        "index_put_mask_accumulate",
        lambda x, m, v: put(x, [m], v, True),
        i64(3, 4),
        mask(3, 4),
        i64(),
        fixture=False,
    ),
    case(
        "setitem_mask",
        lambda x, m: torch.where(m, x, 0).clone().masked_fill_(m, 3),
        f32(3, 4),
        mask(3, 4),
        fixture=False,
    ),
    case(
        "setitem",
        lambda x, i: x.clone().index_put_((i,), torch.tensor(1.0)),
        f32(5),
        i64(2, low=0, high=4),
        fixture=False,
    ),
    case(
        "index_select",
        lambda x, i: x.index_select(-1, i),
        f32(3, 4),
        i64(5, low=0, high=3),
        train=True,
        fixture=False,
    ),
    case(
        "index_select_zero_dim",
        lambda x, i: x.index_select(0, i),
        f32(),
        i64(1, low=0, high=0),
        fixture=False,
    ),
    case(
        "index_add",
        lambda x, i, s: x.index_add(1, i, s, alpha=2),
        f32(3, 4),
        i64(6, low=0, high=3),
        f32(3, 6),
        train=True,
        fixture=False,
    ),
    case(
        "index_add_int",
        lambda x, i, s: x.index_add(0, i, s),
        i64(4),
        i32(6, low=0, high=3),
        i64(6),
        fixture=False,
    ),
    case(
        "index_add_bool",
        lambda x, i, s: x.index_add(0, i, s),
        mask(4),
        i64(6, low=0, high=3),
        mask(6),
        fixture=False,
    ),
    case(
        "index_copy",
        lambda x, s: x.index_copy(1, torch.tensor([2, 0]), s),
        f32(3, 4),
        f32(3, 2),
        train=True,
        fixture=False,
    ),
    case("index_fill", lambda x: x.index_fill(0, torch.tensor([-1, 0]), 7), i64(4, 2), fixture=False),
    case(
        "index_fill_tensor",
        lambda x, v: x.index_fill(1, torch.tensor([1, 2]), v),
        f32(3, 4),
        f32(),
        fixture=False,
    ),
    case(
        "gather_negative_dim",
        lambda x, i: x.gather(-2, i),
        i64(3, 4),
        i64(5, 4, low=0, high=2),
        fixture=False,
    ),
    case("gather_zero_dim", lambda x, i: x.gather(0, i), f32(), i64(low=0, high=0), fixture=False),
    case("gather_one_dim", lambda x, i: x.gather(0, i), bf16(5), i64(7, low=0, high=4), fixture=False),
    case("gather_empty", lambda x, i: x.gather(0, i), f32(3, 4), i64(0), fixture=False),
    case(
        "scatter_value",
        lambda x, i: x.scatter(1, i, 2.5),
        f32(3, 4),
        i64(3, 1, low=0, high=3),
        train=True,
        fixture=False,
    ),
    case(
        "scatter_one_dim", lambda x, s: x.scatter(0, torch.tensor([3, 1]), s), bf16(5), bf16(2), fixture=False
    ),
    case(
        "scatter_zero_dim",
        lambda x, i, s: x.scatter(0, i, s),
        f32(),
        i64(low=0, high=0),
        f32(),
        fixture=False,
    ),
    case(
        "scatter_value_add",
        lambda x, i: x.scatter(1, i, 2, reduce="add"),
        i64(3, 4),
        i64(3, 6, low=0, high=3),
        fixture=False,
    ),
    case(
        "scatter_multiply",
        lambda x, i, s: x.scatter(1, i, s, reduce="multiply"),
        f32(3, 4),
        i64(2, 6, low=0, high=3),
        f32(3, 6),
        fixture=False,
    ),
    case(
        "scatter_add",
        lambda x, i, s: x.scatter_add(0, i, s),
        f32(4, 3),
        i64(6, 2, low=0, high=3),
        f32(6, 2),
        train=True,
        fixture=False,
    ),
    case(
        "scatter_add_bool",
        lambda x, i, s: x.scatter_add(0, i, s),
        mask(4),
        i64(6, low=0, high=3),
        mask(6),
        fixture=False,
    ),
    case(
        "scatter_add_bf16",
        lambda x, i, s: x.scatter_add(0, i, s),
        bf16(4),
        i64(16, low=0, high=3),
        bf16(16),
        fixture=False,
    ),
    case(
        "scatter_mean_int",
        lambda x, i, s: x.scatter_reduce(0, i, s, "mean"),
        i64(4),
        i64(16, low=0, high=3),
        i64(16),
        fixture=False,
    ),
    case(
        "scatter_amax_train",
        lambda x, i, s: x.scatter_reduce(0, i, s, "amax"),
        f32(4, 3),
        i64(6, 3, low=0, high=3),
        f32(6, 3),
        train=True,
        fixture=False,
    ),
    case(
        "scatter_prod_train",
        lambda x, i, s: x.scatter_reduce(0, i, s, "prod"),
        f32(4, 3),
        i64(3, 3, low=0, high=3),
        f32(3, 3),
        train=True,
        fixture=False,
    ),
    *reduces("scatter_reduce", lambda x, i, s, r, own: x.scatter_reduce(0, i, s, r, include_self=own)),
    *reduces("index_reduce", lambda x, i, s, r, own: x.index_reduce(0, i, s, r, include_self=own)),
    case("take", lambda x, i: x.take(i), f32(3, 4), i64(2, 5, low=-12, high=11), train=True, fixture=False),
    case(
        "put",
        lambda x, i, s: x.put(i, s, accumulate=True),
        f32(3, 4),
        i64(5, low=-12, high=11),
        f32(5),
        train=True,
        fixture=False,
    ),
    case("masked_fill", lambda x, m: x.masked_fill(m, float("-inf")), bf16(3, 4), mask(4), fixture=False),
    case(
        "masked_fill_tensor",
        lambda x, m, v: x.masked_fill(m, v),
        f32(3, 4),
        mask(3, 1),
        f32(),
        train=True,
        fixture=False,
    ),
    case(
        "masked_scatter_broadcast",
        lambda x, m, s: x.masked_scatter(m, s),
        f32(3, 4),
        mask(4),
        f32(12),
        fixture=False,
    ),
    case(
        "masked_scatter_train",
        lambda x, s: x.masked_scatter(torch.tensor([True, False, True]), s),
        f32(3),
        f32(3),
        train=True,
        fixture=False,
    ),
    case(
        "nonzero_static", lambda x: torch.nonzero_static(x, size=4), i64(3, 4, low=-1, high=1), fixture=False
    ),
    case(
        "nonzero_static_fill",
        lambda x: torch.nonzero_static(x, size=9, fill_value=7),
        mask(3, 2),
        fixture=False,
    ),
    case(
        "embedding_bf16",
        lambda i, w: F.embedding(i, w),
        i64(9, low=0, high=3),
        bf16(4, 6),
        train=True,
        fixture=False,
    ),
    case(
        "embedding_scaled",
        lambda i, w: F.embedding(i, w, scale_grad_by_freq=True),
        i32(2, 9, low=0, high=3),
        f32(4, 6),
        train=True,
        fixture=False,
    ),
    case(
        "embedding_empty",
        lambda i, w: F.embedding(i, w),
        i64(0, 2, low=0, high=3),
        f32(4, 6),
        train=True,
        fixture=False,
    ),
    case("one_hot", lambda x: F.one_hot(x, 5), i64(4, low=0, high=4), fixture=False),
    *(
        case(
            f"embedding_bag_{mode}_{name}",
            lambda w, mode=mode, options=options: F.embedding_bag(BAGS, w, OFFSETS, mode=mode, **options),
            f32(5, 3),
            train=True,
            fixture=False,
        )
        for mode in ("sum", "mean", "max")
        for name, options in (
            ("plain", {}),
            ("padded", {"padding_idx": 3, "include_last_offset": True}),
            *((("scaled", {"scale_grad_by_freq": True}),) if mode != "max" else ()),
        )
    ),
    case(
        "embedding_bag_weighted",
        lambda w, each: F.embedding_bag(BAGS, w, OFFSETS, mode="sum", per_sample_weights=each),
        f32(5, 3),
        f32(6),
        train=True,
        fixture=False,
    ),
    case(
        "embedding_bag_inference",
        lambda w: F.embedding_bag(BAGS.reshape(2, 3), w, mode="max", padding_idx=1),
        f32(5, 3),
        fixture=False,
    ),
    case("index_u8", lambda x, i: x[i], u8(4, 3), i64(3, low=0, high=3), fixture=False),
    case(
        "embedding_renorm",
        lambda w, i: (torch.nn.functional.embedding(i, w.clone(), max_norm=1.0), w),
        f32(6, 3),
        i64(4, low=0, high=5),
        fixture=False,
    ),
]
