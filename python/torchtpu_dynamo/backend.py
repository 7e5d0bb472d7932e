"""The dynamo backend: `torch.compile(model, backend="tpu")`.

Connects dynamo to AOTAutograd to `graph`. Decompositions are a table of their own, and what a graph
means is the compiler's business: nothing here may rewrite one. Torch's defaults stay as they are;
configuration that must differ is patched for the duration of one compilation."""

from __future__ import annotations

import contextlib
import functools
import logging
import operator
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import torch
import torch._functorch.config
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._guards import TracingContext
from torch.utils.checkpoint import CheckpointPolicy

from . import decompositions
from ._torchtpu import TorchTPUError
from .graph import Boxed, Graph, boxed
from .options import Options, check_mode, parse_options

log = logging.getLogger("torchtpu_dynamo")

Compiler = Callable[[torch.fx.GraphModule, str, Sequence[int]], Boxed]
"""Makes a boxed callable of an AOT graph, its kind and the positions of its parameters and buffers."""


def torchtpu_dynamo(
    gm: torch.fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: dict[str, Any] | None = None,
    **_: Any,
) -> Callable[..., Any]:
    """Compiles a graph of dynamo's. CPU tensors in and out.

    Every error of ours is a TorchTPUError, raised when the compiled function is called: raised here,
    dynamo would wrap it in an exception of its own."""
    try:
        check_mode(mode)
        parsed = parse_options(options)
    except TorchTPUError as e:
        return raising(e)
    return compile_with(gm, example_inputs, functools.partial(compile_graph, options=parsed))


def tpu(gm: torch.fx.GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
    """The backend under its short name, which another package may claim as well."""
    warn_of_namesakes()
    return torchtpu_dynamo(gm, example_inputs, **kwargs)


def compile_with(
    gm: torch.fx.GraphModule, example_inputs: Sequence[Any], compiler: Compiler
) -> Callable[..., Any]:
    """Runs AOTAutograd and hands its graphs to `compiler`."""
    parameters: set[str] = set()

    def compile_forward(kind: str, aot_gm: torch.fx.GraphModule, _: Sequence[Any]) -> Boxed:
        static = static_inputs()
        names = [n.name for n in aot_gm.graph.nodes if n.op == "placeholder"]
        parameters.update(names[i] for i in static if i < len(names))
        return compiler(aot_gm, kind, static)

    def compile_backward(aot_gm: torch.fx.GraphModule, _: Sequence[Any]) -> Boxed:
        names = [n.name for n in aot_gm.graph.nodes if n.op == "placeholder"]
        # A parameter saved for the backward keeps its name.
        return compiler(aot_gm, "backward", [i for i, name in enumerate(names) if name in parameters])

    backend = aot_autograd(
        fw_compiler=functools.partial(compile_forward, "forward"),
        bw_compiler=compile_backward,
        inference_compiler=functools.partial(compile_forward, "inference"),
        decompositions=decompositions.table(),
        partition_fn=partition,
        keep_inference_input_mutations=True,
    )
    with configuration():
        return backend(gm, example_inputs)


def partition(joint: torch.fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
    """Torch's partition into forward and backward, in which what is random is never computed again.

    Inside `torch.utils.checkpoint`, torch would draw again from a saved state of its own generator, which
    is not ours. Saved instead, forward and backward see the same numbers."""
    for node in joint.graph.nodes:
        if "recompute" in node.meta and is_random(node.target):
            # Of a tuple its elements are saved.
            for each in [u for u in node.users if u.target is operator.getitem] or [node]:
                each.meta["recompute"] = CheckpointPolicy.MUST_SAVE
            if node.meta["recompute"] is not CheckpointPolicy.MUST_SAVE:
                del node.meta["recompute"]
    return min_cut_rematerialization_partition(joint, *args, **kwargs)


def is_random(target: Any) -> bool:
    """Draws from the generator."""
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in target.tags


def configuration() -> contextlib.AbstractContextManager[Any]:
    """What AOTAutograd must do differently for us, and for us only."""
    # Torch frees donated buffers itself and then refuses retain_graph=True; ours are only ever read.
    return torch._functorch.config.patch(donated_buffer=False)


def compile_graph(aot_gm: torch.fx.GraphModule, kind: str, static: Sequence[int], options: Options) -> Boxed:
    """One AOT graph to a boxed callable; an error becomes a callable that raises it."""
    try:
        return Graph(aot_gm, kind, static, options).callable()
    except TorchTPUError as e:
        return raising(e)


def raising(error: TorchTPUError) -> Boxed:
    """A compiled function that raises `error`, each time without the frames of the compilation."""
    error.__traceback__ = error.__cause__ = error.__context__ = None

    def call(*_: Any) -> list[Any]:
        raise error.with_traceback(None)

    return boxed(call)


def static_inputs() -> list[int]:
    """The positions of parameters and buffers among the inputs of the graph being compiled."""
    context = TracingContext.try_get()
    if context is None or context.fw_metadata is None:
        return []
    return list(context.fw_metadata.static_input_indices or [])


@functools.cache
def warn_of_namesakes() -> None:
    """Warns, once, of another installed package that registers a backend named `tpu`."""
    for point in metadata.entry_points(group="torch_dynamo_backends", name="tpu"):
        if point.value.partition(":")[0].partition(".")[0] != __package__:
            owner = point.dist.name if point.dist is not None else point.value
            warnings.warn(
                f'{owner} registers a backend "tpu" too; backend="torchtpu_dynamo" always means this one',
                stacklevel=2,
            )
