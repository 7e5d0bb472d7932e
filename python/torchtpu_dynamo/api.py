"""`lower`: a function or module to programs, without running it.

Uses the same path as `torch.compile`, up to the point where a plugin would be needed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from ._torchtpu import Program, TorchTPUError
from .backend import compile_with, whole_backward
from .fallback import refuse_data
from .graph import Boxed, Graph, boxed
from .options import Options, parse_options

Made = TypeVar("Made")


@dataclasses.dataclass(frozen=True)
class Lowered:
    """The programs of a function: "inference", or "forward" and "backward"."""

    programs: Mapping[str, Program]

    def as_text(self) -> str:
        """The StableHLO of every program."""
        return "\n".join(f"// {name}\n{program.as_text()}" for name, program in self.programs.items())


class _Captured(Exception):
    """Leaves the compiled function where its first graph would run."""


def lower(
    fn: Callable[..., Any],
    *args: Any,
    train: bool = False,
    options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Lowered:
    """Compiles `fn(*args, **kwargs)` to StableHLO. Nothing is executed and no plugin is needed.

    `fn` is a function or module on CPU tensors. With `train`, the programs are its forward and its
    backward, and a parameter or argument must require a gradient; without, one program that keeps
    nothing for a backward. Under a process group they are what this rank traces; `lower_spmd` traces as
    every rank. Raises TorchTPUError for what the compiler does not support, and torch's own
    errors for what dynamo can't trace as one graph."""
    made = capture(fn, args, kwargs, train, parse_options(options), lambda graph: graph.program({}))
    return Lowered({kind: program for kind, (program, _) in made.items()})


def capture(
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    train: bool,
    options: Options,
    make: Callable[[Graph], Made],
) -> dict[str, tuple[Made, list[torch.Tensor]]]:
    """What `make` makes of each graph of `fn(*args, **kwargs)`, in the order of their execution, with the tensors that the
    first would be called with; the others have none."""
    # Under torch.compile already: what was compiled is what is meant.
    original: Callable[..., Any] = getattr(fn, "_orig_mod", getattr(fn, "_torchdynamo_orig_callable", fn))
    made: dict[str, tuple[Made, list[torch.Tensor]]] = {}
    errors: list[TorchTPUError] = []

    def compile_one(aot_gm: torch.fx.GraphModule, kind: str, static: Sequence[int]) -> Boxed:
        try:
            refuse_data(aot_gm)
            graph = Graph.of(aot_gm, kind, static, options)
            tensors: list[torch.Tensor] = []
            made[kind] = make(graph), tensors
        except TorchTPUError as e:
            errors.append(e)
            return boxed(_leave)

        def leave(inputs: list[Any]) -> list[Any]:
            tensors.extend(inputs[i] for i in graph.exported.tensor_inputs)
            tensors.extend(graph.exported.constants)
            raise _Captured

        return boxed(leave)

    def backend(gm: torch.fx.GraphModule, example_inputs: Sequence[Any], **_: Any) -> Callable[..., Any]:
        return compile_with(gm, example_inputs, compile_one, options)

    compiled = torch.compile(_entry(original), backend=backend, fullgraph=True, dynamic=False)
    with torch.set_grad_enabled(train), whole_backward(), contextlib.suppress(_Captured):
        compiled(*args, **kwargs)
    if errors:
        raise errors[0].with_traceback(None)
    if not made:
        raise TorchTPUError("nothing to lower: the function calls no operator on a tensor")
    if train and "backward" not in made:
        raise TorchTPUError(
            "nothing to differentiate: no parameter or argument requires a gradient\n"
            "help: lower(..., train=False)"
        )
    return {kind: made[kind] for kind in ("inference", "forward", "backward") if kind in made}


def _leave(*_: Any) -> list[Any]:
    raise _Captured


def _entry(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function of its own code object for each `lower`: dynamo counts recompilations by code object."""

    def entry(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return types.FunctionType(entry.__code__.replace(), entry.__globals__, "lower", None, entry.__closure__)
