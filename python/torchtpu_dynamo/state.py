"""Running a user's function without leaving traces: tensors and random numbers as they were.

Used by `explain` and `compare`, which must run what they look at. What is put back is tensors that can be found from
the function and its arguments, their gradients, and torch's default generator. Nothing here may compile."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree


def original(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function under `torch.compile`, if it is there: what was compiled is what is meant."""
    found: Callable[..., Any] = getattr(fn, "_orig_mod", getattr(fn, "_torchdynamo_orig_callable", fn))
    return found


def entry(fn: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A function of its own code object for each call: dynamo counts recompilations by code object, and none of
    the caller's are to be seen or added to."""

    def entry(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return types.FunctionType(entry.__code__.replace(), entry.__globals__, name, None, entry.__closure__)


@contextlib.contextmanager
def undone(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
    """Puts back, after the block, the tensors of `fn` and its arguments that were written to, their gradients, and
    the state of the random generator. A copy of each tensor is held meanwhile."""
    found = tensors_of(fn, args, kwargs)
    with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
        copies = [t.detach().clone() for t in found]
        grads = [(t, t.grad, None if t.grad is None else t.grad.clone()) for t in found if t.is_leaf]
    versions = [version(t) for t in found]
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            for tensor, copied, seen in zip(found, copies, versions, strict=True):
                if seen is None or version(tensor) != seen:
                    tensor.detach().copy_(copied)
            for tensor, grad, value in grads:
                tensor.grad = grad
                if grad is not None and value is not None:
                    grad.copy_(value)


def version(tensor: torch.Tensor) -> int | None:
    """How often a tensor was written to; inference tensors do not count."""
    return None if tensor.is_inference() else tensor._version


def leaves_by_path(value: Any) -> list[tuple[str, Any]]:
    """The leaves of a nest of values, each with where it is, as Python writes it."""
    try:
        return [(pytree.keystr(path), leaf) for path, leaf in pytree.tree_flatten_with_path(value)[0]]
    except ValueError:  # a type that was registered without names of its parts, as those of diffusers
        return [(f"[{i}]", leaf) for i, leaf in enumerate(pytree.tree_leaves(value))]


def tensors_of(fn: Callable[..., Any], args: Any, kwargs: Any) -> list[torch.Tensor]:
    """Each tensor that the arguments hold, and that can be reached from the function: of modules all parameters
    and buffers, of functions what their cells and the globals that they name hold."""
    tensors, _ = reached(fn, (args, kwargs))
    return [t for t in tensors if t.layout is torch.strided]


def reached(*roots: Any) -> tuple[list[torch.Tensor], list[torch.nn.Module]]:
    """The tensors that can be reached from these values, and the modules without those inside them."""
    found: dict[int, torch.Tensor] = {}
    modules: list[torch.nn.Module] = []
    seen: set[int] = set()

    def visit(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.setdefault(id(value), value)
            return
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, torch.nn.Module):
            modules.append(value)
            for tensor in (*value.parameters(), *value.buffers()):
                visit(tensor)
        elif isinstance(value, types.MethodType):
            visit(value.__self__)
            visit(value.__func__)
        elif isinstance(value, types.FunctionType):
            for cell in value.__closure__ or ():
                with contextlib.suppress(ValueError):  # an empty cell
                    visit(cell.cell_contents)
            for name in value.__code__.co_names:
                visit(value.__globals__.get(name))
        elif isinstance(value, (list, tuple, dict)):
            for leaf in pytree.tree_leaves(value):
                visit(leaf)

    for root in roots:
        visit(root)
    return list(found.values()), modules


@contextlib.contextmanager
def forgotten() -> Iterator[None]:
    """Has dynamo forget, after the block, what it compiled in it of code that it had not compiled before. Where
    there are graph breaks that is code of the user's, whose first compilation would else look like a second."""
    from torch._dynamo import convert_frame

    # Not public: without them a later compilation is counted as a recompilation, and nothing else goes wrong.
    codes = getattr(convert_frame, "input_codes", None)
    reset = getattr(torch._dynamo.eval_frame, "reset_code", None)
    before = {id(ref()) for ref in getattr(codes, "seen", ())}
    try:
        yield
    finally:
        for ref in list(getattr(codes, "seen", ())):
            code = ref()
            if code is not None and id(code) not in before and reset is not None:
                reset(code)
