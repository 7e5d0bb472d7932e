"""torch.func, checkpointing, custom autograd functions and nested compiled functions, against eager."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import torchtpu_dynamo
from torchtpu_dynamo import TorchTPUError, testing

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def check(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    testing.assert_matches_eager(fn, *args, **TOLERANCE, **kwargs)


def compiled(fn: Callable[..., Any], **kwargs: Any) -> Callable[..., Any]:
    return torch.compile(fn, backend="tpu", fullgraph=True, **kwargs)


def scalar(x: Tensor) -> Tensor:
    return (x.sin() * x.square()).sum() + x.prod()


def vector(x: Tensor) -> Tensor:
    return torch.stack([x.prod(), x.sin().sum(), (x[0] * x[1]).exp()])


TRANSFORMS: dict[str, Callable[[Tensor], Any]] = {
    "vmap": lambda x: vmap(vector)(x.expand(5, -1)),
    "vmap of a product": lambda x: vmap(torch.mv, (None, 0))(torch.outer(x, x), torch.outer(x, x)),
    "vmap of vmap": lambda x: vmap(vmap(torch.mul, (None, 0)), (0, None))(x, x),
    "vmap to another dimension": lambda x: vmap(torch.sin, in_dims=1, out_dims=1)(torch.outer(x, x)),
    "vmap of where": lambda x: vmap(lambda a: torch.where(a > 0, a.sqrt(), a.neg()))(x),
    "grad": lambda x: grad(scalar)(x),
    "grad of grad": lambda x: grad(lambda y: grad(scalar)(y).sum())(x),
    "grad and value": lambda x: grad_and_value(scalar)(x),
    "per-sample gradients": lambda x: vmap(grad(scalar))(torch.outer(x, x)),
    "vjp": lambda x: vjp(vector, x)[1](torch.ones(3))[0],
    "jvp": lambda x: jvp(vector, (x,), (torch.ones_like(x),)),
    "jvp of grad": lambda x: jvp(grad(scalar), (x,), (torch.ones_like(x),)),
    "jacrev": lambda x: jacrev(vector)(x),
    "jacfwd": lambda x: jacfwd(vector)(x),
    "hessian": lambda x: hessian(scalar)(x),
    "jacobian of a solve": lambda x: jacrev(
        lambda y: torch.linalg.solve(torch.eye(4) * 9 + torch.outer(y, y), y)
    )(x),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name: str) -> None:
    check(TRANSFORMS[name], torch.randn(4))


def test_transform_that_trains() -> None:
    """A gradient penalty: the loss holds a gradient."""

    def fn(x: Tensor, w: Tensor) -> Tensor:
        return grad(lambda y: (y @ w).tanh().sum())(x).square().sum()

    check(fn, torch.randn(3), torch.randn(3, 2, requires_grad=True), train=True)


def test_functional_call() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, weights, (x,)).square().mean()

    check(grad(loss), weights, torch.randn(4, 3))
    # One gradient a sample, and an ensemble of models over one batch.
    check(vmap(grad(loss), (None, 0)), weights, torch.randn(4, 3))
    ensemble = {name: torch.stack([w, 2 * w, -w]) for name, w in weights.items()}
    check(vmap(loss, (0, None)), ensemble, torch.randn(4, 3))


def test_compiled_inside_compiled() -> None:
    inner = torch.compile(lambda x: x.sin() * 2, backend="tpu")
    check(lambda x: inner(x) + inner(x + 1), torch.randn(3, requires_grad=True), train=True)


def test_transform_of_a_compiled_function() -> None:
    inner = compiled(lambda x: x.sin().sum())
    x = torch.randn(4)
    torch.testing.assert_close(compiled(grad(inner))(x), x.cos())


class Clipped(torch.autograd.Function):
    """Its gradient is not the derivative, so that nobody can have derived it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.limit = limit
        return x.clamp(-limit, limit)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return 3 * grad * (x.abs() < ctx.limit), None


class Several(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x * y, x + y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, product: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        x, y = ctx.saved_tensors
        return 5 * product * y + total, product * x - total


def test_custom_autograd_function() -> None:
    x, y = torch.randn(6, requires_grad=True), torch.randn(6, requires_grad=True)
    check(lambda x: Clipped.apply(x.sin(), 0.5) * x, x, train=True)
    check(lambda x, y: Several.apply(x.exp(), y), x, y, train=True)


def test_custom_operator() -> None:
    """Opaque to PyTorch, so it is refused, by its name."""

    @torch.library.custom_op("torchtpu_tests::square", mutates_args=())
    def square(x: Tensor) -> Tensor:
        return x * x

    square.register_fake(lambda x: torch.empty_like(x))

    with pytest.raises(TorchTPUError, match=r"torchtpu_tests\.square"):
        compiled(lambda x: square(x) + 1)(torch.randn(3))


class Block(nn.Module):
    def __init__(self, context: Any, reentrant: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.arguments = {"use_reentrant": reentrant} | ({"context_fn": context} if context else {})

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = checkpoint(lambda x, layer=layer: F.gelu(layer(x)).sin(), x, **self.arguments)
        return x


def save_products(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if "mm" in str(op) else CheckpointPolicy.PREFER_RECOMPUTE


SELECTIVE = functools.partial(create_selective_checkpoint_contexts, save_products)


@pytest.mark.parametrize(
    ("context", "reentrant"),
    [(None, False), (None, True), (SELECTIVE, False)],
    ids=["plain", "reentrant", "selective"],
)
def test_checkpoint(context: Any, reentrant: bool) -> None:
    check(Block(context, reentrant), torch.randn(4, 8, requires_grad=True), train=True)


def test_checkpoint_computes_again() -> None:
    """The products of the checkpointed layers are in the backward once more."""

    def products(model: nn.Module) -> int:
        torch._dynamo.reset()
        lowered = torchtpu_dynamo.lower(model, torch.randn(4, 8, requires_grad=True), train=True)
        return lowered.programs["backward"].ops()["dot_general"]

    plain = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(3)))
    assert products(Block(None, False)) == products(plain) + 3
    assert products(Block(SELECTIVE, False)) == products(plain)
