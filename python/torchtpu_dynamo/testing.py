"""Comparison of compiled functions with eager ones, for tests of this package and of code that uses it.

Compares everything a caller can see: results, gradients, strides, arguments and module state changed in
place. Nothing here is used outside of tests."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from .state import leaves_by_path


def assert_matches_eager(
    fn: Callable[..., Any],
    *args: Any,
    train: bool = False,
    rtol: float | None = None,
    atol: float | None = None,
    check_stride: bool = True,
    backend: str | Callable[..., Any] = "tpu",
    dynamic: bool | None = False,
    options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Runs `fn` eagerly and compiled on copies of the arguments, from one seed, and compares.

    With `train`, also the gradients of the sum of all floating-point results. `rtol` and `atol` are those of
    `torch.testing.assert_close`. Returns the compiled results. Raises AssertionError.
    """
    expected = _observe(fn, args, kwargs, train, lambda f: f)
    torch._dynamo.reset()
    actual = _observe(
        fn,
        args,
        kwargs,
        train,
        lambda f: torch.compile(f, backend=backend, fullgraph=True, dynamic=dynamic, options=options),
    )
    for what, value in expected.items():
        assert_same(
            actual[what], value, what, rtol=rtol, atol=atol, check_stride=check_stride and what == "results"
        )
    return actual["results"]


def assert_same(
    actual: Any,
    expected: Any,
    what: str = "value",
    *,
    rtol: float | None = None,
    atol: float | None = None,
    check_stride: bool = False,
) -> None:
    """Compares two nests of values leaf by leaf. Raises AssertionError that names the leaf."""
    actual_leaves, actual_spec = pytree.tree_flatten(actual)
    leaves, spec = leaves_by_path(expected), pytree.tree_structure(expected)
    assert actual_spec == spec, f"{what}: {actual_spec} instead of {spec}"
    for got, (path, wanted) in zip(actual_leaves, leaves, strict=True):
        where = f"{what}{path}"
        if not isinstance(wanted, torch.Tensor):
            assert type(got) is type(wanted), f"{where}: {got!r} instead of {wanted!r}"
            assert got == wanted, f"{where}: {got!r} instead of {wanted!r}"
            continue
        torch.testing.assert_close(
            got,
            wanted,
            rtol=rtol,
            atol=atol,
            equal_nan=True,
            msg=functools.partial("{}: {}".format, where),
        )
        if check_stride and is_dense(wanted):
            assert strides(got) == strides(wanted), f"{where}: strides {got.stride()}, not {wanted.stride()}"
        assert got.requires_grad == wanted.requires_grad, f"{where}: requires_grad is {got.requires_grad}"


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether the tensor fills its memory without gaps or overlaps. Results of compiled functions always
    do, even where eager returns a slice or an expanded view of something larger."""
    return torch.ops.aten.is_non_overlapping_and_dense(tensor)


def strides(tensor: torch.Tensor) -> list[int]:
    """The strides that matter: those of dimensions longer than one."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


def _observe(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    train: bool,
    compile: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> dict[str, Any]:
    """Everything that can be seen of one call."""
    # One deepcopy for all, so that what is shared stays shared.
    fn, args, kwargs = copy.deepcopy((fn, args, kwargs))
    torch.manual_seed(0)
    with torch.set_grad_enabled(train and torch.is_grad_enabled()):
        results = compile(fn)(*args, **kwargs)
        if train:
            floats = [
                t for t in pytree.tree_leaves(results) if isinstance(t, torch.Tensor) and t.requires_grad
            ]
            torch.autograd.backward([t.abs().sum() if t.is_complex() else t.sum() for t in floats])
    seen: dict[str, Any] = {"results": results, "arguments": (args, kwargs)}
    inputs = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    if isinstance(fn, torch.nn.Module):
        seen["state"] = dict(fn.state_dict())
        inputs += list(fn.parameters())
    if train:
        seen["gradients"] = [t.grad for t in inputs if t.is_leaf and t.requires_grad]
    return seen
