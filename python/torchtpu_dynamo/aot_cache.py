"""What torch's AOTAutograd cache keeps of a compiled graph, so that a later process calls neither
AOTAutograd's tracing nor our compiler.

Kept is what our compiler got, not what it made: payload, output plan, options. The executable comes from
our own, checked cache, or is compiled again. All of this is private to torch: where a version lacks a part,
`available` says so and only our own cache is used. Nothing here may be imported before a compilation needs
it: torch._inductor takes its time."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch._functorch.config
import torch.compiler.config
from torch._functorch._aot_autograd import graph_compile
from torch._functorch._aot_autograd.autograd_cache import BypassAOTAutogradCache
from torch._functorch.aot_autograd import SerializableAOTDispatchCompiler
from torch._guards import TracingContext
from torch._inductor.codecache import FxGraphHashDetails
from torch._inductor.output_code import OutputCode

from ._torchtpu import COMPILER, TorchTPUError
from .counters import counters
from .export import Exported
from .graph import Boxed, Graph, boxed, raising, returned_outputs
from .options import Options


class CompiledGraph(OutputCode):
    """A compiled graph as AOTAutograd calls and pickles it."""

    def __init__(self, graph: Graph) -> None:
        self._boxed_call = True  # of the instance: dynamo's wrapper copies its attributes
        self.exported: Exported = graph.exported
        self.options: Options = graph.options
        self.has_tokens = _has_tokens()
        self.call = start(graph)

    def __call__(self, inputs: Any) -> Any:
        return self.call(inputs)

    def prepare_for_serialization(self) -> None:
        """Called on a copy."""
        if self.has_tokens:
            raise BypassAOTAutogradCache("what AOTAutograd keeps forgets the tokens that the graph takes")
        del self.call

    def post_compile(self, *_: Any) -> None:
        """Called after unpickling. An error makes AOTAutograd compile the graph as if it had not been
        found."""
        self.call = start(Graph(self.exported, self.options))
        counters.graph_loads += 1

    def set_triton_bundle(self, triton_bundle: Any) -> None:
        """There is none."""


class FailedGraph(CompiledGraph):
    """A graph that does not compile: calls raise, and nothing is kept."""

    def __init__(self, error: TorchTPUError) -> None:
        self._boxed_call = True
        self.call = raising(error)

    def prepare_for_serialization(self) -> None:
        raise BypassAOTAutogradCache("the graph does not compile")


def _has_tokens() -> bool:
    """Whether the graph being compiled takes tokens for its effects, as checks of linalg functions are."""
    context = TracingContext.try_get()
    meta = context.fw_metadata if context is not None else None
    return bool(getattr(meta, "tokens", None) or getattr(meta, "num_backward_tokens", 0))


def start(graph: Graph) -> Boxed:
    """The graph's callable. A backward is compiled when it is first called: AOTAutograd hands it over with
    the forward, so that both are kept, and it may never be called. Raises TorchTPUError."""
    if graph.exported.kind != "backward":
        return graph.callable()
    made: Boxed | None = None

    def call(args: list[Any]) -> list[Any]:
        nonlocal made
        if made is None:
            try:
                made = graph.callable()
            except TorchTPUError as e:
                made = raising(e)
        return made(args)

    return boxed(call)


def compile_graph(
    aot_gm: torch.fx.GraphModule, kind: str, static: Sequence[int], options: Options
) -> CompiledGraph:
    """One AOT graph, compiled; an error becomes a graph that raises it."""
    try:
        return CompiledGraph(Graph.of(aot_gm, kind, static, options, returned=returned_outputs(kind)))
    except TorchTPUError as e:
        return FailedGraph(e)


def serializable(compiler: Callable[..., Any]) -> Any:
    """Tells AOTAutograd that what `compiler` makes can be kept."""
    return SerializableAOTDispatchCompiler(OutputCode, compiler)


def available(gm: torch.fx.GraphModule) -> bool:
    """Whether AOTAutograd can keep this graph for us: this torch has what it takes, and the graph owns no
    tensor whose values torch would leave out of its key."""
    return _supported() and not any(
        isinstance(value, torch.Tensor) for module in gm.modules() for value in vars(module).values()
    )


@functools.cache
def _supported() -> bool:
    config = torch._functorch.config
    needed = ("bundled_autograd_cache", "force_non_lazy_backward_lowering", "donated_buffer")
    return (
        all(hasattr(config, name) for name in needed)
        and hasattr(torch.compiler.config, "cache_key_tag")
        and hasattr(graph_compile, "collect_bw_donated_buffer_idxs")
    )


@contextlib.contextmanager
def configuration(options: Options) -> Iterator[None]:
    """What AOTAutograd must do differently while it compiles: keep whole results, compile the backward along
    with the forward, and count what is ours in its key."""
    tag = f"{torch.compiler.config.cache_key_tag}torchtpu-{_tag(options)}"

    def details(self: Any, gm: Any, example_inputs: Sequence[Any], *_: Any) -> None:
        self.gm = gm
        self.example_inputs = list(example_inputs)
        self.torchtpu = tag, _lines(gm)

    # Inductor's share of the key is its own settings and a digest of all of torch's sources. We depend on
    # neither, and making it imports all of inductor: 1.5 s. AOTAutograd's share stays as it is.
    with (
        torch._functorch.config.patch(
            bundled_autograd_cache=True, force_non_lazy_backward_lowering=True, donated_buffer=True
        ),
        # No buffer is donated, as in `backend.configuration`. What is kept must say so with an empty list: told by
        # the setting, AOTAutograd leaves None, and later takes that for buffers that are donated.
        mock.patch.object(graph_compile, "collect_bw_donated_buffer_idxs", return_value=[]),
        mock.patch.object(FxGraphHashDetails, "__init__", details),
    ):
        yield


def _lines(gm: torch.fx.GraphModule) -> str:
    """A digest of the user's lines: what is kept names them, and an edit of the file moves them."""
    modules = [m for m in gm.modules() if isinstance(m, torch.fx.GraphModule)]
    traces = dict.fromkeys(n.meta.get("stack_trace") or "" for m in modules for n in m.graph.nodes)
    return hashlib.sha256("\n".join(traces).encode()).hexdigest()


def _tag(options: Options) -> str:
    """A digest of what a graph of ours depends on and AOTAutograd does not know or, in some version, leaves
    out."""
    parts = [
        torch.__version__,
        torch.version.git_version,
        COMPILER,
        _sources(),
        dataclasses.asdict(options),
        torch.get_float32_matmul_precision(),
        str(torch.get_default_dtype()),
        str(torch.get_default_device()),
        torch.are_deterministic_algorithms_enabled(),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@functools.cache
def _sources() -> str:
    """This package's own code: what exports graphs and decides what is decomposed."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
