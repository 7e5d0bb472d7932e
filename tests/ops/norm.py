"""Layer, group, batch and RMS normalisation and their backward."""

import torch
import torch.nn.functional as F

from tests.ops import bf16, case, f32, f64


def batch_norm(training, momentum=0.1):
    # The running statistics are results: the case sees them updated.
    def fn(x, mean, var, weight, bias):
        mean, var = mean.detach().clone(), var.detach().clone()
        return F.batch_norm(x, mean, var, weight, bias, training, momentum), mean, var

    return fn


CASES = [
    case("layer_norm", lambda x, w, b: F.layer_norm(x, (5,), w, b), f32(2, 3, 5), f32(5), f32(5), train=True),
    case("layer_norm_bf16", lambda x, w, b: F.layer_norm(x, (64,), w, b), bf16(4, 64), bf16(64), bf16(64)),
    case("layer_norm_plain", lambda x: F.layer_norm(x, (3, 5)), f32(2, 3, 5), train=True),
    case("group_norm", lambda x, w, b: F.group_norm(x, 2, w, b), f32(2, 6, 4, 3), f32(6), f32(6), train=True),
    case(
        "batch_norm_train",
        batch_norm(True),
        f32(4, 3, 5),
        f32(3),
        f32(3, low=0.5),
        f32(3),
        f32(3),
        train=True,
    ),
    case(
        "batch_norm_eval",
        batch_norm(False),
        f32(4, 3, 5),
        f32(3),
        f32(3, low=0.5),
        f32(3),
        f32(3),
        train=True,
    ),
    case("rms_norm", lambda x, w: F.rms_norm(x, (5,), w, 1e-6), f32(2, 3, 5), f32(5), train=True),
    case(
        "layer_norm_no_bias",
        lambda x, w: F.layer_norm(x, (5,), w),
        f64(4, 5),
        f64(5),
        fixture=False,
        train=True,
    ),
    case("layer_norm_offset", lambda x: F.layer_norm(x, (64,)), f32(3, 64, low=9, high=11), fixture=False),
    case("layer_norm_empty", lambda x: F.layer_norm(x, (5,)), f32(0, 5), fixture=False),
    case(
        "layer_norm_all_dims",
        lambda x, w: F.layer_norm(x, (5,), w),
        f32(5),
        f32(5),
        fixture=False,
        train=True,
    ),
    case("group_norm_plain", lambda x: F.group_norm(x, 3), f32(2, 6), fixture=False, train=True),
    case(
        "group_norm_bf16",
        lambda x, w, b: F.group_norm(x, 2, w, b),
        bf16(2, 4, 9),
        bf16(4),
        bf16(4),
        fixture=False,
    ),
    case(
        "instance_norm",
        lambda x, w, b: F.instance_norm(x, None, None, w, b),
        f32(2, 3, 7),
        f32(3),
        f32(3),
        fixture=False,
        train=True,
    ),
    case(
        "batch_norm_no_stats",
        lambda x: F.batch_norm(x, None, None, training=True),
        f32(6, 3),
        fixture=False,
        train=True,
    ),
    case(
        "batch_norm_2d",
        batch_norm(True, 0.5),
        f32(2, 3, 4, 5),
        f32(3),
        f32(3, low=0.5),
        f32(3),
        f32(3),
        fixture=False,
        train=True,
    ),
    case(
        "batch_norm_bf16",
        batch_norm(True),
        bf16(8, 3, 9),
        f32(3),
        f32(3, low=0.5),
        f32(3),
        f32(3),
        fixture=False,
    ),
    case("rms_norm_plain", lambda x: F.rms_norm(x, (3, 5)), f32(2, 3, 5), fixture=False, train=True),
    case("rms_norm_bf16", lambda x, w: F.rms_norm(x, (64,), w), bf16(4, 64), bf16(64), fixture=False),
    case(
        "weight_norm",
        lambda v, g: torch._weight_norm(v, g, 0),
        f32(4, 3, 5),
        f32(4, 1, 1),
        train=True,
        fixture=False,
    ),
    case(
        "weight_norm_last",
        lambda v, g: torch._weight_norm(v, g, 2),
        f64(4, 3, 5),
        f64(1, 1, 5),
        train=True,
        fixture=False,
    ),
    case(
        "weight_norm_vector",
        lambda v, g: torch._weight_norm(v, g, 0),
        f32(4),
        f32(4),
        train=True,
        fixture=False,
    ),
    case(
        "weight_norm_bf16",
        lambda v, g: torch._weight_norm(v, g, 0),
        bf16(4, 6),
        bf16(4, 1),
        train=True,
        fixture=False,
    ),
]
