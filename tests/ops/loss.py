"""Losses that are kept whole or have no decomposition."""

import torch
import torch.nn.functional as F

from tests.ops import bf16, case, f32, i64

CLASS_WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.25, 1.5])


def nll(**kw):
    return lambda x, target: F.nll_loss(torch.log_softmax(x, 1 if x.dim() > 1 else 0), target, **kw)


def weighted(**kw):
    return nll(weight=CLASS_WEIGHT, **kw)


def labels(*shape):
    return i64(*shape, low=0, high=4)


def ended(target):
    """Distinct targets, ended by -1, as the multilabel losses want them."""
    target = torch.arange(5).repeat(target.shape[0], 1)
    return target.masked_fill(target == 3, -1)


CASES = [
    case("nll_mean", nll(), f32(6, 5), labels(6), train=True),
    case("nll_weighted", weighted(ignore_index=2), f32(6, 5), labels(6), train=True),
    case("nll_none", nll(reduction="none", ignore_index=0), f32(6, 5), labels(6), train=True),
    case("nll_2d", nll(), f32(2, 5, 3, 4), labels(2, 3, 4), train=True),
    case(
        "cross_entropy_bf16",
        F.cross_entropy,
        bf16(6, 50),
        labels(6),
        train=True,
    ),
    case(
        "nll_sum_2d",
        weighted(reduction="sum", ignore_index=1),
        f32(2, 5, 3, 4),
        labels(2, 3, 4),
        fixture=False,
        train=True,
    ),
    case("nll_none_2d", nll(reduction="none"), f32(2, 5, 3, 4), labels(2, 3, 4), fixture=False, train=True),
    case("nll_one_sample", nll(), f32(5), labels(), fixture=False, train=True),
    case("nll_all_ignored", nll(ignore_index=0), f32(3, 5), i64(3, low=0, high=0), fixture=False),
    case(
        "cross_entropy_smooth",
        lambda x, t: F.cross_entropy(x, t, label_smoothing=0.1),
        f32(6, 5),
        labels(6),
        fixture=False,
        train=True,
    ),
    case("multi_margin", F.multi_margin_loss, f32(6, 5), labels(6), train=True),
    case(
        "multi_margin_squared",
        lambda x, t: F.multi_margin_loss(x, t, 2, 0.5, CLASS_WEIGHT, reduction="none"),
        f32(6, 5),
        labels(6),
        fixture=False,
        train=True,
    ),
    case("multilabel_margin", F.multilabel_margin_loss, f32(4, 5), i64(4, 5, then=ended), train=True),
    case(
        "multilabel_margin_none",
        lambda x, t: F.multilabel_margin_loss(x, t, reduction="none"),
        f32(4, 5),
        i64(4, 5, then=ended),
        fixture=False,
        train=True,
    ),
]
