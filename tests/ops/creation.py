"""Tensors made of nothing: constants and ranges."""

import torch

from tests.ops import case, f32, f64, i64

WINDOWS = {
    f.__name__: f
    for f in (torch.bartlett_window, torch.blackman_window, torch.hamming_window, torch.kaiser_window)
}

CASES = [
    case("full", lambda x: x + torch.full((2, 3), 1.5), f32(3)),
    case("full_bool", lambda x: x + torch.full((3,), True), i64(3), fixture=False),
    case("full_like_int", lambda x: torch.full_like(x, 7, dtype=torch.int64), f32(2, 3)),
    case("full_inf", lambda x: x + torch.full((3,), float("-inf")), f32(3), fixture=False),
    case("full_of_tensor", lambda x: torch.fill(x, x.sum()), f32(3), fixture=False),
    case("full_complex", lambda x: x + torch.full((3,), 1 + 2j), f32(3), fixture=False),
    case(
        "zeros_ones",
        lambda x: (torch.zeros(2, dtype=torch.bfloat16), torch.ones_like(x)),
        i64(3),
        fixture=False,
    ),
    case(
        "new_zeros_of_a_tangent",
        lambda x, y: torch.ops.aten._new_zeros_with_same_feature_meta(x, y, self_num_batch_dims=1) + 1,
        f32(2, 3),
        i64(4),
        fixture=False,
    ),
    case("new_zeros", lambda x: x.new_zeros(2, 0), f32(3), fixture=False),
    case("empty", lambda x: torch.empty(2, 3).fill_(1) + x, f32(3), fixture=False),
    case("scalar_tensor", lambda x: x * torch.tensor(2.5), f32(3), fixture=False),
    case("arange", lambda x: x + torch.arange(5), i64(5)),
    case("arange_step", lambda x: x + torch.arange(10, 0, -2), i64(5)),
    case("arange_float", lambda x: x + torch.arange(0, 1, 0.1), f32(10)),
    case("arange_bf16", lambda x: x + torch.arange(5, dtype=torch.bfloat16), f32(5), fixture=False),
    case("arange_whole_float", lambda x: x + torch.arange(3.0, 300.0, 3.0), f32(99), fixture=False),
    case("arange_empty", lambda x: x + torch.arange(0), i64(1), fixture=False),
    case("arange_i32", lambda x: x + torch.arange(2, 7, dtype=torch.int32), i64(5), fixture=False),
    case("linspace", lambda x: x + torch.linspace(0, 1, 7), f32(7), fixture=False),
    case("eye", lambda x: x @ torch.eye(3, 4), f32(3, 3), fixture=False),
    case("tril_indices", lambda x: x + torch.tril_indices(3, 3), i64(1), fixture=False),
    case("one_hot", lambda x: torch.nn.functional.one_hot(x, 5), i64(3, low=0, high=4), fixture=False),
    *(
        case(
            f"{name}_{how}",
            lambda x, f=f, periodic=how == "periodic": x * f(6, periodic=periodic),
            f32(6),
            fixture=False,
        )
        for name, f in WINDOWS.items()
        for how in ("periodic", "symmetric")
    ),
    case(
        "window_of_one",
        lambda x: x * torch.hamming_window(1) + torch.kaiser_window(1, False),
        f32(3),
        fixture=False,
    ),
    case("window_of_none", lambda x: x + torch.blackman_window(0), f32(1), fixture=False),
    case(
        "window_shape",
        lambda x: x * torch.hamming_window(7, True, 0.5, 0.5, dtype=torch.float64),
        f64(7),
        fixture=False,
    ),
    case("kaiser_window_beta", lambda x: x * torch.kaiser_window(9, False, 4.5), f32(9), fixture=False),
    case("fftfreq", lambda x: x * torch.fft.fftfreq(7, 0.5), f32(7), fixture=False),
    case("fftfreq_even", lambda x: x * torch.fft.fftfreq(6), f32(6), fixture=False),
    case("rfftfreq", lambda x: x * torch.fft.rfftfreq(7, 0.25), f32(4), fixture=False),
    case("range", lambda x: x + torch.ops.aten.range.default(0, 5), f32(6), fixture=False),
    case("range_step", lambda x: x + torch.ops.aten.range.step(3, 0.5, -0.5), f32(6), fixture=False),
]
