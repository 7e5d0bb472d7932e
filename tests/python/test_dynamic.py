"""Sizes that change: symbolic graphs, why they are compiled again, and buckets of sizes, against eager."""

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import torchtpu_dynamo
from torchtpu_dynamo import TorchTPUError
from torchtpu_dynamo.buckets import bounds_of, parse_buckets, samples


def leaves(value: Any) -> list[Any]:
    return torch.utils._pytree.tree_leaves(value)


def copies(args: tuple[Any, ...], train: bool) -> list[Any]:
    """Fresh leaves with the arguments' values and strides."""
    return [
        a.detach().clone(memory_format=torch.preserve_format).requires_grad_(train and a.is_floating_point())
        if isinstance(a, Tensor)
        else a
        for a in args
    ]


def agree(compiled: Any, fn: Any, args: tuple[Any, ...], train: bool, mark: int | None = None) -> None:
    """Results, mutated arguments and gradients are eager's. Dimensions of size `mark` are marked dynamic."""
    ours, theirs = copies(args, train), copies(args, train)
    for a in ours:
        for dim, extent in enumerate(a.shape if isinstance(a, Tensor) else ()):
            if extent == mark:
                torch._dynamo.mark_dynamic(a, dim)
    actual, expected = compiled(*ours), fn(*theirs)
    for a, e in zip(leaves(actual), leaves(expected), strict=True):
        if isinstance(e, Tensor):
            torch.testing.assert_close(a, e)
        else:
            assert (a, type(a)) == (e, type(e))
    if train:
        for results in (actual, expected):
            sum(r.sin().sum() for r in leaves(results) if r.requires_grad).backward()
        for a, e in zip(ours, theirs, strict=True):
            if isinstance(e, Tensor) and e.requires_grad:
                # A second sum over the elements, in another order.
                torch.testing.assert_close(a.grad, e.grad, rtol=1e-4, atol=5e-5)
    torch.testing.assert_close(*([a.detach() for a in s if isinstance(a, Tensor)] for s in (ours, theirs)))


# Symbolic graphs

SYMBOLIC: dict[str, tuple[Callable[..., Any], Callable[[int], tuple[Any, ...]]]] = {
    "sizes": (
        lambda x: (x.shape[0], x.shape[0] / 2, x.numel(), x.shape[0] ** 0.5, round(x.shape[0] / 3)),
        lambda n: (torch.randn(n, 3),),
    ),
    "arithmetic": (
        lambda x: x * math.floor(x.shape[0] / 2) + x.shape[0] % 3 + round(x.shape[0] / 3) - x.shape[0] ** 0.5,
        lambda n: (torch.randn(n, 3),),
    ),
    "reshape": (lambda x: x.reshape(-1).view(x.shape[0], -1) * 2, lambda n: (torch.randn(n, 6),)),
    "arange": (lambda x: x + torch.arange(x.shape[0]).flip(0)[:, None], lambda n: (torch.randn(n, 3),)),
    "views": (lambda x: (x[1:], x[:, None].expand(-1, 2, 3), x.split(2)[1]), lambda n: (torch.randn(n, 3),)),
    "strided": (lambda x: x.as_strided((x.shape[0], 2), (3, 1)), lambda n: (torch.randn(n, 3),)),
    "offset": (lambda x: x[1:], lambda n: (torch.randn(n + 2, 3)[2:],)),
    "mutated_view": (lambda x: x.add_(1)[1:], lambda n: (torch.randn(n, 3),)),
    "number": (lambda x, k: (x * k, x + k, k + 1, x[:k]), lambda n: (torch.randn(30), n)),
    "branch": (
        lambda x: torch.cond(x.sum() > 0, lambda y: y * y.shape[0], lambda y: y.sin(), (x,)),
        lambda n: (torch.randn(n, 3),),
    ),
}


@pytest.mark.parametrize("name", SYMBOLIC)
def test_symbolic(name: str) -> None:
    fn, make = SYMBOLIC[name]
    compiled = torch.compile(fn, backend="tpu", fullgraph=True, dynamic=True)
    for n in (6, 5, 9):
        agree(compiled, fn, make(n), False)


def test_mean_over_a_size_has_a_gradient() -> None:
    compiled = torch.compile(F.mse_loss, backend="tpu", fullgraph=True, dynamic=True)
    for n in (6, 5):
        agree(compiled, F.mse_loss, (torch.randn(n, 3), torch.randn(n, 3)), True)


# Why was it compiled again?


def test_reasons_name_size_and_line() -> None:
    compiled = torch.compile(lambda x, y: x.sum() + y, backend="tpu", dynamic=True)
    for n in (4, 5):
        compiled(torch.ones(2, n), torch.ones(3))
    (again,) = torchtpu_dynamo.stats().recompilations
    assert again.reason == "new size x.size(1)=5 (was 4)"
    assert "test_dynamic.py:" in again.line
    assert "x.size(1)=5 (was 4) at " in str(torchtpu_dynamo.stats())


@pytest.mark.parametrize(("dynamic", "helps"), [(True, "buckets"), (False, "mark_dynamic")])
def test_warns_from_the_third_time_on(dynamic: bool, helps: str) -> None:
    compiled = torch.compile(lambda x: x * 2, backend="tpu", dynamic=dynamic)
    times = []
    for n in range(2, 9):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            compiled(torch.ones(n))
        told = [str(w.message) for w in caught if "was compiled again" in str(w.message)]
        assert all(helps in t and "test_dynamic.py:" in t for t in told)
        times.append(len(told))
    # The third recompilation, and the sixth.
    assert times == [0, 0, 0, 1, 0, 0, 1]


def test_warns_where_a_dynamic_size_is_specialized() -> None:
    """The derivative of cumprod asks for its sizes."""
    compiled = torch.compile(lambda x: (x + 1).cumprod(1), backend="tpu", dynamic=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for n in (5, 7, 13, 9):
            compiled(torch.randn(3, n, requires_grad=True)).sum().backward()
    (told,) = [str(w.message) for w in caught if "was compiled again" in str(w.message)]
    assert "specialize" in told and "mark_dynamic" not in told


# Buckets


def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True, is_causal=True)


def qkv(heads: int) -> Callable[[int], tuple[Any, ...]]:
    return lambda n: (torch.randn(2, 4, n, 8), torch.randn(2, heads, n, 8), torch.randn(2, heads, n, 8))


def rows(n: int) -> tuple[Any, ...]:
    return (torch.randn(n, 6),)


def classes(n: int) -> tuple[Any, ...]:
    return torch.randn(n, 5), torch.where(torch.arange(n) % 4 == 2, -100, torch.arange(n) % 5)


# Function, arguments by size, and whether gradients are taken.
BUCKETED: dict[str, tuple[Callable[..., Any], Callable[[int], tuple[Any, ...]], bool]] = {
    "causal_attention": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        qkv(4),
        True,
    ),
    "grouped_attention": (grouped, qkv(2), False),
    "masked_attention": (
        lambda x, m: F.scaled_dot_product_attention(x, x, x, attn_mask=m[:, None, None, :]),
        lambda n: (torch.randn(2, 3, n, 4), torch.arange(2 * n).view(2, n) % 5 < 3),
        True,
    ),
    "layer_norm": (lambda x: F.layer_norm(x, (6,)) @ x.new_ones(6, 6), rows, True),
    "norm_of_all": (lambda x: F.layer_norm(x, (x.shape[-1],)), lambda n: (torch.randn(3, n),), False),
    "rms_norm": (lambda x: F.rms_norm(x, (6,)), rows, True),
    "batch_norm": (
        lambda x, m, v: F.batch_norm(x, m, v, training=True),
        lambda n: (torch.randn(n, 6, 5), torch.zeros(6), torch.ones(6)),
        False,
    ),
    "group_norm": (lambda x: F.group_norm(x, 2), lambda n: (torch.randn(2, 4, n),), True),
    "cross_entropy": (lambda x, t: F.cross_entropy(x, t), classes, True),
    "cross_entropy_sum": (
        lambda x, t: F.cross_entropy(x, t, reduction="sum", label_smoothing=0.1),
        classes,
        True,
    ),
    "softmax": (lambda x: (x.softmax(0), x.log_softmax(1)), rows, True),
    "reductions": (
        lambda x: (x.mean(0), x.sum(), x.amax(0), x.logsumexp(0), x.var(0, correction=0)),
        rows,
        True,
    ),
    "extremes": (
        lambda x: (x.prod(0), x.argmax(0), x.argmin(0), x.min(0), x.sort(0, descending=True)),
        rows,
        False,
    ),
    "infinities": (
        lambda x: (1 / x.relu()).min(0).values + (x / 0).nan_to_num(0).amax(0) + x.log().nansum(0),
        rows,
        False,
    ),
    "conv1d": (
        lambda x, w: F.conv1d(x, w, padding=1),
        lambda n: (torch.randn(2, 3, n), torch.randn(4, 3, 3)),
        True,
    ),
    "conv2d": (
        lambda x, w: F.conv2d(x, w, stride=2, padding=1),
        lambda n: (torch.randn(n, 3, 5, 6), torch.randn(4, 3, 3, 3)),
        True,
    ),
    "joined": (lambda x: torch.cat([x, x.flip(0), x[:1]]).roll(1, 0), rows, False),
    "scattered": (
        lambda x: (
            x.new_zeros(4, 6).index_add(0, torch.arange(x.shape[0]) % 4, x) + x.new_ones(x.shape[0]).sum()
        ),
        rows,
        False,
    ),
    "running": (lambda x: (x.cumsum(0), x.cumprod(1), x.logcumsumexp(0), x.cummax(0)), rows, False),
    "written": (lambda x: x.mul_(2).add_(x.sum()), rows, False),
    "flattened": (
        lambda x, w: (x.view(-1, 6) @ w).view(3, -1, 6).sum(1),
        lambda n: (torch.randn(3, n, 6), torch.randn(6, 6)),
        True,
    ),
}
BOUNDS = [4, 8, 17]


@pytest.mark.parametrize("name", BUCKETED)
def test_buckets(name: str) -> None:
    fn, make, train = BUCKETED[name]
    compiled = torch.compile(fn, backend="tpu", fullgraph=True, options={"buckets": {"*": BOUNDS}})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="(?s).*(cannot be padded|compiled again)")
        for n in range(17, 1, -1):
            agree(compiled, fn, make(n), train, 17)
        assert torchtpu_dynamo.stats().compilations == len(BOUNDS) * (2 if train else 1)
        # Of size 1 PyTorch makes a graph without symbols.
        agree(compiled, fn, make(1), train)


def test_llama_in_buckets() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_cache=False,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    compiled = torch.compile(
        lambda ids: model(ids).logits, backend="tpu", options={"buckets": {"ids:1": [8, 16]}}
    )
    with torch.no_grad():
        for n in (3, 12, 5, 8, 16, 9, 2):
            ids = torch.arange(2 * n).view(2, n) % 50
            torch._dynamo.mark_dynamic(ids, 1)
            torch.testing.assert_close(compiled(ids), model(ids).logits)
    assert torchtpu_dynamo.stats().compilations == 2


def test_sizes_that_a_forward_hands_on() -> None:
    """The backward takes `s0 + 3`, of what is saved, beside `s0`: no size of its own to pad."""

    def fn(x: Tensor) -> Tensor:
        return torch.cat([torch.ones(x.shape[0], 2, 4), x, x[:, :1]], 1).mean(1)

    compiled = torch.compile(fn, backend="tpu", dynamic=True, options={"buckets": {"*": [8, 16]}})
    torchtpu_dynamo.reset_stats()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for n in (3, 4, 8, 9, 14, 16):
            agree(compiled, fn, (torch.randn(2, n, 4),), train=True)
    assert torchtpu_dynamo.stats().compilations == 4


def test_above_the_last_bucket() -> None:
    compiled = torch.compile(
        lambda x: x.sum(0), backend="tpu", dynamic=True, options={"buckets": {"x:0": [4]}}
    )
    compiled(torch.ones(3, 2))
    with pytest.warns(UserWarning, match=r"x.size\(0\)=6 is above its largest bucket"):
        assert compiled(torch.ones(6, 2)).tolist() == [6, 6]


def test_what_padding_cannot_follow_is_compiled_by_itself() -> None:
    fn = lambda x: torch.linalg.inv(x + 9 * torch.eye(x.shape[0]))
    compiled = torch.compile(fn, backend="tpu", dynamic=True, options={"buckets": {"*": "pow2"}})
    with pytest.warns(UserWarning, match=r"cannot be padded to .*test_dynamic.py:"):
        agree(compiled, fn, (torch.randn(5, 5),), False)
    agree(compiled, fn, (torch.randn(6, 6),), False)


@pytest.mark.parametrize("value", [{"x": [4]}, {"x:0": []}, {"x:0": [4, 0]}, {"*": "pow3"}, {"*": 4}])
def test_bad_buckets(value: dict[str, Any]) -> None:
    with pytest.raises(TorchTPUError, match='option "buckets" takes'):
        parse_buckets(value)
    with pytest.raises(TorchTPUError, match='option "buckets" takes'):
        torch.compile(lambda x: x + 1, backend="tpu", options={"buckets": value})(torch.ones(2))


def test_bounds() -> None:
    assert [bounds_of(n, (4, 9)) for n in (1, 4, 5, 9, 10)] == [(0, 4), (0, 4), (4, 9), (4, 9), None]
    assert [bounds_of(n, None) for n in (2, 3, 4, 5)] == [(1, 2), (2, 4), (2, 4), (4, 8)]
    for sizes in samples((5, 7), [(4, 9), None]):
        assert 2 <= sizes[0] <= 9 and sizes[1] == 7


# Sizes and numbers that the data decide.


@pytest.fixture
def captured() -> Iterator[None]:
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True):
        yield


@pytest.mark.usefixtures("captured")
def test_sizes_that_data_decide_without_a_bound_are_refused() -> None:
    compiled = torch.compile(lambda x: x[x > 0] * 2, backend="tpu", fullgraph=True)
    with pytest.raises(TorchTPUError, match=r"torch\._check\(n <= 64\)") as raised:
        compiled(torch.randn(8))
    assert "test_dynamic.py:" in str(raised.value) and raised.value.op == "aten.index.Tensor"


def nonzero_of_three(x: torch.Tensor) -> Any:
    found = x.nonzero()
    torch._check(found.shape[0] <= 3)
    return torch.softmax(found.float(), 0).cumsum(0) * 2, found.shape[0]


def nonzero_of_all(x: torch.Tensor) -> Any:
    found = x.nonzero()
    torch._check(found.shape[0] <= 4)
    return found * 2


def nonzero_of_more(x: torch.Tensor) -> Any:
    found = x.nonzero()
    torch._check(found.shape[0] < 64)
    return found * 2


def masked(x: torch.Tensor) -> Any:
    chosen = torch.masked_select(x, x > 0)
    return chosen.exp().sum(), (chosen - chosen.mean()).abs(), chosen * 2


DECIDED: dict[str, tuple[Any, dict[str, Any]]] = {
    "torch._check": (nonzero_of_three, {}),
    "torch._check of what is known": (nonzero_of_all, {}),
    "torch._check of more": (nonzero_of_more, {}),
    "option": (masked, {"max_data_dependent_size": 4}),
    "unique": (lambda x: torch.unique(x).float() + 1, {"max_data_dependent_size": 4}),
}


@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize("name", DECIDED)
def test_sizes_that_data_decide_up_to_a_bound(name: str) -> None:
    fn, options = DECIDED[name]
    compiled = torch.compile(fn, backend="tpu", fullgraph=True, options=options)
    for values in ([0.0, 1, 2, 0], [0.0, 0, 2, 3], [5.0, 0, 2, 3], [0.0, 0, 0, 3]):
        agree(compiled, fn, (torch.tensor(values),), False)
    stats = torchtpu_dynamo.stats()
    assert stats.host_reads == 4 and not stats.fallbacks
    assert stats.compilations <= 3  # what makes the mask, one executable for all sizes above 1, and one for 1


@pytest.mark.usefixtures("captured")
def test_more_than_the_stated_bound() -> None:
    compiled = torch.compile(nonzero_of_three, backend="tpu", fullgraph=True)
    with pytest.raises(TorchTPUError, match="gave 4 elements, and the stated bound is 3") as raised:
        compiled(torch.ones(4))
    assert "test_dynamic.py:" in str(raised.value)


@pytest.mark.usefixtures("captured")
def test_numbers_that_data_decide() -> None:
    def fn(x: torch.Tensor, i: torch.Tensor) -> Any:
        scale, shift = x.sum().item(), i.item()
        return x * scale + shift, x.long() * shift, x > scale, scale + 1, shift

    compiled = torch.compile(fn, backend="tpu", fullgraph=True)
    for k in range(3):
        agree(compiled, fn, (torch.randn(4), torch.tensor(2**60 + k)), False)
    # The numbers are operands: other ones do not compile it again.
    assert torchtpu_dynamo.stats().compilations <= 3


@pytest.mark.usefixtures("captured")
def test_slices_that_data_decide() -> None:
    def fn(x: torch.Tensor, i: torch.Tensor) -> Any:
        return x.narrow(0, i, 2) * 2, torch.tensor_split(x, i.reshape(1).expand(2))

    compiled = torch.compile(fn, backend="tpu", fullgraph=True)
    for k in (1, 3):
        agree(compiled, fn, (torch.randn(6, 2), torch.tensor(k)), False)
    compiled = torch.compile(lambda x, i: x.narrow(0, i, 2), backend="tpu", fullgraph=True, dynamic=True)
    for n, k in ((6, 3), (7, 1)):
        x = torch.randn(n, 2)
        assert compiled(x, torch.tensor(k)).data_ptr() == x[k].data_ptr()
    y = torch.zeros(6)
    torch.compile(lambda y, i: y.narrow(0, i, 2).add_(1), backend="tpu", fullgraph=True)(y, torch.tensor(3))
    assert y.tolist() == [0, 0, 0, 1, 1, 0]
