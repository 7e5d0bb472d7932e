"""One graph of AOTAutograd: exported, compiled, and the callable that runs it.

A call is one executable, chosen by the sizes of its arguments. Wiring into AOTAutograd is `backend`, the
payload is `export`; nothing here may look into the graph."""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch._guards import CompileContext, TracingContext

from . import cache, dump, plugins
from ._torchtpu import Client, Executable, Program, Source, TorchTPUError
from .buckets import Bucket, Fit, bounds_of, chosen, parse_buckets, samples, size_sources
from .counters import counters, recompile_reason
from .distributed import multiprocess, ranks
from .distributed.multiprocess import Compilation
from .export import Exported, calling_frames, export
from .options import Options
from .plugins import ForkState
from .progress import Progress

log = logging.getLogger("torchtpu_dynamo")

Boxed = Callable[[list[Any]], list[Any]]

live_graphs: weakref.WeakSet[Graph] = weakref.WeakSet()
"""Graphs that a compiled function still uses; `refresh` walks them. They are freed by reference count
alone."""

_SEEDS = 2**63 - 1

_REFUSALS = 3
"""Sizes that did not fit a bucket before no more are tried."""


class Graph:
    """An exported graph, and the executables made of it, one for each set of sizes."""

    def __init__(
        self,
        exported: Exported,
        options: Options,
        source: str = "",
        bounds: Mapping[str, int] | None = None,
        collective: bool = False,
    ) -> None:
        """`bounds`: by symbol, sizes that one executable is to serve up to. `collective`: whether ranks meet in it."""
        context = CompileContext.try_get()
        self.compile_id: Any = context.compile_id if context is not None else None
        self.label = f"{self.compile_id or '-'} {exported.kind}"
        self.exported = exported
        self.options, self.collective = options, collective
        self.reason = recompile_reason()
        self.payload: Source | None = None
        self.source = source
        self.export_seconds = 0.0
        self.executables: dict[tuple[Any, ...], tuple[Executable | Fit, bool, list[Any]]] = {}
        self.sources = {s: exported.size_names.get(s) or [s] for s in exported.symbols}
        wanted = parse_buckets(options.buckets)
        bounds = bounds or {}
        self.uppers = [
            (True, (bounds[s],)) if s in bounds else chosen(wanted, self.sources[s]) for s in exported.symbols
        ]
        # Sizes that a forward hands on, as `s0 + 3` beside `s0`: a bucket's follow from those that they are made of.
        self.derived = [
            s for s in exported.symbols if (of := operands_of(s)) and of <= exported.symbols.keys()
        ]
        self.buckets: dict[tuple[int, ...], list[Bucket]] = {}
        self.refused: dict[tuple[int, ...], int] = {}
        self.lock = threading.Lock()

    @classmethod
    def of(
        cls,
        gm: torch.fx.GraphModule,
        kind: str,
        static: Iterable[int],
        options: Options,
        bounds: Mapping[str, int] | None = None,
        returned: int = 0,
    ) -> Graph:
        """The graph that AOTAutograd hands over: a call of our compiler. The first `returned` of its outputs share the
        memory of arguments where eager's do: only what arranges a call's results can see to that."""
        start = time.perf_counter()
        counters.compiler_calls += 1
        context = CompileContext.try_get()
        compile_id = context.compile_id if context is not None else None
        name = "graph" if compile_id is None else f"graph_{str(compile_id).replace('/', '_')}"
        exported = export(gm, kind, name, static, returned)
        if exported.symbols:
            exported = dataclasses.replace(exported, size_names=size_sources(gm))
        graph = cls(exported, options, dump.source_text(gm), bounds, ranks.has_collectives(gm))
        graph.export_seconds = time.perf_counter() - start
        return graph

    def source_payload(self, bindings: dict[str, int]) -> tuple[str, Source]:
        """The payload for these sizes, as text and parsed; it is parsed once unless its StableHLO depends on them."""
        text = self.exported.payload(functools.partial(resolve, bindings=bindings))
        if self.payload is None or self.exported.texts:
            self.payload = Source(text)
        return text, self.payload

    def program(
        self,
        bindings: dict[str, int],
        seen: list[dict[str, int]] | None = None,
        meeting: Compilation | None = None,
    ) -> Program:
        """The program for these sizes; or, with `seen`, for all sizes up to them; or, with `meeting`, of what all ranks
        have traced. Raises TorchTPUError."""
        kind = self.exported.kind
        payload, source = self.source_payload(bindings)
        with dump.folder(kind) as folder:
            dump.show_source(self.source, payload, folder, kind, self.compile_id)
            options = self.options.program_json(folder)
            if meeting is not None:
                sources, sizes = meeting.traced(payload, source, bindings)
                program = Program.of_ranks(sources, options, True, sizes)
            elif seen is None:
                program = Program(source, bindings, options)
            else:
                program = Program.bucketed(source, bindings, seen, options)
        dump.show_program(program, kind, self.compile_id)
        return program

    def compile(self, key: tuple[Any, ...]) -> tuple[Executable | Fit, bool, list[Any]]:
        """What runs these values of the symbols, whether it takes a seed, and its output plan."""
        with self.lock:
            found = self.executables.get(key)
            if found is not None:
                return found
            bindings = dict(zip(self.exported.symbols, key, strict=True))
            try:
                if any(isinstance(value, torch.SymInt) for value in key):
                    raise TorchTPUError(
                        "a jagged nested tensor is an argument of the graph, and its ragged size is no number\n"
                        "help: pass its values() and offsets(), or torch.nested.to_padded_tensor(it, 0.0)"
                    )
                fitted = self.fit(key, bindings) if any(wanted for wanted, _ in self.uppers) else None
                if fitted is None:
                    _, runs = self.build(bindings, None, self.why(key))
                    uses_seed = runs.uses_seed
                else:
                    program, runs = fitted
                    uses_seed = program.uses_seed
            except TorchTPUError:
                counters.errors += 1
                raise
            found = (runs, uses_seed, resolve_outputs(self.exported, bindings))
            self.executables[key] = found
            return found

    def build(
        self, bindings: dict[str, int], seen: list[dict[str, int]] | None, reason: str | None
    ) -> tuple[Program | None, Executable]:
        """An executable, and its program unless an earlier process left the executable."""
        start = time.perf_counter()
        client = plugins.client(self.options.plugin, self.options.zero_copy)
        with Progress(f"{self.label}, {self.exported.nodes} nodes"):
            # A program for many sizes is needed to check each of them, so it is made anew.
            meeting = self.meeting(client, seen)
            # What other ranks have traced is in no key.
            store = cache.store(self.options) if seen is None and meeting is None else None
            program, executable, key = None, None, None
            if store is not None:
                payload, _ = self.source_payload(bindings)
                key, executable = cache.lookup(store, self.exported, payload, bindings, self.options, client)
                if executable is not None:
                    dump.show_source(self.source, payload, None, self.exported.kind, self.compile_id)
            loaded = executable is not None
            if executable is None:
                program = self.program(bindings, seen, meeting)
                if meeting is not None:
                    executable = meeting.executable(program)
                else:
                    executable = program.compile(client, self.compile_json(program, client))
                if store is not None and key is not None:
                    cache.save(store, key, executable, client, self.exported)
        made: Mapping[str, float] = {}
        if program is not None:
            made = program.stage_times()
            counters.passed(program.pass_reports())
        stages = {"export": self.export_seconds, **made, **executable.stage_times()}
        self.export_seconds = 0.0
        frames = calling_frames() if reason is not None else []
        line = "{}:{} in {}".format(*frames[0]) if frames else ""
        counters.compiled(self.label, stages, reason, line, loaded)
        log.info(
            "%s %s: %d nodes in %.3f s",
            "loaded" if loaded else "compiled",
            self.label,
            self.exported.nodes,
            time.perf_counter() - start,
        )
        return program, executable

    def meeting(self, client: Client, seen: list[dict[str, int]] | None) -> Compilation | None:
        """Where the ranks make one program of what they have traced; None for a program of this process alone. Raises
        TorchTPUError for options that are not for several processes."""
        if not self.collective or not multiprocess.joined(client):
            return None
        if seen is not None:
            raise multiprocess.refusal(
                "a program for a range of sizes has collectives between processes",
                "leave `buckets` out, and sizes that data decide out of graphs with collectives",
            )
        return Compilation(client, self.exported.kind, self.options)

    def compile_json(self, program: Program, client: Client) -> str:
        if not self.options.tune:
            return self.options.compile_json()
        from .ahead import tuning

        return tuning.on_device(program, client, self.options)

    def padded(
        self, bounds: dict[str, int], seen: list[dict[str, int]], reason: str | None
    ) -> tuple[Program, Executable]:
        program, executable = self.build(bounds, seen, reason)
        assert program is not None
        return program, executable

    def why(self, key: tuple[Any, ...], upper: tuple[int, ...] | None = None) -> str | None:
        """Why this is compiled, if it is not the first time: which size changed, and from what."""
        if not self.executables:
            return self.reason
        last = next(reversed(self.executables))
        changed = [
            f"{size_name(self.sources[s][0])}={new} (was {old})"
            for s, new, old in zip(self.exported.symbols, key, last, strict=True)
            if new != old
        ]
        bucket = "" if upper is None else f", for all sizes up to {', '.join(map(str, upper))}"
        return f"new size {', '.join(changed)}{bucket}"

    def fit(self, key: tuple[Any, ...], bindings: dict[str, int]) -> tuple[Program, Fit] | None:
        """The bucket for these sizes, compiled if need be; None where they are to be compiled by themselves."""
        spans = [
            bounds_of(value, uppers) if wanted and symbol not in self.derived else None
            for symbol, value, (wanted, uppers) in zip(bindings, key, self.uppers, strict=True)
        ]
        for symbol, value, span, (wanted, _) in zip(bindings, key, spans, self.uppers, strict=True):
            if wanted and span is None and symbol not in self.derived:
                name = size_name(self.sources[symbol][0])
                warn(f"{name}={value} is above its largest bucket; compiled for this size alone")
                return None
        upper = self.whole(value if span is None else span[1] for value, span in zip(key, spans, strict=True))
        if self.refused.get(upper, 0) >= _REFUSALS:
            return None
        options = self.options.program_json(None)
        known = self.buckets.setdefault(upper, [])
        try:
            for bucket in known:
                try:
                    return bucket.program, bucket.fit(bindings, options)
                except TorchTPUError:
                    # Sizes of another kind, as where a power of two is passed: they get a program of their own.
                    continue
            names = list(bindings)
            seen = [dict(zip(names, self.whole(sizes), strict=True)) for sizes in samples(key, spans)]
            attempts = [seen[: 1 + len(known)], seen[:1]] if known else [seen, seen[:1]]
            program, executable = self.bucketed(names, upper, attempts, key)
            bucket = Bucket(program, executable)
            found = bucket.fit(bindings, options)
            known.append(bucket)
            return program, found
        except TorchTPUError as e:
            if e.stage not in ("lowering", "import", "verify"):
                raise
            self.refused[upper] = self.refused.get(upper, 0) + 1
            if self.refused[upper] > 1:
                return None
            where = f" at {e.location}" if e.location else ""
            why = str(e).splitlines()[0]
            warn(f"{self.label} cannot be padded to {upper}, and is compiled size by size: {why}{where}")
            return None

    def whole(self, sizes: Iterable[int]) -> tuple[Any, ...]:
        """Values of the symbols, with those that follow from others as they do."""
        found: dict[str, Any] = dict(zip(self.exported.symbols, sizes, strict=True))
        given = {s: value for s, value in found.items() if s not in self.derived}
        found.update((s, evaluate(s, given)) for s in self.derived)
        return tuple(found.values())

    def bucketed(
        self,
        names: list[str],
        upper: tuple[int, ...],
        attempts: list[list[dict[str, int]]],
        key: tuple[Any, ...],
    ) -> tuple[Program, Executable]:
        """A program for all sizes up to `upper`: from the first list of samples that are one graph."""
        bounds = dict(zip(names, upper, strict=True))
        for seen in attempts[:-1]:
            try:
                return self.padded(bounds, seen, self.why(key, upper))
            except TorchTPUError as e:
                if e.stage not in ("lowering", "import", "verify"):
                    raise
        return self.padded(bounds, attempts[-1], self.why(key, upper))

    def refresh(self) -> None:
        """Forgets device copies of parameters and buffers."""
        for executable, _, _ in list(self.executables.values()):
            executable.refresh()

    def callable(self) -> Boxed:
        """What AOTAutograd calls with the arguments in a list, which the call empties. Raises
        TorchTPUError."""
        return self.symbolic_call() if self.exported.symbols else self.static_call()

    def static_call(self) -> Boxed:
        """Compiles now; a call then adds as little as possible to the executable's own."""
        executable, uses_seed, outputs = self.compile(())
        exported = self.exported
        live_graphs.add(self)
        only_tensors = outputs == [("tensor", k) for k in range(len(outputs))]
        plain = (
            only_tensors
            and not exported.constants
            and not exported.lazy
            and not exported.views
            and len(exported.tensor_inputs) == len(exported.input_names)
        )

        def call(args: list[Any]) -> list[Any]:
            if ForkState.child:
                plugins.check_process()
            counters.executions += 1
            return executable(args, draw_seed() if uses_seed else 0)

        def call_and_arrange(args: list[Any]) -> list[Any]:
            return self.run(executable, uses_seed, outputs, args)

        chosen = boxed(call if plain else call_and_arrange)
        # In live_graphs for as long as somebody can call it.
        chosen._graph = self  # type: ignore[attr-defined]
        return chosen

    def symbolic_call(self) -> Boxed:
        """Compiles when called, once for each set of sizes."""
        live_graphs.add(self)
        places = list(self.exported.symbols.values())
        executables = self.executables

        def call(args: list[Any]) -> list[Any]:
            key = tuple(args[i] if dim is None else args[i].shape[dim] for i, dim in places)
            found = executables.get(key)
            if found is None:
                found = self.compile(key)
            else:
                counters.cache_hits += 1
            return self.run(*found, args)

        return boxed(call)

    def run(
        self, executable: Executable | Fit, uses_seed: bool, outputs: list[Any], args: list[Any]
    ) -> list[Any]:
        """One call of an executable whose arguments or results are not all tensors."""
        if ForkState.child:
            plugins.check_process()
        counters.executions += 1
        exported = self.exported
        args += [args[i].as_strided(*view) for i, *view in exported.views]
        tensors = [args[i] for i in exported.tensor_inputs]
        tensors += exported.constants
        kept = {i: args[i] for i in returned_inputs(outputs)}
        args.clear()
        written = resolve_lazy(tensors, exported.lazy) if exported.lazy else ()
        results = executable(tensors, draw_seed() if uses_seed else 0)
        with torch.no_grad():
            for lazy, plain in written:
                lazy.copy_(plain)
        return arrange(outputs, results, kept)


def returned_outputs(kind: str) -> int:
    """How many of the first outputs of the graph being compiled are results of the call: none are of a backward."""
    context = TracingContext.try_get()
    if kind == "backward" or context is None or context.fw_metadata is None:
        return 0
    return int(context.fw_metadata.num_forward_returns)


def size_name(source: str) -> str:
    """`x:1` as Python writes it."""
    name, colon, dim = source.rpartition(":")
    return f"{name}.size({dim})" if colon else source


def warn(message: str) -> None:
    """For the user's log; the same text only once."""
    warnings.warn(message, stacklevel=2)


def boxed(call: Boxed) -> Boxed:
    """Tells AOTAutograd that it may hand over its list of arguments."""
    call._boxed_call = True  # type: ignore[attr-defined]
    return call


def raising(error: TorchTPUError) -> Boxed:
    """A compiled function that raises `error`, each time without the frames of the compilation."""
    error.__traceback__ = error.__cause__ = error.__context__ = None

    def call(*_: Any) -> list[Any]:
        raise error.with_traceback(None)

    return boxed(call)


def draw_seed() -> int:
    """The seed of one execution, from torch's default generator: `torch.manual_seed` decides it."""
    # Spelled out, so that neither a default device nor a default dtype of the user's matters.
    return int(
        torch.randint(0, _SEEDS, (), dtype=torch.int64, device="cpu", generator=torch.default_generator)
    )


def resolve_lazy(
    tensors: list[Any], places: Sequence[tuple[int, bool]]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Replaces lazy conjugates and negatives, whose memory holds other numbers; returns those that the graph writes, each
    with what stands for it."""
    written = []
    for k, is_written in places:
        lazy = tensors[k]
        if lazy.is_conj() or lazy.is_neg():
            with torch.no_grad():
                tensors[k] = lazy.resolve_conj().resolve_neg()
            if is_written:
                written.append((lazy, tensors[k]))
    return written


def resolve_outputs(exported: Exported, bindings: dict[str, int]) -> list[Any]:
    """The output plan with its numbers worked out."""

    def number(value: Any) -> Any:
        if isinstance(value, list):
            return [number(v) for v in value]
        return evaluate(value, bindings) if isinstance(value, str) else value

    resolved: list[Any] = []
    for kind, value in exported.outputs:
        if kind == "sym":
            resolved.append(("const", number(value)))
        elif kind in ("view", "input_view"):
            resolved.append((kind, (value[0], *(number(v) for v in value[1:]))))
        else:
            resolved.append((kind, value))
    return resolved


def returned_inputs(outputs: Sequence[Any]) -> set[int]:
    """The positions of the arguments that are returned, or views of them."""
    return {v if kind == "input" else v[0] for kind, v in outputs if kind in ("input", "input_view")}


def arrange(outputs: list[Any], results: list[torch.Tensor], kept: dict[int, Any]) -> list[Any]:
    """What the graph returns, from the results of the executable and the arguments that are returned as they are."""
    arranged: list[Any] = []
    for kind, value in outputs:
        if kind == "tensor":
            arranged.append(results[value])
        elif kind == "input":
            arranged.append(kept[value])
        elif kind == "view":
            arranged.append(results[value[0]].as_strided(*value[1:]))
        elif kind == "input_view":
            base = kept[value[0]]
            size, stride, offset = value[1:]
            arranged.append(base.as_strided(size, stride, base.storage_offset() + offset))
        else:
            arranged.append(value)
    return arranged


def resolve(value: Any, bindings: dict[str, int]) -> Any:
    """The value of what may be a symbolic number of PyTorch's."""
    if not isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return value
    return evaluate(str(value.node.expr), bindings)


def operands_of(expression: str) -> set[str]:
    """The symbols in an expression as PyTorch prints it; none of a symbol, which is made of nothing."""
    return set() if expression.isidentifier() else set(re.findall(r"\b[A-Za-z_]\w*\b(?!\()", expression))


def evaluate(expression: str, bindings: dict[str, int]) -> int | float | bool:
    """The value of an expression as PyTorch prints it."""
    if expression in bindings:
        return bindings[expression]
    import sympy
    from torch.utils._sympy import functions

    names = {name: value for name, value in vars(functions).items() if isinstance(value, type)}
    symbols = {str(s): sympy.sympify(v) for s, v in bindings.items()}
    value = sympy.sympify(expression, locals={**names, **symbols})
    if value in (sympy.true, sympy.false):
        return bool(value)
    return int(value) if value.is_integer else float(value)
