"""Rewritings of signal windows, frequencies and ranges into `arange`, as eager PyTorch computes them;
`decompositions` puts them in its table. A function takes what all overloads of its operator take."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _options(made: dict[str, Any]) -> dict[str, Any]:
    return {"dtype": made.get("dtype") or torch.get_default_dtype(), "device": made.get("device")}


def _window(length: int, periodic: bool, made: dict[str, Any], of: Callable[[Tensor, int], Tensor]) -> Tensor:
    """`of(i, last)` at every `i`; a periodic window's last sample is the one that is left out."""
    if length == 1:
        return torch.ones(1, **_options(made))
    last = length if periodic else length - 1
    return of(torch.arange(length, **_options(made)), max(last, 1))


def bartlett_window(window_length: int, periodic: bool = True, **made: Any) -> Tensor:
    def of(i: Tensor, last: int) -> Tensor:
        rising = i * (2 / last)
        return torch.minimum(rising, 2 - rising)

    return _window(window_length, periodic, made, of)


def blackman_window(window_length: int, periodic: bool = True, **made: Any) -> Tensor:
    def of(i: Tensor, last: int) -> Tensor:
        angle = i * (math.pi / last)
        return (angle * 4).cos() * 0.08 - (angle * 2).cos() * 0.5 + 0.42

    return _window(window_length, periodic, made, of)


def hamming_window(
    window_length: int, periodic: bool = True, alpha: float = 0.54, beta: float = 0.46, **made: Any
) -> Tensor:
    return _window(
        window_length, periodic, made, lambda i, last: (i * (2 * math.pi / last)).cos() * -beta + alpha
    )


def kaiser_window(window_length: int, periodic: bool = True, beta: float = 12.0, **made: Any) -> Tensor:
    def of(i: Tensor, last: int) -> Tensor:
        x = i * (2 / last) - 1
        return torch.special.i0(beta * (1 - x * x).clamp(min=0).sqrt()) / torch.special.i0(
            torch.full((), beta, dtype=i.dtype, device=i.device)
        )

    return _window(window_length, periodic, made, of)


def fft_fftfreq(n: int, d: float = 1.0, **made: Any) -> Tensor:
    i = torch.arange(n, **_options(made))
    return torch.where(i >= (n + 1) // 2, i - n, i) * (1 / (n * d))


def fft_rfftfreq(n: int, d: float = 1.0, **made: Any) -> Tensor:
    return torch.arange(n // 2 + 1, **_options(made)) * (1 / (n * d))


def range_(start: float, end: float, step: float = 1, **made: Any) -> Tensor:
    options = _options(made)
    count = int((end - start) / step) + 1  # unlike that of arange, the end is one of them
    return (start + torch.arange(count, dtype=torch.float64, device=options["device"]) * step).to(
        options["dtype"]
    )


OWN: dict[str, Callable[..., Any]] = {
    "bartlett_window": bartlett_window,
    "blackman_window": blackman_window,
    "fft_fftfreq": fft_fftfreq,
    "fft_rfftfreq": fft_rfftfreq,
    "hamming_window": hamming_window,
    "kaiser_window": kaiser_window,
    "range": range_,
}
