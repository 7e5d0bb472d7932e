"""A graph in compiled pieces, and what PyTorch runs on the host between them.

That is what the data decide and Python is to know: numbers (`.item()`), and sizes up to a bound that the user states;
collectives between processes, where the plugin knows only one (`distributed.ranks`); and with
`options={"fallback": "eager"}` all that the compiler cannot lower. The compiler says what that is; here the graph is cut
around it and the cuts are run. What a piece means is `graph`'s business. A piece is a `Fallback` itself: one whose sizes
only the data decide is compiled, and cut again if need be, once they are known."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import operator
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ._torchtpu import TorchTPUError, unsupported
from .counters import counters
from .custom_ops import inner_op
from .distributed import ranks
from .distributed.ranks import Collective, CollectiveError
from .export import calling_frames, is_check, is_matrix_check, is_symbolic, user_frames
from .graph import Boxed, Graph, arrange, boxed, evaluate, resolve, resolve_outputs, returned_inputs
from .options import Options

HOW_TO_BOUND = (
    'state the largest size, by torch._check(n <= 64) on the size or options={"max_data_dependent_size": 64}; '
    "torch.where keeps the size"
)
HOW_TO_RUN = 'rewrite this line, or run it on the host with options={"fallback": "eager"}'

warned: set[str] = set()
"""Operators that were warned of in this process."""


class Fallback:
    """A graph that is compiled whole if it can be, and cut where it cannot."""

    def __init__(
        self,
        gm: GraphModule,
        kind: str,
        static: Iterable[int],
        options: Options,
        bounds: Mapping[str, int] | None = None,
        returned: int = 0,
    ) -> None:
        """`bounds`: by symbol, the largest size that the data may decide. `returned` is `Graph.of`'s."""
        self.gm, self.static = gm, tuple(static)
        self.whole = Graph.of(gm, kind, self.static, options, bounds or {}, returned)
        self.cuts: Cuts | None = None
        self.apart = ranks.between_processes(gm, options)
        self.lock = threading.Lock()

    def callable(self) -> Boxed:
        """As `Graph.callable`. Raises TorchTPUError for what is no matter of an operator."""
        symbols = self.whole.exported.symbols
        whole: Boxed | None = None
        if not self.apart:
            try:
                whole = self.whole.callable()
            except TorchTPUError as e:
                self.cut(e, {})
        elif not symbols:
            self.cut(None, {})
        if (cuts := self.cuts) is not None:
            return boxed(lambda args: cuts.run(args))
        if whole is not None and not symbols:
            return whole

        def call(args: list[Any]) -> list[Any]:
            if self.cuts is None:
                error = None
                try:
                    if whole is not None:
                        return whole(args)
                except TorchTPUError as e:
                    error = e
                # A failed compilation leaves the arguments; one that ran cannot be run again.
                self.cut(
                    error, {s: args[i] if d is None else args[i].shape[d] for s, (i, d) in symbols.items()}
                )
            assert self.cuts is not None
            return self.cuts.run(args)

        return boxed(call)

    def cut(self, error: TorchTPUError | None, bindings: dict[str, Any]) -> None:
        """Cuts around what made the compilation fail, another error is raised again; or around collectives."""
        if error is not None and getattr(error, "stage", None) not in ("import", "lowering"):
            raise error
        with self.lock:
            if self.cuts is None:
                cuts = Cuts(self.gm, self.whole, self.static, bindings, self.apart)
                if error is not None:
                    if not cuts.on_host:
                        raise error
                    counters.errors -= 1  # it was none
                self.cuts = cuts


@contextlib.contextmanager
def naming(node: Node) -> Iterator[None]:
    """Has an error between ranks name the operator and the user's line."""
    try:
        yield
    except CollectiveError as e:
        raise refusal(str(e), op_name(node), node.name, frames_of(node), e.help, "execution") from None


@dataclasses.dataclass
class Step:
    """Takes values out of the environment and puts others in; then `done` are of no more use."""

    run: Callable[[Run], None]
    done: list[Node] = dataclasses.field(default_factory=list)


class Run:
    """The values of one call."""

    def __init__(self, values: dict[Node, Any], numbers: dict[str, Any]) -> None:
        self.values, self.numbers = values, numbers
        self.under_way: dict[Node, Collective] = {}


class Cuts:
    """The pieces of a graph, and what runs between them.

    Every node has a level: even ones are pieces, odd ones run on the host, each as low as its operands
    allow. That gives the fewest pieces that data may flow through in one order. Effects and random
    operators on the host keep their order; what writes over an input comes after all before it."""

    def __init__(
        self, gm: GraphModule, whole: Graph, static: Sequence[int], bindings: dict[str, Any], apart: bool
    ) -> None:
        """`apart`: collectives are between processes, of which the plugin knows only this one."""
        self.gm, self.whole, self.static, self.apart = gm, whole, static, apart
        exported = whole.exported
        self.nodes: list[Node] = list(gm.graph.nodes)
        self.placeholders = [n for n in self.nodes if n.op == "placeholder"]
        payload = exported.payload(functools.partial(resolve_or_none, bindings=bindings))
        known = {name: value for name, value in bindings.items() if type(value) is int}
        self.failed = {name: (op, line, why) for name, op, line, why in unsupported(payload, known)}
        # Where the value of each symbol is read; those of floats are known to the host alone.
        self.sources: dict[str, tuple[Node, int | None]] = {
            name: (self.placeholders[i], dim) for name, (i, dim) in exported.symbols.items()
        }
        self.late: set[str] = set()
        self.bounds: dict[str, int] = {}
        """The largest sizes that the data may decide, where stated."""
        self.floats = {n for n, v in bindings.items() if type(v) is not int}
        self.on_host: dict[Node, str] = {}
        """The nodes that PyTorch runs, and why."""
        self.compiled: set[Node] = set()
        self.numbers: dict[Node, list[Node]] = {}
        """By node of a piece: its operands that are numbers the data decide, which enter as tensors."""
        self.mutates = any(is_write(n) for n in self.nodes)
        self.by_name = {n.name: n for n in self.nodes}
        for node in self.nodes:
            if node.op == "call_function":
                self.place(node)
        self.keep_tuples_together()
        if self.on_host:
            self.steps = self.make_steps()
            for node in self.on_host:
                self.warn(node)

    # Which nodes run where.

    def place(self, node: Node) -> None:
        value = node.meta.get("val")
        if is_dropped(node):
            return
        symbols = free_symbols(value)
        fresh = symbols - self.sources.keys()
        if self.apart and (inner := ranks.nested_collective(self.gm, node)) is not None:
            raise refusal(
                f"`{op_name(inner)}` is in a graph that `{op_name(node)}` runs, and processes cannot meet there",
                op_name(inner), inner.name, frames_of(inner),
                "move the collective out of the loop, the branch or the region",
            )  # fmt: skip
        if self.apart and (ranks.is_collective(node) or ranks.is_wait(node)):
            self.on_host[node] = ""
            self.late |= fresh
            self.note_sources(node, value, fresh)
            return
        if node.target is operator.getitem and isinstance(node.args[0], Node):
            source = node.args[0]
            # Of sizes and numbers that the data decide the survey knows no results.
            known = source not in self.numbers and not free_symbols(source.meta.get("val")) & self.late
            if node.name in self.failed and source in self.compiled and known:
                self.allow(node, self.failed[node.name][2])
                self.move(source, self.failed[node.name][2])
            if source in self.on_host:
                self.on_host[node] = ""
            else:
                self.compiled.add(node)
            self.note_sources(node, value, symbols - self.sources.keys())
            return
        if is_number(value) and not (fresh and reads_tensor(node)):
            return  # worked out from the symbols where it is wanted
        numbers = [n for n in tensor_operands(node) if is_symbolic(n.meta.get("val")) and self.is_late(n)]
        needed: set[str] = set(symbols)
        for source in node.all_input_nodes:
            if source not in numbers:
                needed |= free_symbols(source.meta.get("val"))
        needed |= {s for s in nested_symbols(self.gm, node) if s in self.sources}
        if fresh:
            what = "the value" if is_number(value) else "the size"
            why = f"{what} of its result depends on the data"
            if is_number(value) or op_name(node) in _VIEWS:
                # What `.item()` asks for, and what is made of it without computing: no word is needed.
                why = why if self.whole.options.fallback == "eager" else ""
            elif op_name(node) == "while_loop_stack_output":
                # What the backward does with it, step by step, needs numbers inside of a loop: no bound helps there.
                why = "it keeps what a gradient needs of a loop whose length the data decide"
                self.allow(node, why)
            elif op_name(node) == "while_loop":
                why = "it carries a Python number"
                self.allow(node, why, "carry it as a tensor: torch.tensor(0) for 0")
            elif stated := stated_bounds(node, fresh, self.whole.options):
                self.bounds |= stated
                why = ""
            else:
                self.allow(node, why, HOW_TO_BOUND)
            self.on_host[node] = why
            self.late |= fresh
            self.note_sources(node, value, fresh)
        elif needed - self.sources.keys() or needed & self.floats:
            why = "it takes a number that depends on the data"
            if op_name(node) not in _VIEWS:
                self.allow(node, why)
            self.on_host[node] = why if self.whole.options.fallback == "eager" else ""
        elif node.name in self.failed and decides_sizes(node) and symbols & self.late:
            # As an earlier one of the same tensor, whose sizes these are.
            self.on_host[node] = ""
        elif node.name in self.failed and not needed & self.late and not numbers:
            self.allow(node, self.failed[node.name][2])
            self.on_host[node] = self.failed[node.name][2]
        else:
            self.compiled.add(node)
            if numbers:
                self.numbers[node] = numbers

    def is_late(self, number: Node) -> bool:
        """Whether the data decide this number."""
        found = free_symbols(number.meta.get("val"))
        return bool(found & self.late) or not found <= self.sources.keys()

    def allow(self, node: Node, why: str, help: str = HOW_TO_RUN) -> None:
        """Raises TorchTPUError unless PyTorch may run what is not supported."""
        if self.whole.options.fallback == "eager":
            return
        text = f"`{op_name(node)}` is not supported: {why}"
        raise refusal(text, op_name(node), node.name, frames_of(node), help)

    def note_sources(self, node: Node, value: Any, fresh: set[str]) -> None:
        """Where this result tells the values of symbols."""
        if is_symbolic(value):
            name = str(value.node.expr)
            if name in fresh:
                self.sources[name] = (node, None)
                if not isinstance(value, torch.SymInt):
                    self.floats.add(name)
        elif isinstance(value, torch.Tensor):
            for dim, size in enumerate(value.shape):
                name = str(size.node.expr) if isinstance(size, torch.SymInt) else ""
                if name in fresh or (name in self.late and name not in self.sources):
                    self.sources.setdefault(name, (node, dim))
            offset = value.storage_offset() if value.layout is torch.strided else 0
            if isinstance(offset, torch.SymInt) and str(offset.node.expr) in fresh:
                self.sources[str(offset.node.expr)] = (node, _OFFSET)

    def move(self, node: Node, why: str) -> None:
        self.compiled.discard(node)
        self.on_host[node] = why
        for user in node.users:
            if user.target is operator.getitem:
                self.compiled.discard(user)
                self.on_host[user] = ""

    def keep_tuples_together(self) -> None:
        """A tuple cannot leave a piece; what makes one for the host runs there."""
        for node in reversed(self.nodes):
            if node in self.compiled and isinstance(node.meta.get("val"), (tuple, list)):
                whole = (u for u in node.users if u.target is not operator.getitem)
                if any(u not in self.compiled for u in whole):
                    self.move(node, "its list of results is used as a whole on the host")

    # The order.

    def levels(self) -> dict[Node, int]:
        levels: dict[Node, int] = {}
        floor = effects = highest = 0
        for node in self.nodes:
            if node not in self.compiled and node not in self.on_host:
                continue
            lowest = max([floor, *(levels.get(s, 0) for s in self.operands(node))])
            if is_write(node):
                lowest = max(lowest, highest)
                if node in self.compiled and (lowest % 2 or levels.get(write_source(node)) != lowest):
                    # A piece for a copy alone is not worth it.
                    self.compiled.discard(node)
                    self.on_host[node] = ""
            if node in self.on_host and has_effects(node):
                lowest = max(lowest, effects)
            level = lowest if lowest % 2 == (node in self.on_host) else lowest + 1
            if node in self.on_host and has_effects(node):
                effects = level
            if is_write(node):
                floor = level
            highest = max(highest, level)
            levels[node] = level
        if self.apart and not self.mutates:
            for node in filter(ranks.is_wait, self.nodes):
                # As late as its first reader allows: pieces run during the transfer.
                latest = min((levels[u] for u in node.users if u in levels), default=highest + 1)
                levels[node] = latest if latest % 2 else latest - 1
        return levels

    def operands(self, node: Node) -> Iterator[Node]:
        """The nodes whose values it reads, and those that tell its symbols."""
        yield from node.all_input_nodes
        for symbol in self.symbols_of(node):
            yield self.sources[symbol][0]
        for number in self.numbers.get(node, ()):
            yield from self.origins(number)

    def origins(self, number: Node) -> Iterator[Node]:
        """The nodes whose results tell a number."""
        if self.runs(number) or number.op == "placeholder":
            yield number
            return
        for symbol in free_symbols(number.meta.get("val")) & self.sources.keys():
            yield self.sources[symbol][0]
        for source in number.all_input_nodes:
            yield from self.origins(source)

    def symbols_of(self, node: Node) -> set[str]:
        found = free_symbols(node.meta.get("val")) | nested_symbols(self.gm, node)
        for source in node.all_input_nodes:
            if source not in self.numbers.get(node, ()):
                found |= free_symbols(source.meta.get("val"))
        return found & self.sources.keys()

    def make_steps(self) -> list[Step]:
        levels = self.levels()
        groups: dict[int, list[Node]] = {}
        for node, level in levels.items():
            groups.setdefault(level, []).append(node)
        kept = {self.by_name[name] for name in self.whole.exported.returned}
        kept |= {self.placeholders[i] for i in returned_inputs(self.whole.exported.outputs)}
        steps: list[Step] = []
        last: dict[Node, Step] = {}
        for level in sorted(groups):
            for part in [groups[level]] if level % 2 == 0 else [[n] for n in groups[level]]:
                step = self.run_on_host(part[0]) if level % 2 else self.piece(part, kept)
                if step is None:
                    continue
                steps.append(step)
                for node in part:
                    last.update(dict.fromkeys([node, *self.operands(node)], step))
        for node, step in last.items():
            read_later = any(is_number(u.meta.get("val")) and u not in last for u in node.users)
            if node not in kept and node.op != "get_attr" and not read_later:
                step.done.append(node)
        return steps

    # What runs.

    def piece(self, nodes: list[Node], kept: set[Node]) -> Step | None:
        """Compiles some nodes as a graph of their own."""
        inside = set(nodes)
        results = [
            n
            for n in nodes
            if isinstance(n.meta.get("val"), torch.Tensor)
            and (n in kept or any(u not in inside and self.runs(u) for u in n.users))
        ]
        if not results and not any(is_write(n) for n in nodes):
            return None
        graph = torch.fx.Graph()
        symbols = sorted(set().union(*(self.symbols_of(n) for n in nodes)))
        tensors = list(dict.fromkeys(s for n in nodes for s in n.all_input_nodes if self.enters(s, inside)))
        copies: dict[Node, Node] = {}
        for symbol in symbols:
            source, dim = self.sources[symbol]
            value = source.meta["val"]
            graph.placeholder(f"size_{symbol}").meta["val"] = told_by(value, dim)
        for node in tensors:
            copies[node] = graph.placeholder(node.name)
            copies[node].meta.update(node.meta)
        parameters = [
            len(symbols) + i
            for i, n in enumerate(tensors)
            if n.op == "placeholder" and self.placeholders.index(n) in self.static
        ]

        def argument(node: Node) -> Node:
            if node not in copies:
                if node.op == "get_attr":
                    copies[node] = graph.get_attr(str(node.target))
                else:  # a number: its value is in the meta data, and nothing else is read of it
                    copies[node] = graph.call_function(known_number, ())
                copies[node].meta.update(node.meta)
            return copies[node]

        scalars: dict[tuple[Node, torch.dtype], Node] = {}
        for node in nodes:
            for number in self.numbers.get(node, ()):
                dtype = scalar_dtype(number, node.meta["val"])
                if (number, dtype) not in scalars:
                    scalars[number, dtype] = graph.placeholder(f"{number.name}_{len(scalars)}")
                    scalars[number, dtype].meta["val"] = torch.empty((), dtype=dtype, device="cpu")
        for node in nodes:
            inner = {n: scalars[n, scalar_dtype(n, node.meta["val"])] for n in self.numbers.get(node, ())}
            for source in node.all_input_nodes:
                if source not in inner:
                    argument(source)
            copies[node] = graph.node_copy(node, lambda n, inner=inner: inner.get(n) or copies[n])  # type: ignore[misc]
        graph.output([copies[n] for n in results])
        kind, options = self.whole.exported.kind, self.whole.options
        bounds = {symbol: self.bounds[symbol] for symbol in symbols if symbol in self.bounds}
        call = Fallback(GraphModule(self.gm, graph), kind, parameters, options, bounds).callable()

        def run(state: Run) -> None:
            # Where in memory an operand starts is no matter of a piece's, and no reason to compile it again.
            args = [0 if self.sources[s][1] == _OFFSET else state.numbers[s] for s in symbols]
            args += [state.values[n] for n in tensors]
            args += [torch.tensor(self.value(state, n), dtype=dtype, device="cpu") for n, dtype in scalars]
            for node, result in zip(results, call(args), strict=True):
                state.values[node] = result

        return Step(run)

    def runs(self, node: Node) -> bool:
        return node in self.compiled or node in self.on_host

    def enters(self, node: Node, inside: set[Node]) -> bool:
        tensor = isinstance(node.meta.get("val"), torch.Tensor)
        return node not in inside and tensor and node.op != "get_attr" and not is_dropped(node)

    def run_on_host(self, node: Node) -> Step:
        if ranks.is_collective(node) and ranks.several():
            return self.collective_step(node)
        return self.wait_step(node) if self.apart and ranks.is_wait(node) else self.host_step(node)

    def collective_step(self, node: Node) -> Step:
        """Starts a collective. Its transfer goes on until it is waited for, where nothing but that reads the result."""
        frames = frames_of(node)
        line = "{}:{}".format(*frames[0]) if frames else "an unknown line"
        readers = [r for u in node.users for r in (u.users if u.target is operator.getitem else [u])]
        goes_on = self.apart and bool(readers) and all(map(ranks.is_wait, readers)) and not self.mutates
        seconds = self.whole.options.collective_timeout

        def run(state: Run) -> None:
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: self.value(state, n))
            counters.collectives += 1
            with naming(node), torch.no_grad():
                collective = Collective(node.target, args, kwargs, line, seconds)
                result = collective.start(lambda: node.target(*args, **kwargs))  # type: ignore[operator]
                if goes_on:
                    state.under_way[node] = collective
                else:
                    with collective.waited_for():
                        result = torch.utils._pytree.tree_map_only(torch.Tensor, ranks.wait, result)
            state.values[node] = result

        return Step(run)

    def wait_step(self, node: Node) -> Step:
        """Waits for a transfer."""
        sources: set[Any] = {n.args[0] if n.target is operator.getitem else n for n in node.all_input_nodes}
        step = self.host_step(node)

        def run(state: Run) -> None:
            with contextlib.ExitStack() as stack:
                for source in sources & state.under_way.keys():
                    stack.enter_context(naming(source))
                    stack.enter_context(state.under_way[source].waited_for())
                step.run(state)

        return Step(run)

    def host_step(self, node: Node) -> Step:
        """Runs one node with PyTorch."""
        name = op_name(node) if self.on_host[node] else None
        told = [(s, dim) for s, (source, dim) in self.sources.items() if source is node]
        reads = bool(told) and name is None

        def run(state: Run) -> None:
            args = torch.fx.node.map_arg(node.args, lambda n: self.value(state, n))
            kwargs = torch.fx.node.map_arg(node.kwargs, lambda n: self.value(state, n))
            with torch.no_grad():
                result = node.target(*args, **kwargs)  # type: ignore[operator]
            for symbol, dim in told:
                state.numbers[symbol] = told_by(result, dim)
                if state.numbers[symbol] > self.bounds.get(symbol, state.numbers[symbol]):
                    raise self.beyond(node, state.numbers[symbol], self.bounds[symbol])
            result = torch.utils._pytree.tree_map_only(torch.Tensor, self.own, result)
            state.values[node] = result
            if reads:
                counters.host_reads += 1
            if name is not None:
                counters.fell_back(name, size_of(args) + size_of(kwargs) + size_of(result))

        return Step(run)

    def beyond(self, node: Node, size: int, bound: int) -> TorchTPUError:
        text = f"`{op_name(node)}` gave {size} elements, and the stated bound is {bound}"
        return refusal(text, op_name(node), node.name, frames_of(node), HOW_TO_BOUND, stage="execution")

    def own(self, tensor: torch.Tensor) -> torch.Tensor:
        """A result as a piece takes it: plain values, in memory that no later write changes."""
        if tensor.layout is not torch.strided:
            return tensor
        if tensor.is_conj() or tensor.is_neg():
            return tensor.resolve_conj().resolve_neg()
        return tensor.clone() if self.mutates and tensor._is_view() else tensor

    def value(self, state: Run, node: Node) -> Any:
        if node in state.values:
            return state.values[node]
        if node.op == "get_attr":
            return functools.reduce(getattr, str(node.target).split("."), self.gm)
        if is_dropped(node):
            return None  # a token
        value = node.meta["val"]
        if free_symbols(value) <= state.numbers.keys():
            return evaluate(str(value.node.expr), state.numbers) if is_symbolic(value) else value
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: self.value(state, n))
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def run(self, args: list[Any]) -> list[Any]:
        """One call, in place of the whole graph's."""
        exported = self.whole.exported
        values: dict[Node, Any] = dict(zip(self.placeholders, args, strict=True))
        args.clear()
        numbers = {
            s: values[n] if dim is None else values[n].shape[dim]
            for s, (n, dim) in self.sources.items()
            if n.op == "placeholder"
        }
        state = Run(values, numbers)
        kept = {i: values[self.placeholders[i]] for i in returned_inputs(exported.outputs)}
        for step in self.steps:
            step.run(state)
            for node in step.done:
                values.pop(node, None)
        results = [self.value(state, self.by_name[name]) for name in exported.returned]
        return arrange(resolve_outputs(exported, numbers), results, kept)

    def warn(self, node: Node) -> None:
        """Once for each operator: what runs on the host, why, and what to do about it."""
        why, name = self.on_host[node], op_name(node)
        if not why or name in warned:
            return
        warned.add(name)
        frames = frames_of(node)
        file, line = frames[0][:2] if frames else ("torchtpu_dynamo", 0)
        hint = "" if name.startswith("aten.") else "; torchtpu_dynamo.register_lowering gives it a lowering"
        warnings.warn_explicit(
            f"`{name}` ({file}:{line}) runs on the host, and its operands and results move there and back: "
            f"{why.strip()}{hint}",
            UserWarning,
            file,
            line,
        )


def frames_of(node: Node) -> list[tuple[str, int, str]]:
    """The user's lines, innermost first; of the call where PyTorch gives none."""
    return user_frames(node.meta.get("stack_trace") or "") or calling_frames()


def refusal(
    text: str, op: str, name: str, frames: list[tuple[str, int, str]], help: str, stage: str = "lowering"
) -> TorchTPUError:
    """An error as the compiler writes it."""
    lines = [text, f"  op:    {op} (node {name})"]
    for label, (file, line, function) in zip(("at:   ", "from: ", "from: "), frames, strict=False):
        lines.append(f"  {label} {file}:{line} in {function}")
    lines += [f"  stage: {stage}", f"  help:  {help}"]
    lines.append("  dump:  set TORCHTPU_DUMP=DIR to write this graph at every stage")
    error = TorchTPUError("\n".join(lines))
    error.op, error.stage, error.help = op, stage, help
    error.location = "{}:{}".format(*frames[0]) if frames else None
    return error


def may_be_cut(gm: GraphModule, options: Options) -> bool:
    """Whether a graph may come in pieces."""
    return options.fallback == "eager" or reads_data(gm) or ranks.between_processes(gm, options)


def reads_data(gm: GraphModule) -> bool:
    """Whether a node gives a size or a number that only the data decide, in dynamo's graph or in AOTAutograd's."""
    # What is read of an argument itself may be bound already.
    reads = ("item", torch.ops.aten._local_scalar_dense.default)
    return any(n.meta.get("unbacked_bindings") or n.target in reads for n in gm.graph.nodes)


def refuse_data(gm: GraphModule) -> None:
    """Raises TorchTPUError where a graph that has to be one program needs a size or a number that only the data decide:
    what `torch.compile` has the host do between two programs."""
    node = next((n for n in gm.graph.nodes if n.meta.get("unbacked_bindings")), None)
    if node is None:
        return
    if is_number(node.meta["val"]):
        what, help = "the value", "keep the number a tensor, without .item(), int() or float()"
    else:
        what, help = "the size", "keep the size, as torch.where and torch.nonzero_static do"
    op = op_name(node)
    raise refusal(
        f"{what} of what `{op}` gives depends on the data, and one program does not leave the device to see it",
        op,
        node.name,
        frames_of(node),
        f"{help}, or compile the parts before and behind this line; torch.compile does so by itself",
    )


def stated_bounds(node: Node, fresh: set[str], options: Options) -> dict[str, int]:
    """The bounds of all the sizes that this node makes, as the user has stated them; empty unless all have one."""
    found: dict[str, int] = {}
    first = node.args[0].meta.get("val") if node.args and isinstance(node.args[0], Node) else None
    # PyTorch itself bounds them by what the operand has.
    natural = first.numel() if isinstance(first, torch.Tensor) and isinstance(first.numel(), int) else UNBOUND
    for leaf in torch.utils._pytree.tree_leaves(node.meta["val"]):
        for size in leaf.shape if isinstance(leaf, torch.Tensor) else ():
            if isinstance(size, torch.SymInt) and str(size.node.expr) in fresh:
                upper = size.node.shape_env.var_to_range[size.node.expr].upper
                if upper < min(natural, UNBOUND) or (
                    upper == natural and any(states_bound(n, node, size) for n in node.graph.nodes)
                ):
                    found[str(size.node.expr)] = int(upper)
    if options.max_data_dependent_size is not None:
        found = {**dict.fromkeys(fresh, options.max_data_dependent_size), **found}
    return found if fresh <= found.keys() else {}


def states_bound(check: Node, node: Node, size: torch.SymInt) -> bool:
    """Whether a check bounds a size of `node` from above, and is the user's: PyTorch adds its own at the node's line. What
    it knows itself leaves no other trace of a bound that is no smaller."""
    if not is_check(check) or check.meta.get("stack_trace") == node.meta.get("stack_trace"):
        return False
    condition = check.args[0].meta.get("val") if isinstance(check.args[0], Node) else None
    expr = condition.node.expr if isinstance(condition, torch.SymBool) else None
    # As sympy writes it, `n < 64` is `64 > n` too.
    return getattr(expr, "is_Relational", False) and size.node.expr == getattr(expr, "lts", None)


_VIEWS = ("aten.scalar_tensor.default", "aten.select.int", "aten.slice.Tensor")
"""What computes nothing: with a number that the data decide, the host does it as soon as it knows."""

_OFFSET = -1
"""In the place of a dimension: where a tensor starts in its memory."""


def told_by(value: Any, dim: int | None) -> Any:
    if dim == _OFFSET:
        return value.storage_offset()
    return value if dim is None else value.shape[dim]


UNBOUND = 2**31
"""Sizes above are those that PyTorch assumes, and no one has stated."""


def tensor_operands(node: Node) -> list[Node]:
    """Operands in the place of one tensor, where a number may stand as well."""
    if op_name(node) in ("cond", "switch"):
        return [n for n in node.args[:1] if isinstance(n, Node)]
    if not isinstance(node.target, torch._ops.OpOverload) or not isinstance(
        node.meta.get("val"), torch.Tensor
    ):
        return []
    takes = {a.name for a in node.target._schema.arguments if str(a.type) == "Tensor"}
    names = [a.name for a in node.target._schema.arguments]
    given = [*zip(names, node.args, strict=False), *node.kwargs.items()]
    return [value for name, value in given if name in takes and isinstance(value, Node)]


def scalar_dtype(number: Node, result: Any) -> torch.dtype:
    """Of a number that enters a piece: what the result is computed in, if that is a floating type."""
    if isinstance(number.meta["val"], torch.SymBool):
        return torch.bool
    if isinstance(result, torch.Tensor) and result.dtype.is_floating_point:
        return result.dtype
    return torch.float64 if isinstance(number.meta["val"], torch.SymFloat) else torch.int64


def known_number() -> Any:
    """Stands for a number in the graph of a piece; never called."""


def op_name(node: Node) -> str:
    """The operator as counted and warned of: the user's where PyTorch has wrapped it."""
    return str(inner_op(node) or node.target)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float, bool)) or is_symbolic(value)


def reads_tensor(node: Node) -> bool:
    return any(isinstance(n.meta.get("val"), torch.Tensor) for n in node.all_input_nodes)


def decides_sizes(node: Node) -> bool:
    """Whether the data decide how large the result is, but not by a mask, which our compiler takes as well."""
    tags = getattr(node.target, "tags", ())
    return torch.Tag.dynamic_output_shape in tags and op_name(node) != "aten.index.Tensor"


def is_dropped(node: Node) -> bool:
    """Checks that the compiler leaves out too, and what is left of them."""
    if node.op != "call_function":
        return False
    if is_check(node) or is_matrix_check(node):
        return True
    source = node.args[0] if node.target is operator.getitem else None
    return isinstance(source, Node) and is_matrix_check(source)


def is_write(node: Node) -> bool:
    """Writes over an operand."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def write_source(node: Node) -> Any:
    return node.args[1] if len(node.args) > 1 else None


def has_effects(node: Node) -> bool:
    """Its place among the others matters."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        seeded = torch.Tag.nondeterministic_seeded in target.tags
        return target._schema.is_mutable or seeded or ranks.is_collective(node)
    return isinstance(target, torch._ops.HigherOrderOperator)


def free_symbols(value: Any) -> set[str]:
    """The names of symbols in what a node gives."""
    found: set[str] = set()
    for leaf in value if isinstance(value, (tuple, list)) else (value,):
        if isinstance(leaf, torch.Tensor):
            sizes: Iterable[Any] = leaf.shape
            if leaf.layout is torch.strided:
                sizes = (*leaf.shape, *leaf.stride(), leaf.storage_offset())
        else:
            sizes = (leaf,)
        for size in sizes:
            if is_symbolic(size):
                found.update(str(s) for s in size.node.expr.free_symbols)
    return found


def nested_symbols(gm: GraphModule, node: Node) -> set[str]:
    """Those in the graphs that a higher-order operator runs."""
    found: set[str] = set()
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            owned = functools.reduce(getattr, str(source.target).split("."), gm)
            if isinstance(owned, GraphModule):
                for inner in owned.graph.nodes:
                    found |= free_symbols(inner.meta.get("val")) | nested_symbols(owned, inner)
    return found


def size_of(values: Any) -> int:
    """Bytes of the tensors in a nest of values."""
    leaves = torch.utils._pytree.tree_leaves(values)
    return sum(v.numel() * v.element_size() for v in leaves if isinstance(v, torch.Tensor))


def resolve_or_none(value: Any, bindings: dict[str, int]) -> Any:
    """A size for the survey; one that is not known yet stands for itself."""
    try:
        return resolve(value, bindings)
    except (TypeError, ValueError):
        return 1
