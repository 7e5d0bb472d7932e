"""`compare`: agrees where the compiler is right, and names the operator and line where it is made wrong."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import torchtpu_dynamo
from torchtpu_dynamo import TorchTPUError, compare, decompositions, graph
from torchtpu_dynamo.state import leaves_by_path
from torchtpu_dynamo.testing import assert_same


def fn(x: Tensor) -> Tensor:
    y = x * 2
    y = y.sin()
    return (y + 1).sum(-1)


def sabotage(monkeypatch: pytest.MonkeyPatch, right: str, wrong: str) -> None:
    """Has the compiler take one operator for another."""
    export = graph.export

    def exported(*args: Any) -> Any:
        made = export(*args)
        assert "version" in made.json
        return dataclasses.replace(made, json=made.json.replace(f'"{right}"', f'"{wrong}"'))

    monkeypatch.setattr(graph, "export", exported)


def test_agreement() -> None:
    found = compare(fn, torch.randn(4, 8))
    assert found.ok
    assert found.first is None
    assert [n.node.target for n in found.nodes] == [
        "aten.mul.Tensor",
        "aten.sin.default",
        "aten.add.Tensor",
        "aten.sum.dim_IntList",
    ]
    assert "agrees with eager, 4 operators compared" in str(found)


class Unnamed(list[Tensor]):
    """A result whose parts have no names, as those of diffusers."""


def test_results_without_names() -> None:
    pytree.register_pytree_node(Unnamed, lambda x: (list(x), None), lambda leaves, _: Unnamed(leaves))
    try:
        assert compare(lambda x: Unnamed([x + 1, x * 2]), torch.randn(3)).ok
        assert leaves_by_path(Unnamed([torch.ones(1)] * 2)) == [("[0]", 1), ("[1]", 1)]
    finally:
        pytree._deregister_pytree_node(Unnamed)


def test_training_agrees() -> None:
    found = compare(
        nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)), torch.randn(4, 8), train=True
    )
    assert found.ok, str(found)
    assert {n.graph for n in found.nodes} == {"graph 0 forward", "graph 0 backward"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes_agree(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.SiLU(), nn.Linear(64, 8)).to(dtype)
    found = compare(net, torch.randn(32, 64, dtype=dtype), train=True)
    assert found.ok, str(found)


def test_the_wrong_operator_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage(monkeypatch, "aten.sin.default", "aten.cos.default")
    found = compare(fn, torch.randn(4, 8))
    assert not found.ok
    assert found.first is not None
    assert found.first.node.name == "sin"
    assert found.first.node.line == f"{__file__}:{fn.__code__.co_firstlineno + 2}"
    # What follows computes rightly from what it gets.
    assert [n.node.name for n in found.nodes if n.own.beyond] == ["sin"]
    assert [n.node.name for n in found.nodes if n.total.beyond] == ["sin", "add", "sum_1"]
    assert list(found.results) == ["result"]
    text = str(found)
    assert "differs from eager" in text
    assert f"test_compare.py:{fn.__code__.co_firstlineno + 2} in fn" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_wrong_backward_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage(monkeypatch, "aten.cos.default", "aten.sin.default")
    found = compare(lambda x: x.sin() * 3, torch.randn(8, requires_grad=True), train=True)
    assert list(found.results) == ["gradient of tensor 0"]
    assert found.first is not None
    assert found.first.graph == "graph 0 backward"


def test_a_wrong_view_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage(monkeypatch, "aten.triu.default", "aten.tril.default")
    found = compare(lambda x: x.triu()[1:].exp(), torch.randn(4, 4))
    assert found.first is not None
    assert found.first.node.name == "triu"


def test_a_wrong_decomposition_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        **decompositions.table(),
        torch.ops.aten.softplus.default: lambda x, beta=1, threshold=20: x.sigmoid(),
    }
    monkeypatch.setattr(decompositions, "table", lambda: table)
    found = compare(lambda x: torch.nn.functional.softplus(x), torch.randn(8))
    assert found.results
    assert found.first is None
    assert "a decomposition, or AOTAutograd" in str(found)


def test_random_operators_take_the_compiled_numbers() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 4))
    found = compare(net, torch.randn(4, 8), train=True)
    assert found.ok, str(found)
    assert any("random" in note for note in found.notes)
    noise = compare(lambda x: x + torch.rand(3), torch.ones(3))
    assert noise.ok, str(noise)
    assert [n.node.name for n in noise.nodes] == ["add"]


def test_attention_without_dropout_is_compared() -> None:
    q = torch.randn(2, 2, 8, 16)
    found = compare(lambda q: torch.nn.functional.scaled_dot_product_attention(q, q, q), q)
    assert found.ok, str(found)
    assert not found.notes
    assert found.nodes


def test_views_are_computed() -> None:
    found = compare(lambda x: x.t()[1:].reshape(-1) * 2, torch.randn(3, 4))
    assert found.ok, str(found)
    assert not found.notes


def test_tensors_are_put_back() -> None:
    net = nn.BatchNorm1d(3)
    x = torch.randn(4, 3)
    kept = x.clone()

    def mutating(x: Tensor) -> Tensor:
        x.add_(1)
        return net(x)

    state = torch.get_rng_state()
    found = compare(mutating, x, train=True)
    assert found.ok, str(found)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(x, kept)
    assert net.num_batches_tracked == 0
    assert net.weight.grad is None


def test_mutations_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage(monkeypatch, "aten.add.Tensor", "aten.sub.Tensor")
    found = compare(lambda x: x.add_(torch.ones(2)), torch.zeros(2))
    assert "written tensor 0" in found.results
    assert found.first is not None
    assert found.first.node.name == "add"


def test_breaks_are_no_obstacle() -> None:
    def broken(x: Tensor) -> Tensor:
        y = x.sin()
        torch._dynamo.graph_break()
        return y.cos()

    found = compare(broken, torch.randn(4))
    assert found.ok
    assert [n.graph for n in found.nodes] == ["graph 0 inference", "graph 1 inference"]


def test_tolerances() -> None:
    x = torch.randn(64)
    assert compare(lambda x: x.exp(), x, rtol=1e-5).ok
    strict = compare(lambda x: x.sin().exp().tanh(), x * 3, rtol=1e-12)
    assert not strict.ok


def test_later_compilations_are_as_without() -> None:
    before = torchtpu_dynamo.stats()
    compare(fn, torch.randn(4, 8))
    assert torchtpu_dynamo.stats() == before
    torch.compile(fn, backend="torchtpu_dynamo")(torch.randn(4, 8))
    assert torchtpu_dynamo.stats().compilations == 1
    assert not torchtpu_dynamo.stats().recompilations


def test_what_is_not_supported() -> None:
    with pytest.raises(TorchTPUError, match="linalg_eig"):
        compare(lambda x: torch.linalg.eig(x)[1].real, torch.eye(2))
