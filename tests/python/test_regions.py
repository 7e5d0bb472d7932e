"""Graphs inside graphs: regions that are compiled once, random numbers in them, checkpoints, flex attention."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import torchtpu_dynamo

BACKEND = "torchtpu_dynamo"


class Layer(nn.Module):
    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.norm, self.linear, self.p = nn.LayerNorm(8), nn.Linear(8, 8), p

    @torch.compiler.nested_compile_region
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x + torch.relu(self.linear(self.norm(x))), self.p)


def stack(layers: int, p: float = 0.0) -> nn.Module:
    torch._dynamo.reset()
    torch.manual_seed(0)
    return nn.Sequential(*(Layer(p) for _ in range(layers)))


def texts(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, run: Any) -> list[str]:
    """The StableHLO of each graph that `run` compiles, in order."""
    monkeypatch.setenv("TORCHTPU_DUMP", str(tmp_path))
    run()
    return [p.read_text() for p in sorted(tmp_path.glob("*/stablehlo.mlir"))]


def test_equal_layers_are_one_function(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = stack(8), torch.randn(2, 8)

    def run() -> None:
        compiled = torch.compile(model, backend=BACKEND, fullgraph=True)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), model(x))

    (text,) = texts(tmp_path, monkeypatch, run)
    assert text.count("func.func private") == 1
    assert text.count("func.call") == 8
    assert text.count("stablehlo.dot_general") == 1


def test_equal_layers_train(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = stack(4), torch.randn(2, 8)
    parameters = list(model.parameters())

    def gradients(fn: Any) -> list[Tensor]:
        return list(torch.autograd.grad((fn(x) * torch.arange(8.0)).sum(), parameters))

    def run() -> None:
        compiled = torch.compile(model, backend=BACKEND, fullgraph=True)
        for ours, eager in zip(gradients(compiled), gradients(model), strict=True):
            torch.testing.assert_close(ours, eager)

    forward, backward = texts(tmp_path, monkeypatch, run)
    for text in (forward, backward):
        assert text.count("func.func private") == 1
        assert text.count("func.call") >= 3


def test_updated_weights_are_seen_inside_functions() -> None:
    model, x = stack(3), torch.randn(2, 8)
    compiled = torch.compile(model, backend=BACKEND, fullgraph=True)
    with torch.no_grad():
        compiled(x)
        for parameter in model.parameters():
            parameter.add_(0.5)
        torch.testing.assert_close(compiled(x), model(x))


def test_each_call_draws_its_own_numbers() -> None:
    @torch.compiler.nested_compile_region
    def drop(x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)

    torch._dynamo.reset()
    compiled = torch.compile(lambda x: (drop(x), drop(x), drop(x)), backend=BACKEND, fullgraph=True)
    a, b, c = compiled(torch.ones(64))
    assert not torch.equal(a, b) and not torch.equal(b, c)


def test_a_loop_draws_new_numbers_in_each_step() -> None:
    from torch._higher_order_ops import map as map_over

    torch._dynamo.reset()
    run = lambda x: (map_over(lambda x: torch.rand_like(x), x), torch.rand_like(x))
    steps, after = torch.compile(run, backend=BACKEND, fullgraph=True)(torch.ones(4, 32))
    rows = torch.cat([steps, after])
    assert len(torch.unique(rows, dim=0)) == 8


def test_a_checkpoint_recomputes_with_the_same_numbers() -> None:
    torch._dynamo.reset()
    inner = lambda x: F.dropout(x.sin(), 0.5).exp()

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        return checkpoint(inner, x, use_reentrant=False), checkpoint(inner, x, use_reentrant=False)

    x = torch.ones(64, 3, requires_grad=True)
    first, second = torch.compile(run, backend=BACKEND, fullgraph=True)(x)
    assert not torch.equal(first, second)
    for y in (first, second):
        (grad,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
        torch.testing.assert_close(grad, torch.where(y != 1, 2 * torch.cos(x) * y, 0))


flex = pytest.importorskip("torch.nn.attention.flex_attention")
BIAS, DOCUMENT = torch.linspace(-1, 1, 4), torch.arange(32) // 10


def mask_mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return (i >= j) & (DOCUMENT[i] == DOCUMENT[j])


def biased(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
    score = lambda s, b, h, i, j: s + BIAS[h] + (i - j) * 0.1
    return flex.flex_attention(q, k, v, score, block_mask=mask, enable_gqa=True)


def capped(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Any:
    score = lambda s, b, h, i, j: torch.tanh(s / 5) * 5
    return flex.flex_attention(q, k, v, score, block_mask=mask, enable_gqa=True, return_lse=True)


def heads() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 4, 32, 8), torch.randn(2, 2, 32, 8), torch.randn(2, 2, 32, 8)]


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("fn", [biased, capped])
def test_flex_attention(fn: Any, dynamic: bool) -> None:
    torch._dynamo.reset()
    mask = flex.create_block_mask(mask_mod, None, None, 32, 32, device="cpu")
    compiled = torch.compile(fn, backend=BACKEND, fullgraph=True, dynamic=dynamic)
    torch.testing.assert_close(compiled(*heads(), mask), fn(*heads(), mask))


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("fn", [biased, capped])
def test_flex_attention_backward(fn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # PyTorch refuses gradients of CPU tensors for the sake of its own CPU kernels.
    monkeypatch.setattr(sys.modules[flex.__name__], "_validate_device", lambda *_: None, raising=False)
    torch._dynamo.reset()
    mask = flex.create_block_mask(mask_mod, None, None, 32, 32, device="cpu")
    inputs = [x.requires_grad_() for x in heads()]

    def gradients(fn: Any) -> tuple[Tensor, ...]:
        out = fn(*inputs, mask)
        loss = out[0].sin().sum() + out[1].sum() if isinstance(out, tuple) else out.sin().sum()
        return torch.autograd.grad(loss, inputs)

    compiled = torch.compile(fn, backend=BACKEND, fullgraph=True)
    torch.testing.assert_close(gradients(compiled), gradients(fn))


def test_sparse_gradients_are_refused_by_name() -> None:
    torch._dynamo.reset()
    weight = torch.randn(5, 3, requires_grad=True)
    bag = lambda w: F.embedding_bag(torch.tensor([0, 1]), w, torch.tensor([0]), sparse=True)
    with pytest.raises(torchtpu_dynamo.TorchTPUError, match="_embedding_bag_backward"):
        torch.compile(bag, backend=BACKEND, fullgraph=True)(weight).sum().backward()
