"""How far two tensors are apart, and who is nearer to the exact answer."""

from __future__ import annotations

import torch

SLACK = 4.0
"""Both a compiled result and eager's are sums in some order, so neither error is the larger one by right."""


def largest(x: torch.Tensor) -> float:
    """The largest finite magnitude; 0 where there is none."""
    finite = x[x.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference where `expected` is finite."""
    kind = torch.complex128 if expected.is_complex() else torch.float64
    difference = (actual.to(kind) - expected.to(kind)).abs()
    difference = difference[expected.isfinite()]
    return float(difference.max()) if difference.numel() else 0.0


def is_as_exact(
    actual: torch.Tensor, expected: torch.Tensor, exact: torch.Tensor, scale: float = 0.0
) -> bool:
    """Whether `actual` is as near to `exact`, the same in float64, as eager's `expected` is, within `SLACK`, or within
    one rounding of `scale`, what has cancelled. Where `exact` is not finite, `actual` must be equal to it."""
    if actual.shape != exact.shape or not (exact.is_floating_point() or exact.is_complex()):
        return False
    rest = ~exact.isfinite()
    if not torch.equal(actual[rest].nan_to_num(nan=7.0), exact[rest].to(actual.dtype).nan_to_num(nan=7.0)):
        return False
    theirs = error(expected, exact)
    if theirs != theirs:  # eager has NaN where there is a number
        theirs = torch.finfo(expected.dtype).eps * largest(exact)
    rounding = torch.finfo(actual.dtype).eps * scale
    return error(actual, exact) <= max(SLACK * theirs, rounding)
