"""Control flow: higher-order operators, whose arguments are graphs."""

import torch
import torch.nn.functional as F
from torch._higher_order_ops import associative_scan, foreach_map, scan, while_loop
from torch._higher_order_ops import map as map_over
from torch._higher_order_ops.out_dtype import out_dtype
from torch.utils.checkpoint import checkpoint

from tests.ops import Case, case, f32, i8

WEIGHT = torch.tensor([[0.5, -1.0, 0.25], [1.0, 0.5, -0.5], [-0.25, 0.75, 1.0]])


@torch.compiler.nested_compile_region
def layer(x, w):
    return torch.relu(x @ w + 0.1)


def branches(x, y):
    return torch.cond(x.sum() > 0, lambda x, y: (x.sin(), y + 1), lambda x, y: (x.cos(), y * x), (x, y))


def nested_branches(x):
    inner = lambda x: torch.cond(x.max() > 1, lambda x: x * 2, lambda x: x + 2, (x,))
    return torch.cond(x.sum() > 0, inner, lambda x: x.exp(), (x,))


def newton(x):
    """Square roots; the number of steps depends on the data."""
    go_on = lambda i, y: (i < 50) & ((y * y - x).abs().max() > 1e-4)
    return while_loop(go_on, lambda i, y: (i + 1, 0.5 * (y + x / y)), (torch.tensor(0), torch.ones_like(x)))


CASES: list[Case] = [
    case("cond_first", branches, f32(2, 3, low=0.1), f32(2, 3), train=True),
    case("cond_second", branches, f32(2, 3, high=-0.1), f32(2, 3), train=True, fixture=False),
    case("cond_in_cond", nested_branches, f32(2, 3)),
    case("while_loop", newton, f32(4, low=0.5, high=9.0)),
    case(
        "scan",
        lambda x: scan(lambda c, x: (c * 0.5 + x.sin(), c * x), torch.zeros(3), x),
        f32(5, 3),
        train=True,
    ),
    case(
        "scan_reverse",
        lambda x: scan(lambda c, x: (c + x, c.clone()), torch.zeros(3), x, reverse=True),
        f32(5, 3),
        fixture=False,
    ),
    case("map", lambda x, y: map_over(lambda x, y: x.sin() @ y, x, y), f32(4, 2, 3), f32(3, 2), train=True),
    case("associative_scan", lambda x: associative_scan(lambda a, b: torch.maximum(a, b), x, 0), f32(6, 2)),
    case(
        "associative_scan_generic",
        lambda x: associative_scan(lambda a, b: a * b, x, 1, combine_mode="generic"),
        f32(2, 6),
        fixture=False,
    ),
    case(
        "cond_random",
        lambda x: torch.cond(x.sum() > 0, lambda x: F.dropout(x), lambda x: x + torch.rand_like(x), (x,)),
        f32(2, 3),
        random=True,
    ),
    case(
        "while_loop_random",
        lambda x: while_loop(
            lambda i, x: i < 3, lambda i, x: (i + 1, x + torch.rand_like(x)), (torch.tensor(0), x)
        ),
        f32(2, 3),
        random=True,
        fixture=False,
    ),
    case("map_random", lambda x: map_over(lambda x: F.dropout(x), x), f32(4, 3), random=True, fixture=False),
    case("invoke_subgraph", lambda x: layer(layer(x, WEIGHT), WEIGHT), f32(4, 3), train=True),
    case(
        "foreach_map",
        lambda x, y: foreach_map(torch.add, [x, y], [x, y], alpha=2.0),
        f32(4, 3),
        f32(2, 1),
        fixture=False,
    ),
    case(
        "out_dtype_mm",
        lambda x, y: out_dtype(torch.ops.aten.mm.default, torch.int32, x, y) + 1,
        i8(3, 40),
        i8(40, 5),
        fixture=False,
    ),
    case(
        "out_dtype_mul",
        lambda x, y: out_dtype(torch.ops.aten.mul.Tensor, torch.int32, x, y),
        i8(3, 4),
        i8(4),
        fixture=False,
    ),
    case(
        "checkpoint",
        lambda x: checkpoint(lambda x: torch.sin(x @ x.t()).exp(), x, use_reentrant=False),
        f32(4, 3),
        train=True,
        fixture=False,
    ),
    case("vmap", lambda x: torch.vmap(lambda r: (r * r.sum()).cumsum(0))(x), f32(4, 3), fixture=False),
    case("func_grad", lambda x: torch.func.grad(lambda y: (y**3).sum())(x), f32(4, 3), fixture=False),
    case("jvp", lambda x: torch.func.jvp(torch.sin, (x,), (x.cos(),)), f32(4, 3), fixture=False),
]
