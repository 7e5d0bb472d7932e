"""One graph of AOTAutograd: exported, compiled, and the callable that runs it.

A call is one executable, chosen by the sizes of its arguments. Wiring into AOTAutograd is `backend`, the
payload is `export`; nothing here may look into the graph."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch._guards import CompileContext

from . import cache, dump, plugins
from ._torchtpu import Client, Executable, Program, TorchTPUError
from .counters import counters, recompile_reason
from .export import Exported, export
from .options import Options
from .plugins import ForkState
from .progress import Progress

log = logging.getLogger("torchtpu_dynamo")

Boxed = Callable[[list[Any]], list[Any]]

live_graphs: weakref.WeakSet[Graph] = weakref.WeakSet()
"""Graphs that a compiled function still uses; `refresh` walks them. They are freed by reference count
alone."""

_SEEDS = 2**63 - 1


class Graph:
    """An exported graph, and the executables made of it, one for each set of sizes."""

    def __init__(self, exported: Exported, options: Options, source: str = "") -> None:
        context = CompileContext.try_get()
        self.compile_id: Any = context.compile_id if context is not None else None
        self.label = f"{self.compile_id or '-'} {exported.kind}"
        self.exported = exported
        self.options = options
        self.reason = recompile_reason()
        self.source = source
        self.export_seconds = 0.0
        self.executables: dict[tuple[Any, ...], tuple[Executable, bool, list[Any]]] = {}
        self.lock = threading.Lock()

    @classmethod
    def of(cls, gm: torch.fx.GraphModule, kind: str, static: Iterable[int], options: Options) -> Graph:
        """The graph that AOTAutograd hands over: a call of our compiler."""
        start = time.perf_counter()
        counters.compiler_calls += 1
        context = CompileContext.try_get()
        compile_id = context.compile_id if context is not None else None
        name = "graph" if compile_id is None else f"graph_{str(compile_id).replace('/', '_')}"
        graph = cls(export(gm, kind, name, static), options, dump.source_text(gm))
        graph.export_seconds = time.perf_counter() - start
        return graph

    def program(self, bindings: dict[str, int]) -> Program:
        """The program for these sizes. Raises TorchTPUError."""
        kind, payload = self.exported.kind, self.exported.json
        with dump.folder(kind) as folder:
            dump.show_source(self.source, payload, folder, kind, self.compile_id)
            program = Program(payload, bindings, self.options.program_json(folder))
        dump.show_program(program, kind, self.compile_id)
        return program

    def compile(self, key: tuple[Any, ...]) -> tuple[Executable, bool, list[Any]]:
        """The executable for these values of the symbols, whether it takes a seed, and its output plan."""
        with self.lock:
            found = self.executables.get(key)
            if found is not None:
                return found
            bindings = dict(zip(self.exported.symbols, key, strict=True))
            reason = self.reason
            if self.executables:
                last = next(reversed(self.executables))
                changed = (f"{s}={v}" for s, v, old in zip(bindings, key, last, strict=True) if v != old)
                reason = f"new size {', '.join(changed)}"
            start = time.perf_counter()
            try:
                client = plugins.client(self.options.plugin, self.options.zero_copy)
                with Progress(f"{self.label}, {self.exported.nodes} nodes"):
                    executable, stages, found_it = self.executable(bindings, client)
            except TorchTPUError:
                counters.errors += 1
                raise
            counters.compiled(self.label, {"export": self.export_seconds, **stages}, reason, loaded=found_it)
            log.info(
                "%s %s: %d nodes in %.3f s",
                "loaded" if found_it else "compiled",
                self.label,
                self.exported.nodes,
                time.perf_counter() - start,
            )
            self.export_seconds = 0.0
            found = (executable, executable.uses_seed, resolve_outputs(self.exported, bindings))
            self.executables[key] = found
            return found

    def executable(
        self, bindings: dict[str, int], client: Client
    ) -> tuple[Executable, dict[str, float], bool]:
        """The executable of an earlier process, or a new one; seconds by stage; whether it was found."""
        store = cache.store(self.options)
        key = None
        if store is not None:
            key, executable = cache.lookup(store, self.exported, bindings, self.options, client)
            if executable is not None:
                dump.show_source(self.source, self.exported.json, None, self.exported.kind, self.compile_id)
                return executable, executable.stage_times(), True
        program = self.program(bindings)
        executable = program.compile(client, self.options.compile_json())
        if store is not None and key is not None:
            cache.save(store, key, executable, client, self.exported)
        return executable, {**program.stage_times(), **executable.stage_times()}, False

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

    def run(self, executable: Executable, uses_seed: bool, outputs: list[Any], args: list[Any]) -> list[Any]:
        """One call of an executable whose arguments or results are not all tensors."""
        if ForkState.child:
            plugins.check_process()
        counters.executions += 1
        exported = self.exported
        tensors = [args[i] for i in exported.tensor_inputs]
        tensors += exported.constants
        kept = {index: args[index] for kind, index in outputs if kind == "input"}
        args.clear()
        results = executable(tensors, draw_seed() if uses_seed else 0)
        return arrange(outputs, results, kept)


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
        elif kind == "view":
            resolved.append((kind, (value[0], *(number(v) for v in value[1:]))))
        else:
            resolved.append((kind, value))
    return resolved


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
        else:
            arranged.append(value)
    return arranged


def evaluate(expression: str, bindings: dict[str, int]) -> int | float | bool:
    """The value of an expression as PyTorch prints it."""
    if expression in bindings:
        return bindings[expression]
    import sympy
    from torch.utils._sympy import functions

    names = {name: value for name, value in vars(functions).items() if isinstance(value, type)}
    symbols = {str(s): sympy.Integer(v) for s, v in bindings.items()}
    value = sympy.sympify(expression, locals={**names, **symbols})
    if value in (sympy.true, sympy.false):
        return bool(value)
    return int(value) if value.is_integer else float(value)
