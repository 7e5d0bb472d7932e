"""The suites: names, and what each entry runs.

An entry gives samples; a sample is a function with its arguments, run in eager mode and compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree

from tests.exceptions import compared


@dataclasses.dataclass
class Sample:
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    random: bool = False
    """Only shapes and dtypes can be compared: the backend draws other numbers than eager."""


def patch_seeding() -> None:
    """OpInfos of random ops seed the generator inside the op, which dynamo cannot trace; the runner seeds instead."""
    import sys

    def without_seed(op: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return op(*args, **kwargs)

    for name, module in list(sys.modules.items()):
        if name.startswith("torch.testing._internal") and hasattr(module, "wrapper_set_seed"):
            module.wrapper_set_seed = without_seed


def opinfo_names() -> list[str]:
    from torch.testing._internal.common_methods_invocations import op_db

    return [full_name(op) for op in op_db]


def full_name(op: Any) -> str:
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name


def opinfo_samples(name: str, dtype: torch.dtype, train: bool) -> Iterator[Sample] | None:
    """None where the op does not take the dtype."""
    from torch.testing._internal.common_methods_invocations import op_db

    return of_opinfo(next(op for op in op_db if full_name(op) == name), dtype, train)


def of_opinfo(op: Any, dtype: torch.dtype, train: bool) -> Iterator[Sample] | None:
    if dtype not in op.supported_dtypes("cpu"):
        return None
    train = train and op.supports_autograd and dtype in op.supported_backward_dtypes("cpu")
    patch_seeding()
    inputs = list(op.sample_inputs("cpu", dtype, requires_grad=train))

    def call(x: Any, *args: Any, **kwargs: Any) -> Any:
        return op.op(x, *args, **kwargs)

    def random(kwargs: dict[str, Any]) -> bool:
        attention = "attention" in op.name
        drops = attention and bool(kwargs.get("dropout_p") or kwargs.get("training"))
        return drops or op.name in compared("shapes")

    def processed(process: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x, *args, **kwargs: process(op.op(x, *args, **kwargs))

    def pointed(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return values_at(op, x, op.op(x, *args, **kwargs), args, kwargs)

    def function(s: Any) -> Callable[..., Any]:
        if full_name(op) in compared("processed"):
            return processed(s.output_process_fn_grad)
        return pointed if full_name(op) in compared("pointed") else call

    return (Sample(function(s), (s.input, *s.args), s.kwargs, random(s.kwargs)) for s in inputs)


def values_at(
    op: Any, x: torch.Tensor, found: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.Tensor, ...]:
    """In place of indices the elements at them, and that they differ from one another."""
    values, indices = (None, found) if isinstance(found, torch.Tensor) else found
    at = 1 if op.name in ("topk", "kthvalue") else 0
    dim = kwargs.get("dim", args[at] if len(args) > at and isinstance(args[at], int) else -1)
    if x.dim() == 0:
        return (indices,) if values is None else (values, indices)
    lost = op.name == "kthvalue" and indices.dim() < x.dim()
    flat = indices.unsqueeze(dim) if lost else indices
    pointed = x.gather(dim, flat)
    if op.name == "kthvalue":
        return values, pointed
    apart = flat.sort(dim=dim, stable=True).values.diff(dim=dim) > 0
    return (pointed, apart) if values is None else (values, pointed, apart)


def hop_names() -> list[str]:
    from torch.testing._internal.hop_db import hop_db

    return [full_name(op) for op in hop_db]


def hop_samples(name: str, dtype: torch.dtype, train: bool) -> Iterator[Sample] | None:
    from torch.testing._internal.hop_db import hop_db

    return of_opinfo(next(op for op in hop_db if full_name(op) == name), dtype, train)


def module_names() -> list[str]:
    from torch.testing._internal.common_modules import module_db

    return [m.name for m in module_db]


def module_samples(name: str, dtype: torch.dtype, train: bool) -> Iterator[Sample] | None:
    from torch.testing._internal.common_modules import module_db

    info = next(m for m in module_db if m.name == name)
    if dtype not in info.dtypes:
        return None

    def samples() -> Iterator[Sample]:
        for training in (True, False) if info.train_and_eval_differ else (train,):
            inputs = info.module_inputs_func(
                info, device="cpu", dtype=dtype, requires_grad=train, training=training
            )
            for given in inputs:
                if given.forward_input is None:
                    continue
                made = given.constructor_input
                module = info.module_cls(*made.args, **made.kwargs).to(dtype).train(training)
                forward = given.forward_input
                random = training and any("Dropout" in type(m).__name__ for m in module.modules())
                yield Sample(module, forward.args, forward.kwargs, random)

    return samples()


NAMES = {"opinfo": opinfo_names, "hops": hop_names, "modules": module_names}
SAMPLES = {"opinfo": opinfo_samples, "hops": hop_samples, "modules": module_samples}


def copied(tree: Any) -> Any:
    """Fresh leaves, so that one run cannot change another's inputs."""

    def fresh(x: Any) -> Any:
        if isinstance(x, torch.Tensor) and x.layout == torch.strided and x.is_leaf:
            return x.detach().clone().requires_grad_(x.requires_grad)
        return x

    return pytree.tree_map(fresh, tree)
