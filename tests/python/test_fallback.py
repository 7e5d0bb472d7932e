"""`options={"fallback": "eager"}`: unsupported operators run on the host, and the rest of the graph compiled."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import torchtpu_dynamo
from torchtpu_dynamo import TorchTPUError, fallback

ORDER: list[str] = []


@torch.library.custom_op("torchtpu_fallback::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(x.detach().numpy() * 2)


@twice.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


twice.register_autograd(lambda ctx, grad: twice(grad))


@torch.library.custom_op("torchtpu_fallback::halves", mutates_args=())
def halves(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    ORDER.append("halves")
    return x[: x.shape[0] // 2].clone(), x[x.shape[0] // 2 :].clone()


@halves.register_fake
def _(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    n = x.shape[0] // 2
    return x.new_empty((n, *x.shape[1:])), x.new_empty((x.shape[0] - n, *x.shape[1:]))


@torch.library.custom_op(
    "torchtpu_fallback::noise", mutates_args=(), tags=[torch.Tag.nondeterministic_seeded]
)
def noise(x: torch.Tensor) -> torch.Tensor:
    return torch.rand(x.shape)


@noise.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("torchtpu_fallback::conjugate", mutates_args=())
def conjugate(x: torch.Tensor) -> torch.Tensor:
    return x.clone().conj()


@conjugate.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@pytest.fixture(autouse=True)
def warn_again() -> None:
    fallback.warned.clear()
    ORDER.clear()


def on_host(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return torch.compile(
        fn, backend="torchtpu_dynamo", fullgraph=True, options={"fallback": "eager"}, **options
    )


def agree(fn: Callable[..., Any], *args: Any, calls: int = 2, **options: Any) -> None:
    """Eager and compiled, on copies of the arguments, which must end up the same."""
    compiled = on_host(fn, **options)
    for _ in range(calls):
        left, right = ([a.clone() for a in args] for _ in range(2))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.testing.assert_close(compiled(*left), fn(*right))
        torch.testing.assert_close(left, right)


def two_of_them(x: torch.Tensor, y: torch.Tensor) -> Any:
    a = x.sin() + y
    return twice(a) * twice(x * 3) + a, y


def test_an_error_without_the_option_names_every_line() -> None:
    with pytest.raises(TorchTPUError) as caught:
        torch.compile(two_of_them, backend="torchtpu_dynamo")(torch.ones(2), torch.ones(2))
    text = str(caught.value)
    line = two_of_them.__code__.co_firstlineno + 2
    assert text.startswith("`torchtpu_fallback.twice.default` has no lowering"), text
    assert f"test_fallback.py:{line} in two_of_them" in text and '"fallback": "eager"' in text
    assert torchtpu_dynamo.stats().fallbacks == {}


def test_other_unsupported_operators_are_listed() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        a = twice(x)
        return noise(a) + twice(a)

    with pytest.raises(TorchTPUError) as caught:
        torch.compile(fn, backend="torchtpu_dynamo")(torch.ones(2))
    line = fn.__code__.co_firstlineno + 2
    listed = next(text for text in str(caught.value).splitlines() if "also:" in text)
    assert f"`torchtpu_fallback.noise.default` ({__file__}:{line})" in listed
    assert f"`torchtpu_fallback.twice.default` ({__file__}:{line})" in listed
    assert caught.value.op == "torchtpu_fallback.twice.default"


def test_the_graph_is_split_around_an_operator() -> None:
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    agree(two_of_them, x, y)
    stats = torchtpu_dynamo.stats()
    # One piece before and one behind, whatever the number of operators between.
    assert stats.compilations == 2 and stats.executions == 4 and stats.errors == 0
    assert stats.fallbacks == {"torchtpu_fallback.twice.default": 4}
    assert stats.fallback_bytes == 4 * 2 * x.nbytes
    assert "torchtpu_fallback.twice.default: 4" in str(stats)


def test_one_warning_for_each_operator_at_the_line() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return twice(x) + twice(x + 1)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        on_host(fn)(torch.ones(2))
    ours = [w for w in caught if "runs on the host" in str(w.message)]
    assert len(ours) == 1
    message, line = str(ours[0].message), fn.__code__.co_firstlineno + 1
    assert "`torchtpu_fallback.twice.default`" in message and f"{__file__}:{line}" in message
    assert "register_lowering" in message
    assert (ours[0].filename, ours[0].lineno) == (__file__, line)


def test_a_supported_graph_is_one_executable() -> None:
    agree(lambda x: x.sin() * 2, torch.randn(4))
    assert torchtpu_dynamo.stats().compilations == 1 and not torchtpu_dynamo.stats().fallbacks


def test_several_results_and_results_that_are_returned() -> None:
    agree(lambda x: (*halves(x * 2), halves(x)[1] + 1, 3, x), torch.randn(6, 2))


def test_mutated_inputs() -> None:
    def fn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        a = twice(x)
        x.add_(y)
        y.copy_(twice(x))
        return a + x

    agree(fn, torch.randn(5), torch.randn(5))


def test_an_input_written_last_is_read_before() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        x.mul_(2)
        return twice(twice(x - 1) + 1) + x

    agree(fn, torch.randn(5))


def test_mutated_buffers() -> None:
    class Counter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.total += twice(x)
            return self.total * 2

    left, right = Counter(), Counter()
    compiled = on_host(left)
    for _ in range(3):
        torch.testing.assert_close(compiled(torch.ones(3)), right(torch.ones(3)))
    torch.testing.assert_close(left.total, right.total)


def test_outputs_that_share_memory() -> None:
    def fn(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a = twice(x) + 1
        return a, a[0]

    a, row = on_host(fn)(torch.ones(2, 3))
    row.zero_()
    torch.testing.assert_close(a, torch.tensor([[0.0] * 3, [3.0] * 3]))


def test_an_output_that_is_a_view_of_what_the_host_made() -> None:
    a, row = on_host(lambda x: (b := twice(x), b[0]))(torch.ones(2, 3))
    row.zero_()
    torch.testing.assert_close(a, torch.tensor([[0.0] * 3, [2.0] * 3]))


def test_outputs_that_alias_inputs() -> None:
    def fn(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return x.t(), twice(x), x

    x = torch.randn(2, 3)
    t, _, same = on_host(fn)(x)
    assert t.data_ptr() == x.data_ptr() and same is x


def test_training() -> None:
    layer = torch.nn.Linear(4, 4)
    x = torch.randn(3, 4)

    def fn(x: torch.Tensor) -> torch.Tensor:
        return (twice(layer(x)).relu() * x).sum()

    fn(x).backward()
    wanted = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    on_host(fn)(x).backward()
    torch.testing.assert_close([p.grad for p in layer.parameters()], wanted)
    assert torchtpu_dynamo.stats().fallbacks["torchtpu_fallback.twice.default"] == 2


def test_random_operators_draw_from_torchs_generator() -> None:
    def fn(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return noise(x), noise(x + 1) * 1

    compiled = on_host(fn)
    torch.manual_seed(3)
    first = compiled(torch.ones(4))
    torch.manual_seed(3)
    torch.testing.assert_close(compiled(torch.ones(4)), first)
    torch.manual_seed(3)
    torch.testing.assert_close(fn(torch.ones(4)), first)
    assert not torch.equal(compiled(torch.ones(4))[0], first[0])


def test_symbolic_sizes() -> None:
    def fn(x: torch.Tensor, n: int) -> tuple[Any, ...]:
        a, b = halves(x * n)
        return a.sum(0) + x.shape[0], b + n, x.shape[0] * 2, a.shape[0] + n

    compiled = on_host(fn, dynamic=True)
    for rows, n in ((4, 3), (7, 5), (4, 3)):
        x = torch.randn(rows, 3)
        torch.testing.assert_close(compiled(x, n), fn(x, n))
    assert torchtpu_dynamo.stats().fallbacks == {"torchtpu_fallback.halves.default": 3}


def test_complex_results_are_what_they_say() -> None:
    agree(lambda x: conjugate(x) + 1, torch.randn(3, dtype=torch.complex64))


def test_dtypes_that_the_compiler_does_not_know() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return (x + 1).to(torch.float8_e8m0fnu).to(torch.float32) * 2

    agree(fn, torch.tensor([1.0, 3.0]))


@pytest.mark.parametrize("fill", [2, 3, 0])
def test_sizes_that_the_data_decide(fill: int) -> None:
    def fn(x: torch.Tensor) -> tuple[Any, ...]:
        found = x.nonzero()
        return found.float().sum(0) * 2, (found + 1)[:, 0].cumsum(0), found.shape[0] * 2

    x = torch.zeros(3, 2)
    x.view(-1)[:fill] = 1
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        agree(fn, x)
        agree(fn, torch.ones(3, 2))
    assert torchtpu_dynamo.stats().fallbacks["aten.nonzero.default"] == 4


def test_numbers_that_the_data_decide() -> None:
    def fn(x: torch.Tensor) -> tuple[Any, ...]:
        n, f, b = x.long()[0].item(), x.sum().item(), (x.sum() > 0).item()
        torch._check(n >= 0)
        torch._check(n < 100)
        return x * n, torch.ones(n) * x[0], n + 1, x + f, b, x * 2

    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        agree(fn, torch.tensor([3.0, 1.5]))
        agree(fn, torch.tensor([4.0, 5.5]))


def test_an_unsupported_operator_of_a_size_that_the_data_decide() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        found = x.nonzero().float()
        return twice(found * 3) + found

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        agree(fn, torch.tensor([1.0, 0.0, 2.0]))
        agree(fn, torch.tensor([1.0, 2.0, 2.0]))


def test_a_branch_with_an_unsupported_operator_runs_whole_on_the_host() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        y = torch.cond(x.sum() > 0, lambda x: twice(x) + 1, lambda x: x - 1, (x * 2,))
        return y * 2

    with pytest.warns(UserWarning, match="`cond`.*runs on the host.*`torchtpu_fallback.twice.default`"):
        on_host(fn)(torch.ones(3))
    agree(fn, torch.ones(3))
    agree(fn, -torch.ones(3))
    assert torchtpu_dynamo.stats().fallbacks["cond"] == 5


def test_a_loop_with_an_unsupported_operator() -> None:
    from torch._higher_order_ops import while_loop

    def fn(x: torch.Tensor) -> Any:
        return while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, twice(y) + i), (torch.tensor(0), x.sin()))[
            1
        ].cos()

    agree(fn, torch.randn(3))


@pytest.mark.filterwarnings("ignore")
def test_the_gradient_of_a_loop_whose_length_the_data_decide() -> None:
    from torch._higher_order_ops import while_loop

    def step(y: torch.Tensor) -> torch.Tensor:
        return y + (y * y).sin()

    def fn(x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        i = torch.zeros((), dtype=torch.int64)
        return while_loop(lambda i, y: i < n, lambda i, y: (i + 1, step(y)), (i, x))[1].sum()

    x = torch.arange(4.0).div(3).requires_grad_()
    options = {"max_data_dependent_size": 8}
    bounded = torch.compile(fn, backend="torchtpu_dynamo", fullgraph=True, options=options)
    with pytest.raises(TorchTPUError, match="what a gradient needs of a loop"):
        bounded(x, torch.tensor(3))
    compiled = on_host(fn)
    for length in (3, 5):
        y = x
        for _ in range(length):
            y = step(y)
        actual = torch.autograd.grad(compiled(x, torch.tensor(length)), x)
        torch.testing.assert_close(actual, torch.autograd.grad(y.sum(), x))


def test_a_region_compiled_once_with_an_unsupported_operator() -> None:
    @torch.compiler.nested_compile_region
    def layer(x: torch.Tensor) -> torch.Tensor:
        return twice(x).relu()

    agree(lambda x: layer(layer(x + 1)) * 2, torch.randn(3))


def test_nested_compiled_functions_are_one_graph() -> None:
    plain = lambda x: twice(x) + 1
    inner = torch.compile(plain, backend="torchtpu_dynamo")
    x = torch.randn(3)
    torch.testing.assert_close(on_host(lambda x: inner(x) * inner(x + 1))(x), plain(x) * plain(x + 1))


def test_an_error_of_the_plugin_stays_one() -> None:
    with pytest.raises(TorchTPUError, match="xla_no_such_flag"):
        torch.compile(
            lambda x: x + 1,
            backend="torchtpu_dynamo",
            options={"fallback": "eager", "xla_options": {"xla_no_such_flag": True}},
        )(torch.ones(2))


def test_an_error_of_the_operator_is_its_own() -> None:
    def fn(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        return twice(x)[i]

    compiled = torch.compile(
        fn, backend="torchtpu_dynamo", options={"fallback": "eager", "check_bounds": True}
    )
    with pytest.raises(TorchTPUError, match="out of range"):
        compiled(torch.ones(3), torch.tensor([5]))
    torch.testing.assert_close(compiled(torch.ones(3), torch.tensor([1])), torch.tensor([2.0]))


def test_the_option_is_checked() -> None:
    with pytest.raises(TorchTPUError, match="'error', 'eager'"):
        torch.compile(lambda x: x + 1, backend="torchtpu_dynamo", options={"fallback": "host"})(torch.ones(2))


DECIDED: dict[str, Callable[[torch.Tensor], Any]] = {
    "several results": lambda t: [t[t > 0].sort()[0], t.nonzero().unbind(1), torch.where(t > 0)],
    "one result twice": lambda t: torch.cat([t.nonzero(), t.nonzero()]),
    "chunks": lambda t: (t[t > 0].float()[:, None] * torch.arange(4.0)).chunk(2, 1),
    "norm": lambda t: torch.nn.functional.layer_norm(t[t > 0].float()[:, None] * torch.arange(4.0), (4,)),
}


@pytest.mark.parametrize("name", DECIDED)
def test_what_is_made_of_sizes_that_the_data_decide(name: str) -> None:
    fn = torch.compile(DECIDED[name], backend="tpu", fullgraph=True, options={"max_data_dependent_size": 16})
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        for values in ([1, 0, 3, 0, 3, 5], [0, 2, 3, 0, 3, 5]):
            t = torch.tensor(values)
            torch.testing.assert_close(fn(t), DECIDED[name](t))


@torch._dynamo.config.patch(capture_scalar_outputs=True)
def test_a_row_by_a_number_needs_no_bound() -> None:
    def row(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        n = (i + 1).item()
        torch._check(n >= 0)
        torch._check(n < 3)
        return x[n] * 2

    x = torch.randn(3, 4)
    fn = torch.compile(row, backend="tpu", fullgraph=True)
    for i in (0, 1):
        torch.testing.assert_close(fn(x, torch.tensor(i)), row(x, torch.tensor(i)))


def test_a_branch_by_a_size() -> None:
    def branch(x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.shape[0] > 3, torch.sin, torch.cos, (x,))

    fn = torch.compile(branch, backend="tpu", fullgraph=True, dynamic=True)
    for rows in (2, 3, 4, 5):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(fn(x), branch(x))


@torch._dynamo.config.patch(capture_scalar_outputs=True)
def test_a_branch_by_a_number_that_the_data_decide() -> None:
    def branch(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        n = i.item()
        return (
            torch.cond(n > 0.5, lambda x: (x.sin(), x.sum()), lambda x: (x.cos(), x.max()), (x * 2,))[1] + n
        )

    fn = torch.compile(branch, backend="tpu", fullgraph=True)
    for i in (torch.tensor(0.25), torch.tensor(0.75)):
        x, y = (torch.arange(4.0).requires_grad_() for _ in range(2))
        torch.testing.assert_close(fn(x, i), branch(y, i))
        fn(x, i).backward()
        branch(y, i).backward()
        torch.testing.assert_close(x.grad, y.grad)


def test_a_loop_that_carries_a_python_number_is_refused() -> None:
    from torch._higher_order_ops import while_loop

    def fn(x: torch.Tensor) -> Any:
        return while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y * 2), (0, x))

    with pytest.raises(TorchTPUError, match=r"carries a Python number[\s\S]*torch.tensor\(0\)"):
        torch.compile(fn, backend="tpu", fullgraph=True)(torch.ones(3))


@pytest.mark.parametrize("train", [False, True])
def test_jagged_nested_tensors(train: bool) -> None:
    """As arguments: one graph serves all lengths of the samples."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(4, 3)

    def fn(x: torch.Tensor) -> torch.Tensor:
        return torch.nested.to_padded_tensor(linear(x).relu(), 2.5)

    compiled = torch.compile(fn, backend="tpu")
    for lengths in ((2, 3), (4, 1), (1, 6), (3, 2, 5)):
        x = torch.nested.nested_tensor([torch.randn(n, 4) for n in lengths], layout=torch.jagged)
        seen = []
        for run in (compiled, fn):
            linear.zero_grad()
            with torch.set_grad_enabled(train):
                result = run(x)
            if train:
                result.square().sum().backward()
            seen.append([result.detach(), *(p.grad.clone() for p in linear.parameters() if train)])
        torch.testing.assert_close(*seen)


def test_jagged_nested_tensors_are_returned() -> None:
    compiled = torch.compile(lambda n: (n * 2, n.values().sum()), backend="tpu")
    for lengths in ((2, 3), (4, 1, 2)):
        nested = torch.nested.nested_tensor([torch.randn(n, 4) for n in lengths], layout=torch.jagged)
        result, total = compiled(nested)
        torch.testing.assert_close(result.values(), nested.values() * 2)
        torch.testing.assert_close([result.offsets(), total], [nested.offsets(), nested.values().sum()])
