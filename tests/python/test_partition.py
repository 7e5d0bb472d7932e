"""What a forward saves for its backward."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._functorch.aot_autograd import aot_function, make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.utils.checkpoint import checkpoint

import torchtpu_dynamo
from torchtpu_dynamo import custom_ops
from torchtpu_dynamo.partition import partition

HEADS, KEY_HEADS, ROWS, FEATURES = 8, 2, 16, 4


def grouped(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention whose key heads are repeated as Transformers does it."""

    def repeated(x: Tensor) -> Tensor:
        times = HEADS // KEY_HEADS
        return x[:, :, None].expand(1, KEY_HEADS, times, ROWS, FEATURES).reshape(1, HEADS, ROWS, FEATURES)

    return F.scaled_dot_product_attention(query, repeated(key.sin()), repeated(value.sin()), is_causal=True)


def arguments() -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    return tuple(torch.randn(1, n, ROWS, FEATURES, requires_grad=True) for n in (HEADS, KEY_HEADS, KEY_HEADS))


def loss(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy((hidden @ weight).float(), target)


def samples() -> tuple[Tensor, ...]:
    """What `loss` takes: 8 samples that count of 10, 500 classes."""
    torch.manual_seed(0)
    target = torch.randint(500, (10,))
    target[3:5] = -100
    hidden, weight = (torch.randn(s, dtype=torch.bfloat16, requires_grad=True) for s in ((10, 16), (16, 500)))
    return hidden, weight, target


def read_by_backward(
    partition_fn: object,
    fn: Callable[..., Tensor] = grouped,
    given: Callable[[], tuple[Tensor, ...]] = arguments,
) -> int:
    """Bytes of the backward's inputs."""
    seen: list[int] = []

    def note(gm: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        seen.append(sum(n.meta["val"].nbytes for n in gm.graph.nodes if n.op == "placeholder"))
        return make_boxed_func(gm)

    compiled = aot_function(
        fn,
        fw_compiler=lambda gm, _: make_boxed_func(gm),
        bw_compiler=note,
        partition_fn=partition_fn,
        decompositions=custom_ops.table(),
    )
    compiled(*given()).sum().backward()
    return seen[0]


def test_copies_of_a_key_head_are_not_saved() -> None:
    copies = 4 * 2 * (HEADS - KEY_HEADS) * ROWS * FEATURES
    assert read_by_backward(partition) <= read_by_backward(min_cut_rematerialization_partition) - copies


def test_log_probabilities_are_not_saved() -> None:
    """But the logits they are made of, in half as many bytes, and two numbers for each sample."""
    logits, of_samples = 2 * 10 * 500, 2 * 4 * 10
    arguments = sum(x.nbytes for x in samples()) + 2 * 4
    assert read_by_backward(partition, loss, samples) <= logits + of_samples + arguments


def log_probabilities(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return torch.log_softmax(hidden @ weight, 1, dtype=torch.float32)


def test_log_probabilities_that_are_a_result_are_not_computed_again() -> None:
    """They are read, as the gradient is that comes in."""
    hidden, weight, _ = samples()
    expected = 2 * 4 * 10 * 500 + hidden.nbytes + weight.nbytes
    assert read_by_backward(partition, log_probabilities, samples) == expected


@pytest.mark.parametrize(
    ("fn", "given"), [(grouped, arguments), (loss, samples), (log_probabilities, samples)]
)
def test_gradients_are_those_of_eager(
    fn: Callable[..., Tensor], given: Callable[[], tuple[Tensor, ...]]
) -> None:
    expected, found = given(), given()
    fn(*expected).square().sum().backward()
    torch.compile(fn, backend="tpu")(*found).square().sum().backward()
    torch.testing.assert_close([x.grad for x in found], [x.grad for x in expected])


# A limit of bytes

NOISE: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: F.dropout(x, 0.5),
    "bernoulli": lambda x: x * torch.bernoulli(torch.full_like(x, 0.5)),
    "rand": lambda x: x * torch.rand(x.shape),
    "checkpoint": lambda x: checkpoint(lambda x: F.dropout(x.sin(), 0.5), x, use_reentrant=False),
}


class Block(torch.nn.Module):
    def __init__(self, noise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.up, self.down, self.noise = torch.nn.Linear(16, 64), torch.nn.Linear(64, 16), noise

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.noise(self.down(F.gelu(self.up(x))))
        return result


def blocks(noise: Callable[[Tensor], Tensor] = lambda x: x) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(*(Block(noise) for _ in range(6)))


def trained(
    module: torch.nn.Module, options: dict[str, Any] | None, dynamic: bool | None = None
) -> tuple[int, list[Any]]:
    """Bytes of activations that a step kept, and its loss and gradients; without options, eager's."""
    torch.compiler.reset()
    fn = module if options is None else torch.compile(module, backend="tpu", options=options, dynamic=dynamic)
    torch.manual_seed(1)
    x = torch.randn(32, 16, requires_grad=True)
    y = fn(x)
    given = {t.data_ptr() for t in (x, y, *module.parameters())}
    saved = [] if options is None else y.grad_fn.saved_tensors
    kept = sum(t.nbytes for t in saved if t.data_ptr() not in given)
    loss = y.square().mean()
    return kept, [loss.detach(), *torch.autograd.grad(loss, [x, *module.parameters()])]


@pytest.mark.sample
@pytest.mark.parametrize(("limit", "dynamic"), [(60_000, False), (10_000, True), (0, False)])
def test_a_forward_keeps_no_more_than_it_may(limit: int, dynamic: bool) -> None:
    whole, _ = trained(blocks(), {})
    kept, found = trained(blocks(), {"activation_memory": limit}, dynamic)
    assert kept <= limit < whole
    torch.testing.assert_close(found, trained(blocks(), None)[1])


def test_a_limit_that_all_fits_in_changes_nothing() -> None:
    whole, expected = trained(blocks(), {})
    kept, found = trained(blocks(), {"activation_memory": whole})
    assert kept == whole
    assert all(map(torch.equal, found, expected))


@pytest.mark.sample
@pytest.mark.parametrize("name", NOISE)
def test_random_numbers_are_the_forwards(name: str) -> None:
    whole, expected = trained(blocks(NOISE[name]), {})
    limit = whole * 3 // 5
    kept, found = trained(blocks(NOISE[name]), {"activation_memory": limit})
    assert kept <= limit
    torch.testing.assert_close(found, expected)


def test_a_limit_that_cannot_be_met() -> None:
    """Which number was drawn is kept: one byte of each of six masks at least."""
    whole, expected = trained(blocks(NOISE["dropout"]), {})
    with pytest.warns(
        UserWarning, match=r"keeps [\d,]+ bytes .* more than option 'activation_memory' .*\(7\)"
    ):
        kept, found = trained(blocks(NOISE["dropout"]), {"activation_memory": 7})
    assert 6 * 32 * 16 <= kept < whole
    torch.testing.assert_close(found, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(blocks(NOISE["dropout"]), {"activation_memory": 7})


def test_a_nested_graph_is_not_called_again() -> None:
    """Which would be right where it draws no numbers; its own forward has the limit."""
    block = Block(NOISE["dropout"])

    @torch.compiler.nested_compile_region
    def region(x: Tensor) -> Tensor:
        result: Tensor = block(x)
        return result

    def gradients(options: dict[str, Any]) -> list[Tensor]:
        torch.compiler.reset()
        torch.manual_seed(0)
        x = torch.ones(32, 16, requires_grad=True)
        y = torch.compile(lambda x: region(region(x)), backend="tpu", options=options)(x)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *block.parameters()])]

    expected = gradients({})
    with pytest.warns(UserWarning, match="activation_memory"):
        found = gradients({"activation_memory": 0})
    torch.testing.assert_close(found, expected)


def test_a_limit_ahead_of_time() -> None:
    def kept(limit: int | None) -> int:
        options = {"activation_memory": limit}
        artifact = torchtpu_dynamo.aot_compile(blocks(), (torch.ones(32, 16),), train=True, options=options)
        _, saved = artifact.forward(torch.ones(32, 16))
        return sum(t.nbytes for t in saved)

    arguments = torch.ones(32, 16).nbytes + sum(p.nbytes for p in blocks().parameters())
    assert kept(10_000) <= 10_000 + arguments < kept(None)
