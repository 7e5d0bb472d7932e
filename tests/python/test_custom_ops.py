"""Custom operators: `register_lowering`, and what PyTorch wraps around mutation and effects."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torchtpu_dynamo._torchtpu import Program

import torchtpu_dynamo
from torchtpu_dynamo import TorchTPUError, custom_ops, register_lowering

HOST = {"fallback": "eager"}
PRINTED: list[float] = []


@torch.library.custom_op("torchtpu_custom::scale", mutates_args=())
def scale(x: torch.Tensor, factor: float = 2.0) -> torch.Tensor:
    return torch.from_numpy(x.detach().numpy() * factor)


@scale.register_fake
def _(x: torch.Tensor, factor: float = 2.0) -> torch.Tensor:
    return torch.empty_like(x)


scale.register_autograd(
    lambda ctx, grad: (scale(grad, ctx.factor), None),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "factor", inputs[1]),
)


@torch.library.custom_op("torchtpu_custom::extremes", mutates_args=())
def extremes(xs: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    both = torch.stack([x.clone() for x in xs])
    return both.amin(0), both.amax(0)


@extremes.register_fake
def _(xs: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(xs[0]), torch.empty_like(xs[0])


@torch.library.custom_op("torchtpu_custom::update", mutates_args={"x", "y"})
def update(x: torch.Tensor, y: torch.Tensor | None, factor: float) -> torch.Tensor:
    return update_lowering(x, y, factor)


@update.register_fake
def _(x: torch.Tensor, y: torch.Tensor | None, factor: float) -> torch.Tensor:
    return torch.empty_like(x)


def update_lowering(x: torch.Tensor, y: torch.Tensor | None, factor: float) -> torch.Tensor:
    before = x * 2
    x.add_(factor if y is None else y * factor)
    if y is not None:
        y.mul_(2)
    return before


@torch.library.custom_op("torchtpu_custom::fill", mutates_args={"outs"})
def fill(outs: list[torch.Tensor], value: float) -> None:
    for out in outs:
        out.fill_(value)


@torch.library.custom_op("torchtpu_custom::announce", mutates_args=())
def announce(x: torch.Tensor) -> torch.Tensor:
    PRINTED.append(float(x.sum()))
    return x + 1


@announce.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@pytest.fixture
def effectful() -> Iterator[None]:
    from torch._higher_order_ops import effects

    op = torch.ops.torchtpu_custom.announce.default
    handle = effects._register_effectful_op(op, effects._EffectType.ORDERED)
    yield
    if handle is not None:
        handle.destroy()


@pytest.fixture(autouse=True)
def nothing_registered() -> Iterator[None]:
    yield
    custom_ops.registered.clear()
    PRINTED.clear()


def agree(fn: Callable[..., Any], *args: torch.Tensor, reference: Any = None, **options: Any) -> None:
    torch.compiler.reset()
    left, right = ([a.clone() for a in args] for _ in range(2))
    compiled = torch.compile(fn, backend="torchtpu_dynamo", fullgraph=True, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(compiled(*left), (reference or fn)(*right))
    torch.testing.assert_close(left, right)


def refused(fn: Callable[..., Any], *args: Any) -> str:
    torch.compiler.reset()
    with pytest.raises(TorchTPUError) as caught:
        torch.compile(fn, backend="torchtpu_dynamo", fullgraph=True)(*args)
    return str(caught.value)


# A Python function


def test_a_function_is_traced_into_the_graph() -> None:
    @register_lowering(torch.ops.torchtpu_custom.scale)
    def lowering(x: torch.Tensor, factor: float = 2.0) -> torch.Tensor:
        return x * factor

    fn = lambda x: scale(x) + scale(x, 3.0)
    agree(fn, torch.randn(2, 3))
    assert torchtpu_dynamo.stats().compilations == 1
    text = torchtpu_dynamo.lower(fn, torch.randn(2, 3)).as_text()
    assert text.count("stablehlo.multiply") == 2 and "custom" not in text
    assert lowering(torch.ones(1), 5.0) == 5.0  # the decorator gives the function back


def test_gradients_are_those_of_the_operator() -> None:
    register_lowering(scale, lambda x, factor=2.0: x * factor)
    x = torch.randn(4, requires_grad=True)
    fn = lambda x: (scale(x, 3.0).sin() * x).sum()
    (wanted,) = torch.autograd.grad(fn(x), x)
    (got,) = torch.autograd.grad(torch.compile(fn, backend="torchtpu_dynamo", fullgraph=True)(x), x)
    torch.testing.assert_close(got, wanted)


def test_under_control_flow_and_symbolic_sizes() -> None:
    register_lowering(scale, lambda x, factor=2.0: x * factor + x.shape[0] * 0)
    branch = lambda x: torch.cond(x.sum() > 0, lambda x: scale(x, 3.0), lambda x: x - 1, (x,))
    agree(branch, torch.ones(3))
    agree(branch, -torch.ones(3))
    fn = torch.compile(lambda x: scale(x[1:]), backend="torchtpu_dynamo", fullgraph=True, dynamic=True)
    for n in (3, 6):
        torch.testing.assert_close(fn(torch.ones(n)), torch.full((n - 1,), 2.0))


def test_a_payload_carries_all() -> None:
    register_lowering(scale, lambda x, factor=2.0: x * factor)
    payload = torchtpu_dynamo.lower(lambda x: scale(x), torch.ones(2)).programs["inference"].payload
    custom_ops.registered.clear()
    assert "multiply" in Program(payload, {}, "").as_text()


def test_several_results() -> None:
    register_lowering(extremes, lambda xs: (torch.stack(xs).amin(0), torch.stack(xs).amax(0)))
    agree(lambda x, y: extremes([x, y + 1, x * y]), torch.randn(3), torch.randn(3))


def test_a_later_registration_replaces() -> None:
    register_lowering(scale, lambda x, factor=2.0: x * factor)
    register_lowering(scale, lambda x, factor=2.0: x * factor + 100)
    agree(lambda x: scale(x), torch.ones(2), reference=lambda x: x * 2 + 100)


def test_an_operator_of_the_compilers_own() -> None:
    with pytest.raises(ValueError, match=r"aten\.sin\.default has a lowering; pass override=True"):
        register_lowering(torch.ops.aten.sin.default, torch.cos)
    register_lowering(torch.ops.aten.sin.default, torch.cos, override=True)
    agree(lambda x: x.sin(), torch.randn(3), reference=torch.cos)


# What is refused


def test_what_is_no_operator() -> None:
    with pytest.raises(TypeError, match="takes an operator.*torch.ops.mylib.op"):
        register_lowering(torch.sin, torch.cos)
    with pytest.raises(TypeError, match="not both"):
        register_lowering(scale, torch.cos, stablehlo="")
    with pytest.raises(TypeError, match="a lowering is a function"):
        register_lowering(scale, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="composite"):
        register_lowering(torch.ops.aten.matmul.default, torch.mm)
    with pytest.raises(ValueError, match="mutates arguments"):
        register_lowering(update, stablehlo=doubling(3))
    with pytest.raises(ValueError, match="several overloads"):
        register_lowering(torch.ops.aten.add, stablehlo=doubling(3))


def test_a_function_that_fails_is_named() -> None:
    def broken(x: torch.Tensor, factor: float = 2.0) -> torch.Tensor:
        raise KeyError("oh")

    register_lowering(scale, broken)
    text = refused(lambda x: scale(x), torch.ones(2))
    assert "`torchtpu_custom.scale.default`" in text and "broken" in text and "KeyError: 'oh'" in text
    assert f"test_custom_ops.py:{broken.__code__.co_firstlineno}" in text
    with pytest.raises(TorchTPUError, match="broken"):
        torchtpu_dynamo.lower(lambda x: scale(x), torch.ones(2))


def test_a_function_of_another_type_is_refused() -> None:
    register_lowering(scale, lambda x, factor=2.0: (x * factor).double())
    assert "gives (float64[2]) where the operator gives (float32[2])" in refused(
        lambda x: scale(x), torch.ones(2)
    )
    register_lowering(scale, lambda x, factor=2.0: x.sum())
    assert "gives (float32[]) where the operator gives (float32[2])" in refused(
        lambda x: scale(x), torch.ones(2)
    )


# StableHLO


def doubling(n: int, factor: float = 2.0) -> str:
    return f"""
"func.func"() <{{function_type = (tensor<{n}xf32>) -> tensor<{n}xf32>, sym_name = "main"}}> ({{
^bb0(%x: tensor<{n}xf32>):
  %0 = "stablehlo.constant"() <{{value = dense<{factor:e}> : tensor<{n}xf32>}}> : () -> tensor<{n}xf32>
  %1 = "stablehlo.multiply"(%x, %0) : (tensor<{n}xf32>, tensor<{n}xf32>) -> tensor<{n}xf32>
  "func.return"(%1) : (tensor<{n}xf32>) -> ()
}}) : () -> ()
"""


def test_stablehlo_text() -> None:
    register_lowering(scale, stablehlo=doubling(3))
    agree(lambda x: scale(x) + scale(x + 1), torch.randn(3))
    agree(lambda x: torch.cond(x.sum() > 0, lambda x: scale(x), lambda x: x - 1, (x,)), torch.ones(3))
    x = torch.randn(3, requires_grad=True)
    torch.compile(lambda x: scale(x).sum(), backend="torchtpu_dynamo", fullgraph=True)(x).backward()
    torch.testing.assert_close(x.grad, torch.full((3,), 2.0))


def test_stablehlo_is_called_by_a_name_of_its_own() -> None:
    register_lowering(scale, stablehlo=doubling(3))
    lowered = torchtpu_dynamo.lower(lambda x: scale(x) + scale(x + 1), torch.randn(3))
    text = lowered.as_text()
    assert text.count("func.call @custom_0") == 2 and text.count('sym_name = "custom_0"') == 1
    program = lowered.programs["inference"]
    assert program.ops()["custom"] == 2 and "custom %" in program.graph_text()
    again = Program(program.payload, {}, "")
    assert again.as_bytecode() == program.as_bytecode()


def test_stablehlos_own_syntax_where_jax_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jax")
    text = """func.func public @main(%x: tensor<3xf32>) -> tensor<3xf32> {
      %0 = stablehlo.add %x, %x : tensor<3xf32>
      %1 = func.call @same(%0) : (tensor<3xf32>) -> tensor<3xf32>
      return %1 : tensor<3xf32>
    }
    func.func private @same(%x: tensor<3xf32>) -> tensor<3xf32> { return %x : tensor<3xf32> }"""
    register_lowering(scale, stablehlo=text)
    agree(lambda x: scale(x), torch.randn(3))
    monkeypatch.setitem(sys.modules, "jax.interpreters", None)
    with pytest.raises(ValueError, match="generic form.*mlir-print-op-generic"):
        register_lowering(scale, stablehlo=text)


def test_a_callable_gets_types_and_numbers() -> None:
    seen = []

    def text(x: custom_ops.TensorType, factor: float) -> str:
        seen.append((str(x), x.shape, x.dtype, factor))
        return doubling(*x.shape, factor=factor)

    register_lowering(scale, stablehlo=text)
    agree(lambda x: scale(x) + scale(x[1:], 3.0).sum(), torch.randn(3))
    assert seen[0] == ("tensor<3xf32>", (3,), torch.float32, 2.0)
    assert seen[1] == ("tensor<2xf32>", (2,), torch.float32, 3.0)
    torch.compiler.reset()
    fn = torch.compile(lambda x: scale(x, 3.0), backend="torchtpu_dynamo", fullgraph=True, dynamic=True)
    for n in (3, 6):
        torch.testing.assert_close(fn(torch.ones(n)), torch.full((n,), 3.0))
    assert seen[-1][0] == "tensor<6xf32>"


def test_text_of_other_types_is_refused_with_both() -> None:
    register_lowering(scale, stablehlo=doubling(3))
    text = refused(lambda x: scale(x), torch.ones(4))
    assert "is of type (tensor<3xf32>) -> (tensor<3xf32>)" in text
    assert "the operator's call is of type (tensor<4xf32>) -> (tensor<4xf32>)" in text
    text = refused(lambda x: scale(x, 3.0), torch.ones(3))
    assert "cannot know its argument 'factor'" in text and "test_custom_ops.py" in text


def test_text_that_cannot_be_read() -> None:
    register_lowering(scale, stablehlo='"func.func"() ({')
    assert "line 1: a region without an end" in refused(lambda x: scale(x), torch.ones(3))
    register_lowering(scale, stablehlo=doubling(3).replace("%x, %0", "%x, %7"))
    assert "MLIR cannot read" in refused(lambda x: scale(x), torch.ones(3))
    register_lowering(scale, stablehlo=lambda x, factor: 3)
    assert "TypeError: it returned int" in refused(lambda x: scale(x), torch.ones(3))
    register_lowering(scale, stablehlo=doubling(3).replace("multiply", "nonsense"))
    refused(lambda x: scale(x), torch.ones(3))


# auto_functionalized


def mutate(x: torch.Tensor, y: torch.Tensor) -> Any:
    r = update(x, y, 3.0)
    return r + x


def mutate_views(x: torch.Tensor, y: torch.Tensor) -> Any:
    z = x * 2
    r = update(z[0], z[1], 3.0)
    return r, z, update(y[:, 1:3], None, 1.0)


def mutate_list(x: torch.Tensor, y: torch.Tensor) -> Any:
    z = torch.zeros(5, 2)
    fill([x[0], z[1:3].t(), y], 4.0)
    return z + 1, x


MUTATING = [mutate, mutate_views, mutate_list]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("fn", MUTATING, ids=lambda f: f.__name__)
@pytest.mark.parametrize("options", [None, HOST], ids=["lowered", "host"])
def test_operators_that_mutate(fn: Any, version: int, options: Any) -> None:
    if options is None:
        register_lowering(update, update_lowering)
        register_lowering(fill, lambda outs, value: [out.fill_(value) for out in outs] and None)
    with torch._inductor.config.patch(enable_auto_functionalized_v2=version == 2):
        agree(fn, torch.randn(4, 4), torch.randn(4, 4), options=options)
    counted = torchtpu_dynamo.stats().fallbacks
    assert bool(counted) == (options is HOST) and all(name.startswith("torchtpu_custom.") for name in counted)


def test_mutation_of_symbolic_sizes() -> None:
    register_lowering(update, update_lowering)
    agree(mutate_views, torch.randn(4, 5), torch.randn(3, 5), dynamic=True)


def test_an_operator_that_mutates_is_named() -> None:
    text = refused(mutate, torch.ones(2), torch.ones(2))
    assert "(torchtpu_custom.update.default)` has no lowering" in text and "register_lowering" in text
    assert f"test_custom_ops.py:{mutate.__code__.co_firstlineno + 1}" in text


# Effects


def two_announcements(x: torch.Tensor) -> torch.Tensor:
    return announce(announce(x * 2) * 3).sin()


def test_effects_keep_their_order_on_the_host(effectful: None) -> None:
    agree(two_announcements, torch.ones(2), options=HOST)
    assert PRINTED == [4.0, 18.0, 4.0, 18.0]
    assert torchtpu_dynamo.stats().fallbacks == {"torchtpu_custom.announce.default": 2}


def test_effects_of_a_registered_operator_are_its_function(effectful: None) -> None:
    register_lowering(announce, lambda x: x + 1)
    agree(two_announcements, torch.ones(2))
    assert PRINTED == [4.0, 18.0]  # eager alone
    program = torchtpu_dynamo.lower(two_announcements, torch.ones(2)).programs["inference"]
    assert "with_effects" not in json.dumps(json.loads(program.payload)["targets"])


def test_an_operator_with_effects_is_named(effectful: None) -> None:
    text = refused(two_announcements, torch.ones(2))
    assert "`with_effects(torchtpu_custom.announce.default)` has no lowering" in text
    assert '"fallback": "eager"' in text


def test_printing(capfd: pytest.CaptureFixture[str]) -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        torch.ops.aten._print("first")
        z = y.sin()
        torch.ops.aten._print("second")
        return z + y

    agree(fn, torch.ones(2), options=HOST)
    assert capfd.readouterr().out.split() == ["first", "second"] * 2
    assert torchtpu_dynamo.stats().fallbacks == {"aten._print.default": 2}
