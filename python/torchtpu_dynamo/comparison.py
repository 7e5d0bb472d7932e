"""`compare`: does a compiled function compute what eager does, and if not, which operator and line is it?

Eager PyTorch is the reference, at two levels: the whole function, and each graph of AOTAutograd operator by operator.
For the latter a graph is compiled once more with every intermediate tensor as a result. An operator is judged by its
*own* error: eager computes it from the compiled program's operands, so that what came in wrong is not held against it.

Nothing here may change what `torch.compile` does."""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch._functorch.config
import torch.fx
from torch.utils import _pytree as pytree

from ._torchtpu import TorchTPUError
from .backend import compile_with, raising
from .counters import counters
from .explanation import FxNode, fx_nodes
from .export import schema_args
from .graph import Boxed, Graph, boxed
from .options import Options, parse_options
from .report_text import clipped, counted, short_line, table, wrapped
from .state import entry, forgotten, leaves_by_path, original, tensors_of, undone, version

TOLERANCES: dict[torch.dtype, tuple[float, float]] = {
    torch.float16: (1e-3, 1e-5),
    torch.bfloat16: (1.6e-2, 1e-5),
    torch.float32: (1.3e-6, 1e-5),
    torch.float64: (1e-7, 1e-7),
    torch.complex64: (1.3e-6, 1e-5),
    torch.complex128: (1e-7, 1e-7),
    torch.float8_e4m3fn: (1.3e-1, 1e-5),
    torch.float8_e5m2: (2.6e-1, 1e-5),
}
"""rtol and atol by dtype: those of `torch.testing`. Any other dtype must agree exactly."""

_ADDING = (
    "norm",
    "add",
    "sub",
    "rsub",
    "sum",
    "mean",
    "var",
    "std",
    "mm",
    "dot",
    "cumsum",
    "convolution",
    "scatter_add",
)
"""In the names of operators whose result may be much smaller than what they add up."""

_SMALLEST_SCALE = 1e-3


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of two tensors. `ratio` is the greatest error over what is tolerated there: above 1 is beyond tolerance. `index`
    is where that is, `actual` and `expected` what stands there."""

    max_abs: float
    max_rel: float
    ratio: float
    count: int
    """Elements beyond tolerance."""
    index: tuple[int, ...]
    actual: Any
    expected: Any

    @property
    def beyond(self) -> bool:
        return self.ratio > 1

    def __str__(self) -> str:
        return (
            f"max abs error {self.max_abs:.3g}, max rel error {self.max_rel:.3g}, {self.ratio:.3g} x the tolerance"
            f" at {list(self.index)}: compiled {self.actual:.6g}, eager {self.expected:.6g}"
        )


@dataclasses.dataclass(frozen=True)
class NodeResult:
    """An operator of a graph. `own` is its error on the compiled program's operands, `total` that against a graph
    which runs in eager from the start."""

    graph: str
    node: FxNode
    own: Difference
    total: Difference
    operands: tuple[str, ...]

    def __str__(self) -> str:
        line = short_line(self.node.line) if self.node.line else "an unknown line"
        where = f"{line} in {self.node.function}" if self.node.function else line
        return f"{self.node.target} `{self.node.name}` at {where} ({self.graph})"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `compare` found. `results` are differences beyond tolerance of what the caller sees (results, gradients,
    tensors written to), compiled against eager; `programs` those of each graph's results against its operators in
    eager; `nodes` every operator in order; `notes` what was not compared and why."""

    name: str
    results: Mapping[str, Difference]
    programs: Mapping[str, Difference]
    nodes: tuple[NodeResult, ...]
    notes: tuple[str, ...]

    @property
    def first(self) -> NodeResult | None:
        """The first operator whose own error is beyond tolerance."""
        return next((n for n in self.nodes if n.own.beyond), None)

    @property
    def worst(self) -> list[NodeResult]:
        """Operators by their own error, the worst first."""
        return sorted(self.nodes, key=lambda n: -n.own.ratio)

    @property
    def ok(self) -> bool:
        return not self.results and not self.programs and self.first is None

    def __str__(self) -> str:
        lines = [f"{self.name}: {'agrees with' if self.ok else 'differs from'} eager, {self.summary()}"]
        for what, difference in (*self.results.items(), *self.programs.items()):
            lines += wrapped("  ", f"{what}: {difference}")
        if self.first is not None:
            lines += wrapped("first     ", str(self.first))
            lines += wrapped("          ", str(self.first.own))
            lines += [clipped(f"          operand {operand}") for operand in self.first.operands]
        lines += [line for note in self.notes for line in wrapped("note      ", note)]
        worst = [n for n in self.worst if n.own.max_abs > 0][:10]
        if worst:
            lines.append("the largest errors of single operators: own / tolerance, own, along the graph")
            rows = [
                (f"{n.own.ratio:.3g}", f"{n.own.max_abs:.2e}", f"{n.total.max_abs:.2e}", n.node.target, n.node.type,
                 short_line(n.node.line) if n.node.line else "")
                for n in worst
            ]  # fmt: skip
            lines += table(rows)
        return "\n".join(lines)

    def summary(self) -> str:
        """What to make of it."""
        compared = f"{counted(len(self.nodes), 'operator')} compared"
        if self.first is not None:
            if self.results or self.programs:
                return f"{compared}; the first that is wrong is named below"
            return f"{compared}; one is beyond tolerance where its result is read, though the results agree"
        if self.programs:
            return f"{compared}: none is wrong by itself, their errors add up"
        if self.results:
            return f"{compared}: all agree, so it is the graph: a decomposition, or AOTAutograd"
        return compared


def compare(
    fn: Callable[..., Any],
    *args: Any,
    train: bool = False,
    rtol: float | None = None,
    atol: float | None = None,
    options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Comparison:
    """Runs `fn(*args, **kwargs)` in eager and compiled, then each graph operator by operator.

    `fn` is a function or module on CPU tensors, compiled already or not; with `train`, gradients of the sum of its
    floating-point results are compared too. It runs twice; tensors that can be reached from `fn` and the
    arguments, their gradients and the random generator are put back afterwards. All intermediate tensors are in
    memory at once.

    An element is tolerated within `rtol * |eager| + atol * scale`. By default these are `torch.testing`'s for the
    dtype (atol at least a quarter of its epsilon), and `scale` is the greatest number in eager's result, for sums
    also in what is added; where the errors of many operators add up, in results, atol counts ten times,
    and the scale of the function's own results is at least 1. With
    `rtol` or `atol` given, the other is 0 and the scale 1 throughout. Other dtypes must agree exactly, NaN agrees
    with NaN. Where an operator is beyond tolerance, and in f64 its result is farther from eager's than from the
    compiled program's, the latter is held against f64.

    Random operators take the compiled program's numbers in eager; a function with any is compared graph by graph
    only. With intermediates as results XLA fuses less, so an error of fusion alone shows in `programs` but not in
    `first`.
    Raises TorchTPUError for what the compiler does not support."""
    function = original(fn)
    limits = _Limits(rtol, atol)
    checks = _Checks(parse_options(options), limits)
    with counters.unchanged(), forgotten():
        expected = observe(function, function, args, kwargs, train)
        compiled = torch.compile(entry(function, "compare"), backend=checks.backend, dynamic=False)
        whole_backward = torch._functorch.config.patch(force_non_lazy_backward_lowering=train)
        with whole_backward:
            actual = observe(compiled, function, args, kwargs, train)
    results = {}
    if checks.random:
        checks.notes.append("the results of functions with random operators are not those of eager")
    else:
        for what, value in expected.items():
            if what not in actual:
                checks.notes.append(f"{what} is not there when compiled")
                continue
            difference = limits.difference(actual[what], value, scale=1.0, sums_up=True)
            if difference.beyond:
                results[what] = difference
    name = getattr(function, "__qualname__", type(function).__name__)
    return Comparison(name, results, checks.programs, tuple(checks.nodes), tuple(checks.notes))


def observe(
    call: Callable[..., Any], fn: Callable[..., Any], args: Any, kwargs: Any, train: bool
) -> dict[str, torch.Tensor]:
    """What a caller sees of one call: results, gradients, tensors written to. All is put back."""
    with undone(fn, args, kwargs):
        found = tensors_of(fn, args, kwargs)
        names = {}
        if isinstance(fn, torch.nn.Module):
            names = {id(t): n for n, t in (*fn.named_parameters(), *fn.named_buffers())}
        versions = [version(t) for t in found]
        for tensor in found:
            if tensor.is_leaf:
                tensor.grad = None
        torch.manual_seed(0)
        with torch.set_grad_enabled(train):
            results = call(*args, **kwargs)
            if train:
                leaves = (
                    t for t in pytree.tree_leaves(results) if isinstance(t, torch.Tensor) and t.requires_grad
                )
                roots = [t.abs().sum() if t.is_complex() else t.sum() for t in leaves]
                if roots:
                    torch.autograd.backward(roots)
        seen = {}
        for path, leaf in leaves_by_path(results):
            if isinstance(leaf, torch.Tensor):
                seen[f"result{path}"] = leaf.detach().clone()
        for i, (tensor, before) in enumerate(zip(found, versions, strict=True)):
            name = names.get(id(tensor), f"tensor {i}")
            if tensor.is_leaf and tensor.grad is not None:
                seen[f"gradient of {name}"] = tensor.grad.detach().clone()
            if before is None or version(tensor) != before:
                seen[f"written {name}"] = tensor.detach().clone()
        return seen


@dataclasses.dataclass(frozen=True)
class _Limits:
    rtol: float | None
    atol: float | None

    def difference(
        self, actual: torch.Tensor, expected: torch.Tensor, scale: float, sums_up: bool = False
    ) -> Difference:
        """Compares two tensors of one shape; `scale` is at least that of the tolerance."""
        if actual.shape != expected.shape or actual.dtype != expected.dtype:
            return Difference(float("inf"), float("inf"), float("inf"), expected.numel(), (), 0, 0)
        if expected.numel() == 0:
            return Difference(0.0, 0.0, 0.0, 0, (), 0, 0)
        rtol, atol = self.rtol or 0.0, self.atol or 0.0
        wide = torch.complex128 if expected.is_complex() else torch.float64
        a, e = actual.detach().to(wide), expected.detach().to(wide)
        magnitude = e.abs()
        if self.rtol is None and self.atol is None:
            rtol, atol = TOLERANCES.get(expected.dtype, (0.0, 0.0))
            if atol:
                atol = max(atol, torch.finfo(expected.dtype).eps / 4) * (10 if sums_up else 1)
            atol *= max(greatest(magnitude), scale, _SMALLEST_SCALE)
        same = (a == e) | (a.isnan() & e.isnan())
        error = torch.where(same, 0.0, (a - e).abs())
        error = torch.where(error.isnan() | ~same & ~torch.isfinite(magnitude), float("inf"), error)
        ratio = torch.where(same, 0.0, error / (rtol * magnitude + atol))
        relative = torch.where(same, 0.0, error / magnitude)
        at = int(ratio.argmax())
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(at), expected.shape))
        return Difference(
            float(error.max()),
            float(relative.max()),
            float(ratio.max()),
            int((ratio > 1).sum()),
            index,
            a.flatten()[at].item(),
            e.flatten()[at].item(),
        )


def greatest(magnitude: torch.Tensor) -> float:
    """The greatest finite number."""
    return float(torch.where(torch.isfinite(magnitude), magnitude, 0.0).max()) if magnitude.numel() else 0.0


class _Checks:
    """A backend that compares each graph as it runs."""

    def __init__(self, options: Options, limits: _Limits) -> None:
        self.options = options
        self.limits = limits
        self.programs: dict[str, Difference] = {}
        self.nodes: list[NodeResult] = []
        self.notes: list[str] = []
        self.random = False
        self.count = 0

    def backend(
        self, gm: torch.fx.GraphModule, example_inputs: Sequence[Any], **_: Any
    ) -> Callable[..., Any]:
        index, self.count = self.count, self.count + 1

        def compiler(aot_gm: torch.fx.GraphModule, kind: str, static: Sequence[int]) -> Boxed:
            label = f"graph {index} {kind}"
            try:
                compiled = Graph.of(aot_gm, kind, static, self.options).callable()
                exposed = _Exposed(aot_gm, kind, static, self.options)
            except TorchTPUError as e:
                return raising(e)
            self.random |= any(is_random(node) for node in aot_gm.graph.nodes)

            def call(args: list[Any]) -> list[Any]:
                given = list(args)
                with torch.no_grad():
                    state = torch.get_rng_state()
                    values = exposed.run(copies(given))
                    # The same random numbers again.
                    torch.set_rng_state(state)
                    reference = copies(given)
                    results = compiled(args)
                    self.check(label, aot_gm, exposed, values, reference, results)
                return results

            return boxed(call)

        return compile_with(gm, example_inputs, compiler, self.options)

    def check(
        self,
        label: str,
        gm: torch.fx.GraphModule,
        exposed: _Exposed,
        values: Mapping[str, torch.Tensor],
        inputs: list[Any],
        results: list[Any],
    ) -> None:
        """Compares a graph's operators, then the results of the program as it is."""
        returned: Sequence[Any] = ()
        scales: dict[Any, float] = {}
        for step in walk(gm, values, inputs, self.notes):
            if step.node.op == "output":
                returned = list(zip(step.own, step.free, strict=True))
                continue
            compiled = values[step.node.name]
            source = source_of(step.node)
            info = exposed.info[step.node.name]
            if source is not step.node:
                info = dataclasses.replace(info, target=f"{source.target}[{step.node.args[1]}]")
            adds = any(word in str(source.target) for word in _ADDING)
            added = step.operands if adds else []
            scale = max((greatest(t.detach().double().abs()) for t in added), default=0.0)
            scales[step.node] = scale
            own = self.limits.difference(compiled, step.own, scale)
            if own.beyond and (exact := step.precise()) is not None:
                # Eager may be the one that rounds more: then it is no measure.
                theirs = self.limits.difference(compiled, exact, scale)
                if theirs.ratio <= self.limits.difference(step.own, exact, scale).ratio:
                    own = theirs
            total = self.limits.difference(compiled, step.free, scale, sums_up=True)
            operands = tuple(statistics(t) for t in step.operands)
            self.nodes.append(NodeResult(label, info, own, total, operands))
        for i, (actual, (node, expected)) in enumerate(zip(results, returned, strict=False)):
            if isinstance(actual, torch.Tensor) and isinstance(expected, torch.Tensor):
                scale = scales.get(node, 0.0)
                difference = self.limits.difference(actual, expected, scale, sums_up=True)
                if difference.beyond:
                    self.programs[f"{label}, result {i}"] = difference


class _Exposed:
    """A graph compiled with every tensor in it as a result."""

    def __init__(self, gm: torch.fx.GraphModule, kind: str, static: Sequence[int], options: Options) -> None:
        exposed, self.names = expose(gm)
        graph = Graph.of(exposed, kind, static, options)
        self.call = graph.callable()
        self.info = {node.name: node for node in fx_nodes(json.loads(graph.exported.json), None)}

    def run(self, args: list[Any]) -> dict[str, torch.Tensor]:
        """The tensors by the names of their nodes."""
        return dict(zip(self.names, self.call(args), strict=True))


def expose(gm: torch.fx.GraphModule) -> tuple[torch.fx.GraphModule, list[str]]:
    """A copy of a graph that returns a copy of each of its tensors, and the names of their nodes. Copies, because a
    view would be handed out as a view of its base and never be computed."""
    graph = torch.fx.Graph()
    copied: dict[torch.fx.Node, torch.fx.Node] = {}
    taken: list[torch.fx.Node] = []
    names: list[str] = []
    for node in gm.graph.nodes:
        if node.op == "output":
            continue
        new = copied[node] = graph.node_copy(node, copied.__getitem__)
        new.name = node.name
        if not is_compared(node):
            continue
        taken.append(
            graph.call_function(
                torch.ops.aten.clone.default, (new,), {"memory_format": torch.contiguous_format}
            )
        )
        value = node.meta["val"]
        # The compiler's tracing modes are still on.
        with torch.utils._python_dispatch._disable_current_modes(), torch.no_grad():
            taken[-1].meta = {
                **node.meta,
                "val": torch.empty_like(value, memory_format=torch.contiguous_format),
            }
        names.append(node.name)
    graph.output(tuple(taken))
    return torch.fx.GraphModule(gm, graph), names


def is_compared(node: torch.fx.Node) -> bool:
    """A node that computes a tensor. Memory that is not filled and writes to inputs are none."""
    if node.op != "call_function" or not isinstance(value := node.meta.get("val"), torch.Tensor):
        return False
    name = str(node.target)
    return value.layout is torch.strided and "aten.copy_" not in name and "empty" not in name


def source_of(node: torch.fx.Node) -> torch.fx.Node:
    """The operator that computes a node: what an item is taken from."""
    source = node.args[0] if node.target is operator.getitem else node
    return source if isinstance(source, torch.fx.Node) else node


def is_random(node: torch.fx.Node) -> bool:
    """An operator that draws numbers: one with a dropout of zero does not."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    schema = node.target._schema  # type: ignore[union-attr]
    given = dict(zip((a.name for a in schema.arguments), schema_args(node), strict=False))
    return given.get("dropout_p") != 0.0


@dataclasses.dataclass
class _Step:
    """A node: eager's result from the compiled operands (`own`) and in a graph that is eager from the start."""

    node: torch.fx.Node
    own: Any
    free: Any
    operands: list[torch.Tensor]
    precise: Callable[[], torch.Tensor | None]
    """`own` by way of f64."""


def walk(
    gm: torch.fx.GraphModule, compiled: Mapping[str, torch.Tensor], inputs: list[Any], notes: list[str]
) -> Iterator[_Step]:
    """Runs a graph in eager, twice side by side: from its inputs, and each node from the compiled operands."""
    free: dict[torch.fx.Node, Any] = {}
    forced: dict[torch.fx.Node, Any] = {}
    given = iter(inputs)
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            free[node] = next(given)
            # The graph ends by writing to its inputs: only one of the two may see that.
            forced[node] = copies([free[node]])[0]
            continue
        if node.op == "get_attr":
            free[node] = forced[node] = operator.attrgetter(str(node.target))(gm)
            continue
        if node.op == "output":
            results = torch.fx.map_arg(node.args[0], free.__getitem__)
            yield _Step(node, node.args[0], list(results), [], lambda: None)
            return
        theirs = compiled.get(node.name)
        source = source_of(node)
        if theirs is not None and is_random(source):
            free[node] = forced[node] = theirs
            continue
        try:
            own = evaluate(node, forced)
            free[node] = evaluate(node, free)
        except Exception as e:
            if theirs is None:
                notes.append(f"`{node.name}` cannot be run in eager ({e}): what follows was not compared")
                return
            notes.append(f"`{node.name}` cannot be run in eager ({e}) and was not compared")
            free[node] = forced[node] = theirs
            continue
        forced[node] = own if theirs is None else placed(theirs, node.meta["val"])
        if theirs is not None:
            operands = [forced[n] for n in source.all_input_nodes if isinstance(forced[n], torch.Tensor)]
            yield _Step(node, own, free[node], operands, functools.partial(precise, node, forced))


def evaluate(node: torch.fx.Node, values: Mapping[torch.fx.Node, Any]) -> Any:
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), values.__getitem__)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def precise(node: torch.fx.Node, values: Mapping[torch.fx.Node, Any]) -> torch.Tensor | None:
    """The node's result computed in f64, in its own dtype; None where the operator does not take f64."""

    def wide(source: torch.fx.Node) -> Any:
        value = values[source]
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    try:
        source = source_of(node)
        args, kwargs = torch.fx.map_arg((source.args, source.kwargs), wide)
        result = source.target(*args, **kwargs)  # type: ignore[operator]
        if source is not node:
            result = result[node.args[1]]
    except Exception:  # whatever an operator says of a dtype that it was not called with
        return None
    return result.to(node.meta["val"].dtype) if isinstance(result, torch.Tensor) else None


def placed(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A tensor with the strides that the graph gives it: a view depends on them."""
    strides = like.stride()
    if value.stride() == strides or 0 in strides:
        return value
    return torch.empty_strided(value.shape, strides, dtype=value.dtype).copy_(value)


def copies(args: Sequence[Any]) -> list[Any]:
    return [a.detach().clone() if isinstance(a, torch.Tensor) else a for a in args]


def statistics(tensor: torch.Tensor) -> str:
    """Shape and range of an operand."""
    kind = f"{str(tensor.dtype).removeprefix('torch.')}[{','.join(map(str, tensor.shape))}]"
    if tensor.numel() == 0 or tensor.is_complex():
        return kind
    values = tensor.detach().double()
    finite = values[values.isfinite()]
    if finite.numel() == 0:
        return f"{kind} nothing finite"
    odd = values.numel() - finite.numel()
    text = f"{kind} min {finite.min():.4g} max {finite.max():.4g} mean {finite.mean():.4g}"
    return f"{text}, {counted(odd, 'element')} not finite" if odd else text
