"""Every case of tests/ops: compiled against eager, values and gradients, under torch.testing's tolerances."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.ops import Case, families
from torch.utils import _pytree as pytree

# `make test-torch` runs the sample against an older torch.
CASES = [
    pytest.param(c, id=f"{family}-{c.name}", marks=[pytest.mark.sample] if i % 8 == 0 else [])
    for family, cases in families().items()
    for i, c in enumerate(cases)
]


def leaves(tree: Any) -> list[torch.Tensor]:
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, torch.Tensor)]


def run(fn: Any, case: Case) -> tuple[Any, list[torch.Tensor | None]]:
    """Results of one run, and with `train` the gradients of its inputs for fixed cotangents."""
    inputs = case.make_inputs()
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
    cotangents = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in outputs]
    return out, list(torch.autograd.grad(outputs, tensors, cotangents, allow_unused=True))


@pytest.mark.parametrize("case", CASES)
def test_matches_eager(case: Case) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(case.fn, backend="torchtpu_dynamo", fullgraph=True, dynamic=False)
    expected, actual = run(case.fn, case), run(compiled, case)
    if case.random:
        for e, a in zip(leaves(expected), leaves(actual), strict=True):
            assert (e.shape, e.dtype) == (a.shape, a.dtype)
        return
    for e, a in zip(leaves(expected), leaves(actual), strict=True):
        assert e.stride() == a.stride() or e.numel() <= 1 or not e.is_contiguous()
        torch.testing.assert_close(a, e, rtol=case.rtol, atol=case.atol, equal_nan=True)
    for e, a in zip(expected[1], actual[1], strict=True):
        # A gradient that is nowhere may also be zero everywhere.
        assert (e is None) == (a is None) or not (a if e is None else e).any()


def test_loosened_tolerances_have_a_reason() -> None:
    for family, cases in families().items():
        for case in cases:
            if case.rtol is not None or case.atol is not None:
                tighter = (case.rtol or 0) <= 1.3e-6 and (case.atol or 0) <= 1e-5
                assert case.why or tighter, f"{family}/{case.name} sets a tolerance without a why"
