"""`explain`: what becomes of a function, graph by graph, and what it costs.

Collects and never judges: the compiler's side comes from `Program.analysis` and `Executable.analysis`, the text from
`report_text`, the page from `report_html`. Nothing here changes what is compiled."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch._functorch.config

from . import plugins
from ._torchtpu import TorchTPUError, families
from .backend import compile_with
from .counters import Recompilation, counters
from .graph import Boxed, Graph, boxed
from .options import Options, parse_options
from .report_text import decisions
from .state import entry, forgotten, original, undone


@dataclasses.dataclass(frozen=True)
class FxNode:
    """An ATen operator of a graph. `line` is the user's `file:line`; `operands` are positions in the graph's list;
    `flops` and `bytes` are those of the operations that it was lowered to and that the passes left."""

    name: str
    target: str
    family: str
    type: str
    line: str | None
    function: str | None
    operands: tuple[int, ...]
    flops: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class GraphReport:
    """One graph. `program` is what the compiler says (costs, memory over the schedule, operations), `xla` what the
    plugin says of what it compiled: dictionaries as `Program.analysis` and `Executable.analysis` write them. They are
    None where `error` tells why."""

    index: int
    kind: str
    nodes: tuple[FxNode, ...]
    program: Mapping[str, Any] | None
    xla: Mapping[str, Any] | None
    stages: Mapping[str, float]
    passes: tuple[Mapping[str, Any], ...]
    error: str | None
    decisions: Sequence[Mapping[str, Any]] = ()
    """What our passes would do for a TPU about single operations, and why: `pass`, `op`, `line`, `text`."""

    @property
    def families(self) -> dict[str, int]:
        """How many operators of each family there are, the most first."""
        return dict(Counter(node.family for node in self.nodes).most_common())

    @property
    def rewrites(self) -> dict[str, int]:
        """How often each pass changed something."""
        total: Counter[str] = Counter()
        for report in self.passes:
            total[report["name"]] += report["rewrites"]
        return dict(total)


@dataclasses.dataclass(frozen=True)
class Break:
    """Where dynamo ended a graph. `reason` is dynamo's own text; `lines` are the user's frames, innermost first,
    as (file, line, function)."""

    reason: str
    lines: tuple[tuple[str, int, str], ...]


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What became of a function. Print it, or write `to_html()` to a file."""

    name: str
    graphs: tuple[GraphReport, ...]
    breaks: tuple[Break, ...]
    recompilations: tuple[Recompilation, ...]
    plugin: str
    seconds: float

    def __str__(self) -> str:
        from .report_text import text

        return text(self)

    def to_html(self) -> str:
        """A page in one file, which needs no network."""
        from .report_html import page

        return page(self)


_FAMILIES = {"getitem": "structure", "aten.copy_.default": "mutation"}
"""Of what is no row of the lowering table."""


class _Captured(Exception):
    """Leaves the compiled function where its first graph would run."""


def explain(
    fn: Callable[..., Any],
    *args: Any,
    train: bool = False,
    options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Explanation:
    """Compiles `fn(*args, **kwargs)` and reports graphs, breaks, costs, memory, fusions and times.

    `fn` is a function or module on CPU tensors, compiled already or not; with `train`, its backward is part of the
    report. A function that is one graph is not run. One with breaks is run once, eagerly, because what comes behind a
    break is only known then; tensors that can be reached from `fn` and the arguments, their gradients and the
    random generator are put back, but what Python code does besides (prints, counters, an optimizer's state) is
    done. What was compiled before stays as it is and the statistics do not change.

    A graph that the compiler refuses is reported with its error. Raises torch's own errors for what dynamo cannot
    trace at all."""
    start = time.perf_counter()
    function = original(fn)
    recompilations = recompilations_of(fn)
    collected = _Collector(parse_options(options))
    with counters.unchanged(), forgotten():
        try:
            with contextlib.suppress(_Captured):
                collected.run(function, args, kwargs, train, fullgraph=True, call=_leave)
        except torch._dynamo.exc.TorchDynamoException:
            collected.clear()
            with undone(function, args, kwargs):
                collected.run(function, args, kwargs, train, fullgraph=False, call=None)
    return Explanation(
        name=getattr(function, "__qualname__", type(function).__name__),
        graphs=tuple(collected.graphs),
        breaks=tuple(collected.breaks),
        recompilations=recompilations,
        plugin=collected.plugin,
        seconds=time.perf_counter() - start,
    )


def _leave(*_: Any) -> list[Any]:
    raise _Captured


class _Collector:
    """The reports of the graphs that dynamo makes of one call."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.clear()

    def clear(self) -> None:
        self.graphs: list[GraphReport] = []
        self.breaks: list[Break] = []
        self.plugin = ""
        self.count = 0

    def run(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        train: bool,
        fullgraph: bool,
        call: Boxed | None,
    ) -> None:
        """Calls `fn` under dynamo; graphs run eagerly, or as `call`."""

        def backend(gm: torch.fx.GraphModule, example_inputs: Sequence[Any], **_: Any) -> Callable[..., Any]:
            index, self.count = self.count, self.count + 1
            self.note_break(gm)

            def compiler(aot_gm: torch.fx.GraphModule, kind: str, static: Sequence[int]) -> Boxed:
                self.graphs.append(self.report(aot_gm, index, kind, static))
                return boxed(call or functools.partial(run_eagerly, aot_gm))

            return compile_with(gm, example_inputs, compiler, self.options)

        compiled = torch.compile(entry(fn, "explain"), backend=backend, fullgraph=fullgraph, dynamic=False)
        whole_backward = torch._functorch.config.patch(force_non_lazy_backward_lowering=True)
        with torch.set_grad_enabled(train), whole_backward:
            compiled(*args, **kwargs)

    def note_break(self, gm: torch.fx.GraphModule) -> None:
        # Not public: without it breaks are counted by the graphs, and have no lines.
        reason = getattr(gm, "compile_subgraph_reason", None)
        if reason is not None and getattr(reason, "graph_break", False):
            frames = reversed(list(getattr(reason, "user_stack", ())))
            lines = tuple((f.filename, f.lineno or 0, f.name) for f in frames)
            self.breaks.append(Break(str(reason.reason), lines))

    def report(self, gm: torch.fx.GraphModule, index: int, kind: str, static: Sequence[int]) -> GraphReport:
        made = functools.partial(GraphReport, index, kind)
        nodes: tuple[FxNode, ...] = ()
        program: dict[str, Any] | None = None
        stages: dict[str, float] = {}
        passes: tuple[Mapping[str, Any], ...] = ()
        decided: list[dict[str, Any]] = []
        try:
            graph = Graph.of(gm, kind, static, self.options)
            payload = json.loads(graph.exported.json)
            nodes = fx_nodes(payload, None)
            compiled = graph.program({})
            program = json.loads(compiled.analysis())
            nodes = fx_nodes(payload, program)
            stages = {"export": graph.export_seconds, **compiled.stage_times()}
            passes = tuple(compiled.pass_reports())
            if compiled.devices > 1:
                decided = decisions(compiled.for_tpu("", self.options.compile_json()).pass_reports())
            client = plugins.client(self.options.plugin, self.options.zero_copy)
            self.plugin = client.platform
            executable = compiled.compile(client, self.options.compile_json())
            stages.update(executable.stage_times())
            xla = json.loads(executable.analysis())
        except TorchTPUError as e:
            return made(nodes, program, None, stages, passes, str(e), decided)
        return made(nodes, program, xla, stages, passes, None, decided)


def run_eagerly(gm: torch.fx.GraphModule, args: list[Any]) -> list[Any]:
    """A boxed call of a graph with torch's own operators."""
    given = list(args)
    args.clear()
    return list(gm(*given))


def fx_nodes(payload: Mapping[str, Any], program: Mapping[str, Any] | None) -> tuple[FxNode, ...]:
    """The operators of a payload, with the costs of the operations that they became."""
    family = families()
    costs: dict[str, list[int]] = {}
    for operation in program["nodes"] if program else ():
        cost = costs.setdefault(operation["name"], [0, 0])
        cost[0] += operation["flops"]
        cost[1] += operation["bytes"]
    first = len(payload["inputs"]) + len(payload["constants"])
    nodes = []
    for node in payload["nodes"]:
        target = payload["targets"][node["target"]]["name"]
        frames = payload["stacks"][node["stack"]] if node.get("stack") is not None else []
        types = [type_text(v) for v in node["vals"] if v]
        operands = {index - first for index in values_in(node["args"]) if index >= first}
        nodes.append(
            FxNode(
                name=node["name"],
                target=target,
                family=family.get(target, _FAMILIES.get(target, "other")),
                type=" ".join(types),
                line=f"{frames[0][0]}:{frames[0][1]}" if frames else None,
                function=frames[0][2] if frames else None,
                operands=tuple(sorted(operands)),
                flops=costs.get(node["name"], (0, 0))[0],
                bytes=costs.get(node["name"], (0, 0))[1],
            )
        )
    return tuple(nodes)


def type_text(meta: Mapping[str, Any]) -> str:
    return f"{meta['dtype']}[{','.join(map(str, meta['shape']))}]"


def values_in(args: Any) -> list[int]:
    """Indices of the values that an exported argument names."""
    if isinstance(args, list):
        return [index for arg in args for index in values_in(arg)]
    if isinstance(args, dict) and "v" in args:
        return [args["v"]]
    return []


def recompilations_of(fn: Callable[..., Any]) -> tuple[Recompilation, ...]:
    """The recompilations of a function that was compiled before. Where torch does not tell which graphs are the
    function's, all of the process."""
    noted = tuple(counters.recompilations)
    try:
        from torch._dynamo.eval_frame import _debug_get_cache_entry_list

        function = original(fn)
        method = function.forward if isinstance(function, torch.nn.Module) else function
        frames = {entry.compile_id.frame_id for entry in _debug_get_cache_entry_list(method.__code__)}
    except (ImportError, AttributeError, TypeError):
        return noted
    return tuple(r for r in noted if r.graph.partition("/")[0] in {str(f) for f in frames})
