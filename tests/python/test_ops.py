"""Every case of tests/ops: compiled against eager, values and gradients, under torch.testing's tolerances.

Where they are exceeded, the same case in float64 decides: both results are rounded, and eager's may be the worse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.exceptions import refusal, tolerance
from tests.numerics import is_as_exact
from tests.ops import Case, families
from torch.utils import _pytree as pytree

# `make test-torch` runs the sample against an older torch.
CASES = [
    pytest.param(family, c, id=f"{family}-{c.name}", marks=[pytest.mark.sample] if i % 8 == 0 else [])
    for family, cases in families().items()
    for i, c in enumerate(cases)
]


def leaves(tree: Any) -> list[torch.Tensor]:
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, torch.Tensor)]


def wide(x: Any) -> Any:
    if isinstance(x, torch.Tensor) and (x.is_floating_point() or x.is_complex()):
        return x.to(torch.complex128 if x.is_complex() else torch.float64)
    return x


def run(fn: Any, case: Case, exact: bool = False) -> tuple[Any, list[torch.Tensor | None]]:
    """Results of one run, and with `train` the gradients of its inputs for fixed cotangents."""
    inputs = case.make_inputs()
    if exact:
        inputs = pytree.tree_map(wide, inputs)
    tensors = [x for x in leaves(inputs) if x.is_floating_point() or x.is_complex()]
    if case.train:
        for x in tensors:
            x.requires_grad_()
    torch.manual_seed(0)
    out = fn(*inputs)
    if not case.train:
        return out, []
    outputs = [x for x in leaves(out) if x.requires_grad]
    generator = torch.Generator().manual_seed(1)
    # As coarse as the coarsest dtype, so that each dtype has the same.
    drawn = [torch.randn(x.shape, generator=generator, dtype=torch.float64).bfloat16() for x in outputs]
    cotangents = [c.to(x.dtype) for c, x in zip(drawn, outputs, strict=True)]
    return out, list(torch.autograd.grad(outputs, tensors, cotangents, allow_unused=True))


@pytest.mark.parametrize(("family", "case"), CASES)
def test_matches_eager(family: str, case: Case) -> None:
    if refused := refusal(f"{family}/{case.name}"):
        pytest.skip(refused)
    torch._dynamo.reset()
    compiled = torch.compile(case.fn, backend="torchtpu_dynamo", fullgraph=True, dynamic=False)
    expected, actual = run(case.fn, case), run(compiled, case)
    if case.random:
        for e, a in zip(leaves(expected), leaves(actual), strict=True):
            assert (e.shape, e.dtype) == (a.shape, a.dtype)
        return
    exact: list[torch.Tensor] = []
    allowed = tolerance(f"{family}/{case.name}")
    for i, (e, a) in enumerate(zip(leaves(expected), leaves(actual), strict=True)):
        assert e.stride() == a.stride() or e.numel() <= 1 or not e.is_contiguous()
        try:
            torch.testing.assert_close(a, e, equal_nan=True, **allowed)
        except AssertionError:
            if not (e.is_floating_point() or e.is_complex()):
                raise
            exact = exact or leaves(run(case.fn, case, exact=True))
            if a.dtype != e.dtype or not is_as_exact(a, e, exact[i]):
                raise
    for e, a in zip(expected[1], actual[1], strict=True):
        # A gradient that is nowhere may also be zero everywhere.
        assert (e is None) == (a is None) or not (a if e is None else e).any()
