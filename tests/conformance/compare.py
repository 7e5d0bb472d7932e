"""What counts as equal: dtype, shape, and values within a tolerance of the largest finite element."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

TOLERANCES = {
    torch.float64: 1e-6,
    torch.float32: 1e-4,
    torch.bfloat16: 2e-2,
    torch.float16: 2e-2,
    torch.complex64: 1e-4,
    torch.complex128: 1e-6,
}


def assert_equal(actual: Any, expected: Any, *, values: bool = True) -> None:
    """Raises AssertionError where two trees of results differ; `values=False` compares types alone."""
    left, left_spec = pytree.tree_flatten(actual)
    right, right_spec = pytree.tree_flatten(expected)
    assert left_spec == right_spec, f"structure {left_spec}, not {right_spec}"
    for a, e in zip(left, right, strict=True):
        if isinstance(e, torch.Tensor):
            assert_tensor(a, e, values=values)
        elif values and isinstance(e, (int, float, complex)):
            torch.testing.assert_close(a, e, rtol=1e-6, atol=1e-6, equal_nan=True)
        elif values:
            assert a is e or bool(a == e), f"{a!r}, not {e!r}"


def assert_tensor(actual: Any, expected: torch.Tensor, *, values: bool) -> None:
    assert isinstance(actual, torch.Tensor), f"{type(actual).__name__}, not a tensor"
    assert actual.dtype == expected.dtype, f"dtype {actual.dtype}, not {expected.dtype}"
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, not {tuple(expected.shape)}"
    if not values:
        return
    tolerance = TOLERANCES.get(expected.dtype, 0.0)
    largest = 0.0
    if tolerance:
        finite = expected.detach()[torch.isfinite(expected.detach())]
        largest = float(finite.abs().max()) if finite.numel() else 0.0
    torch.testing.assert_close(
        actual, expected, rtol=tolerance, atol=tolerance * largest, equal_nan=True, check_stride=False
    )
