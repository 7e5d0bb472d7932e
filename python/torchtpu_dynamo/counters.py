"""Counters of what the backend did in this process.

The only mutable state is `counters`. Nothing here may look at graphs or hold on to programs.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

WARN_FROM = 3
"""Recompilations of one function that are worth a warning."""


@dataclasses.dataclass(frozen=True)
class Recompilation:
    """A graph that was compiled again; `graph` is dynamo's "frame/compilation" and the kind of graph, `reason` the
    guard that failed or the size that changed, `line` where the user called."""

    graph: str
    reason: str
    line: str = ""


@dataclasses.dataclass(frozen=True)
class PassStats:
    """What a pass of the compiler did in all: how often it ran, what it rewrote, and its seconds."""

    runs: int
    rewrites: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class CacheStats:
    """What the cache on disk did: executables loaded (`hits`), looked up in vain (`misses`) and `stored`, with
    the bytes of both; files or folders that could not be used (`errors`); and `graphs` that AOTAutograd's
    own cache knew, so that our compiler was not called."""

    hits: int
    misses: int
    stored: int
    errors: int
    graphs: int
    bytes_read: int
    bytes_written: int


@dataclasses.dataclass(frozen=True)
class Stats:
    """A snapshot of the counters. Times are in seconds.

    `compilations` counts those by XLA, `compiler_calls` the graphs that AOTAutograd handed to our compiler; what
    a cache knew is in neither. `cache_hits` counts calls of graphs with symbolic sizes that found their sizes
    compiled already in this process; `cache` is about the one on disk. `fallbacks` counts the executions of each
    operator that ran on the host, and `fallback_bytes` the bytes of their operands and results: what moves
    between host and device. `host_reads` counts the numbers and sizes that data decided and Python had to know, as
    `.item()` and nonzero do: each waits for the device. `collectives` counts those that processes ran together,
    between the compiled pieces of a graph. `passes` has what each pass of ours did, but for those for TPUs, which run
    where a program is compiled for one: an artifact says what those did (`torchtpu inspect`).
    """

    compilations: int
    executions: int
    cache_hits: int
    errors: int
    stage_seconds: Mapping[str, float]
    recompilations: tuple[Recompilation, ...]
    compiler_calls: int
    cache: CacheStats
    fallbacks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    fallback_bytes: int = 0
    host_reads: int = 0
    collectives: int = 0
    passes: Mapping[str, PassStats] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"compilations {self.compilations}  executions {self.executions}  cache hits {self.cache_hits}"
            f"  errors {self.errors}  compiler calls {self.compiler_calls}",
            f"  cache on disk: hits {self.cache.hits}  misses {self.cache.misses}  stored {self.cache.stored}"
            f"  errors {self.cache.errors}  graphs {self.cache.graphs}  read {self.cache.bytes_read} bytes"
            f"  written {self.cache.bytes_written} bytes",
            *(f"  {stage:<12} {seconds:8.3f} s" for stage, seconds in self.stage_seconds.items()),
            *(
                f"  pass {name:<15} {p.seconds:8.3f} s  rewrites {p.rewrites}"
                for name, p in self.passes.items()
            ),
            *(f"  on the host {op}: {count}" for op, count in self.fallbacks.items()),
            *([f"  moved for it {self.fallback_bytes} bytes"] if self.fallbacks else []),
            *([f"  read by the host {self.host_reads} times"] if self.host_reads else []),
            *([f"  collectives between processes {self.collectives}"] if self.collectives else []),
            *(
                f"  recompiled {r.graph}: {r.reason}{f' at {r.line}' if r.line else ''}"
                for r in self.recompilations
            ),
        ]
        return "\n".join(lines)


class Counters:
    """The live counters. Calls bump `executions` and `cache_hits` without a lock: a lost count is
    cheaper than one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        self.compilations = 0
        self.executions = 0
        self.cache_hits = 0
        self.errors = 0
        self.stage_seconds: dict[str, float] = {}
        self.recompilations: list[Recompilation] = []
        self.fallbacks: dict[str, int] = {}
        self.fallback_bytes = 0
        self.host_reads = 0
        self.collectives = 0
        self.passes: dict[str, PassStats] = {}
        self.again: dict[str, int] = {}
        self.compiler_calls = 0
        self.graph_loads = 0
        self.cache_loads = 0
        self.cache_misses = 0
        self.cache_stored = 0
        self.cache_errors = 0
        self.cache_read = 0
        self.cache_written = 0

    def passed(self, reports: Iterable[Mapping[str, Any]]) -> None:
        """Notes what the passes did to a program."""
        with self.lock:
            for report in reports:
                before = self.passes.get(report["name"], PassStats(0, 0, 0.0))
                self.passes[report["name"]] = PassStats(
                    before.runs + 1,
                    before.rewrites + report["rewrites"],
                    before.seconds + report["seconds"],
                )

    def compiled(
        self,
        graph: str,
        stages: Mapping[str, float],
        reason: str | None,
        line: str = "",
        loaded: bool = False,
    ) -> None:
        """Notes an executable, compiled or loaded from the cache on disk; warns of a function's third recompilation,
        and of each time that doubles."""
        times = 0
        with self.lock:
            self.compilations += not loaded
            for stage, seconds in stages.items():
                self.stage_seconds[stage] = self.stage_seconds.get(stage, 0.0) + seconds
            if reason is not None:
                self.recompilations.append(Recompilation(graph, reason, line))
                # Forward and backward are one function, and the backward follows. Buckets were asked for.
                if not graph.endswith(" backward") and "all sizes up to" not in reason:
                    frame = graph.partition("/")[0]
                    times = self.again[frame] = self.again.get(frame, 0) + 1
        if times % WARN_FROM == 0 and (times // WARN_FROM).bit_count() == 1:
            warnings.warn(advice(graph, times, str(reason), line), stacklevel=3)

    def fell_back(self, op: str, size: int) -> None:
        with self.lock:
            self.fallbacks[op] = self.fallbacks.get(op, 0) + 1
            self.fallback_bytes += size

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Takes back what the block counts: of work that is not the user's."""
        with self.lock:
            kept = {name: copy.copy(value) if name != "lock" else value for name, value in vars(self).items()}
        try:
            yield
        finally:
            with self.lock:
                vars(self).update(kept)


def advice(graph: str, times: int, reason: str, line: str) -> str:
    """What to say of a function that is compiled again and again, and what helps."""
    if reason.startswith("new size "):
        helps = 'options={"buckets": {"*": "pow2"}} compiles once for a range of sizes'
    elif "size mismatch" in reason and all_sizes_asked_for():
        helps = (
            "dynamic=True is given, and something on the way has PyTorch specialize on this size all the same: "
            "TORCH_LOGS=dynamic shows what"
        )
    else:
        helps = (
            "torch._dynamo.mark_dynamic(tensor, dim), or dynamic=True, makes one graph of all sizes; "
            "TORCH_LOGS=recompiles shows every guard"
        )
    where = f" at {line}" if line else ""
    return f"graph {graph} was compiled again, {times} times by now{where}: {reason.strip()}; {helps}"


def all_sizes_asked_for() -> bool:
    """Whether dynamo compiles with dynamic=True."""
    import torch._dynamo.config

    return not torch._dynamo.config.assume_static_by_default


counters = Counters()


def stats() -> Stats:
    """What was compiled and run so far in this process, or since `reset_stats()`."""
    with counters.lock:
        return Stats(
            counters.compilations,
            counters.executions,
            counters.cache_hits,
            counters.errors,
            dict(counters.stage_seconds),
            tuple(counters.recompilations),
            counters.compiler_calls,
            CacheStats(
                hits=counters.cache_loads,
                misses=counters.cache_misses,
                stored=counters.cache_stored,
                errors=counters.cache_errors,
                graphs=counters.graph_loads,
                bytes_read=counters.cache_read,
                bytes_written=counters.cache_written,
            ),
            dict(counters.fallbacks),
            counters.fallback_bytes,
            counters.host_reads,
            counters.collectives,
            dict(counters.passes),
        )


def reset_stats() -> None:
    """Sets every counter to zero."""
    with counters.lock:
        counters.clear()


def recompile_reason() -> str | None:
    """Why dynamo compiles the current frame again; None for a first compilation or outside of one."""
    from torch._dynamo.utils import get_metrics_context
    from torch._guards import CompileContext

    context = CompileContext.try_get()
    compile_id: Any = context.compile_id if context is not None else None
    if compile_id is None or not compile_id.frame_compile_id:
        return None
    # Not public: without it the reason is unknown, never an error.
    reason = getattr(get_metrics_context(), "_metrics", {}).get("recompile_reason")
    return str(reason) if reason else "guards failed"
