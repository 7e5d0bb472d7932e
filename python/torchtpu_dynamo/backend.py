"""The dynamo backend: `torch.compile(model, backend="tpu")`.

Connects dynamo to AOTAutograd to `graph`. Decompositions are a table of their own, and what a graph
means is the compiler's business: nothing here may rewrite one. Torch's defaults stay as they are;
configuration that must differ is patched for the duration of one compilation."""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from types import ModuleType
from typing import Any

import torch
import torch._functorch.config
from torch._dynamo.backends.common import aot_autograd
from torch._guards import TracingContext
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from . import cache, custom_ops
from ._torchtpu import TorchTPUError
from .decompositions import bytes_whole
from .distributed import ranks
from .export import calling_frames
from .fallback import Fallback, may_be_cut, reads_data
from .graph import Boxed, Graph, raising, returned_outputs
from .options import Options, check_mode, parse_options
from .partition import partition

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
    # AOTAutograd's key knows nothing of registered lowerings, a graph that may be cut is kept whole, and a nested tensor
    # cannot be in a key.
    plain = (
        parsed.fallback == "error"
        and not custom_ops.registered
        and not reads_data(gm)
        and not any(isinstance(x, torch.Tensor) and x.is_nested for x in example_inputs)
        and not ranks.several()
    )
    if plain and cache.store(parsed) is not None and (kept := aot_cache()) is not None and kept.available(gm):
        return compile_with(
            gm,
            example_inputs,
            functools.partial(kept.compile_graph, options=parsed),
            parsed,
            kept.serializable,
            functools.partial(kept.configuration, parsed),
        )
    return compile_with(gm, example_inputs, functools.partial(compile_graph, options=parsed), parsed)


def tpu(gm: torch.fx.GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
    """The backend under its short name, which another package may claim as well."""
    warn_of_namesakes()
    return torchtpu_dynamo(gm, example_inputs, **kwargs)


def configuration() -> contextlib.AbstractContextManager[Any]:
    """What AOTAutograd must do differently for us, and for us only."""
    # Torch frees donated buffers itself and then refuses retain_graph=True; ours are only ever read.
    return torch._functorch.config.patch(donated_buffer=False)


def overlapping() -> contextlib.AbstractContextManager[Any]:
    """What AOTAutograd must do differently where arguments share memory: of those it makes one argument, and replays the
    views that are returned as if the views' own argument were still there."""
    return torch._functorch.config.patch(view_replay_for_aliased_outputs=False)


def share_memory(inputs: Sequence[Any]) -> bool:
    """Whether two arguments lie in one memory."""
    memories = [x.untyped_storage()._cdata for x in tensors(inputs)]
    return len(set(memories)) < len(memories)


def tensors(inputs: Sequence[Any]) -> list[torch.Tensor]:
    """The arguments that have one memory each."""
    return [
        x
        for x in inputs
        if isinstance(x, torch.Tensor) and x.layout is torch.strided and not is_traceable_wrapper_subclass(x)
    ]


def whole_backward() -> contextlib.AbstractContextManager[Any]:
    """Has AOTAutograd compile the backward along with the forward, rather than when it first runs."""
    return torch._functorch.config.patch(force_non_lazy_backward_lowering=True)


@functools.cache
def aot_cache() -> ModuleType | None:
    """What connects AOTAutograd's cache; None where this torch lacks a part of it, all of which is private."""
    try:
        from . import aot_cache
    except (ImportError, AttributeError) as e:
        log.info("AOTAutograd's cache is not used with torch %s: %s", torch.__version__, e)
        return None
    return aot_cache


def compile_with(
    gm: torch.fx.GraphModule,
    example_inputs: Sequence[Any],
    compiler: Compiler,
    options: Options,
    wrap: Callable[[Callable[..., Any]], Any] = lambda compile: compile,
    configured: Callable[[], contextlib.AbstractContextManager[Any]] = configuration,
    static: Sequence[int] | None = None,
) -> Callable[..., Any]:
    """Runs AOTAutograd, configured so, and hands its graphs to `compiler`, as what `wrap` makes of it. Of `options`, those
    that decide what a forward keeps are obeyed here. `static` are the inputs that are parameters and buffers, where dynamo
    does not tell."""
    parameters: set[str] = set()

    def compile_expanded(aot_gm: torch.fx.GraphModule, kind: str, static: Sequence[int]) -> Boxed:
        try:
            custom_ops.expand(aot_gm)
        except TorchTPUError as e:
            return raising(e)
        return compiler(aot_gm, kind, static)

    def compile_forward(kind: str, aot_gm: torch.fx.GraphModule, _: Sequence[Any]) -> Boxed:
        known = static_inputs() if static is None else static
        names = [n.name for n in aot_gm.graph.nodes if n.op == "placeholder"]
        parameters.update(names[i] for i in known if i < len(names))
        return compile_expanded(aot_gm, kind, known)

    def compile_backward(aot_gm: torch.fx.GraphModule, _: Sequence[Any]) -> Boxed:
        names = [n.name for n in aot_gm.graph.nodes if n.op == "placeholder"]
        # A parameter saved for the backward keeps its name.
        return compile_expanded(aot_gm, "backward", [i for i, name in enumerate(names) if name in parameters])

    backend = aot_autograd(
        fw_compiler=wrap(functools.partial(compile_forward, "forward")),
        bw_compiler=wrap(compile_backward),
        inference_compiler=wrap(functools.partial(compile_forward, "inference")),
        decompositions=custom_ops.table(),
        partition_fn=functools.partial(partition, limit=options.activation_memory),
        keep_inference_input_mutations=True,
    )
    try:
        apart = overlapping() if share_memory(example_inputs) else contextlib.nullcontext()
        with configured(), apart, bytes_whole():
            return backend(gm, example_inputs)
    except TorchTPUError as e:  # of a lowering that the user registered, and that PyTorch traces
        return raising(e)
    except AssertionError:
        if not share_memory(example_inputs) or len({x.dtype for x in tensors(example_inputs)}) == 1:
            raise
        at = "".join(f"\n  at:    {file}:{line} in {name}" for file, line, name in calling_frames()[:1])
        return raising(
            TorchTPUError(
                "two arguments share memory, have different dtypes, and one is written" + at + "\n"
                "  help:  pass one of them, and make the other inside of the function, by view(dtype)"
            )
        )


def compile_graph(aot_gm: torch.fx.GraphModule, kind: str, static: Sequence[int], options: Options) -> Boxed:
    """One AOT graph to a boxed callable; an error becomes a callable that raises it."""
    try:
        made = Fallback if may_be_cut(aot_gm, options) else Graph.of
        return made(aot_gm, kind, static, options, returned=returned_outputs(kind)).callable()
    except TorchTPUError as e:
        return raising(e)


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
