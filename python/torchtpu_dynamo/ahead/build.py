"""`aot_compile`: a module to an artifact, for devices that need not be there.

Graphs come from `capture` (of a .pt2 file, from `archive`), one compilation for one topology is a child process of
`topologies`, the file is `artifact`; here is the order of the steps. docs/ahead.md has the picture."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch._subclasses import FakeTensor

from .. import forms, plugins, spmd
from .._torchtpu import COMPILER, ArtifactWriter, ForTpu, Program, TorchTPUError, families, unsupported
from ..buckets import parse_buckets
from ..options import Options, parse_options
from ..progress import Progress
from . import archive, fits, topologies, tuning
from .artifact import VERSION, Artifact
from .capture import Capture, Captured, Sizes, captured, described, local

MOST_BUCKETS = 64
"""Programs of one artifact that are for buckets of sizes."""

Compiled = tuple[str, str, ForTpu, topologies.Build, float]
"""Kind, topology, what was compiled, what became of it, and seconds."""

Tell = Callable[[str, float], None]
"""Hears what was done, and how many seconds it took."""


def aot_compile(
    fn: Callable[..., Any] | torch.export.ExportedProgram | str | os.PathLike[str],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    topology: str | Sequence[str] = (),
    train: bool = False,
    options: Mapping[str, Any] | None = None,
    regions: bool = False,
    output: str | os.PathLike[str] | None = None,
    weights: bool = True,
    key: bytes | None = None,
    jobs: int | None = None,
    time_limit: float = topologies.TIME_LIMIT,
    tell: Tell | None = None,
) -> Artifact:
    """Compiles a module or function, a program of torch.export's, or a .pt2 file.

    `topology` names what to compile for: names of libtpu's such as "v5e:2x2" (`torchtpu topologies` lists them), and
    "cpu" for this machine. Without one the artifact holds the program alone, and is compiled where it is run. Nothing is
    executed; parameters and arguments may be on the meta device or fake, and then the artifact holds no weights. With
    `train`, the programs are a forward and its backward; otherwise one that keeps nothing for a backward. `options` are
    those of the backend; `xla_options` among them go to each topology's compiler. With `regions`, modules of one class in
    a ModuleList or Sequential are compiled as calls of one function, as `torch.compiler.nested_compile_region` makes them:
    for many layers, libtpu then takes a fraction of the time. `key`, 32 bytes, signs the file, which
    is `output`, or a temporary one that lives as long as the artifact. Compilations run `jobs` at a time, each in a
    process of its own, for at most `time_limit` seconds.

    Under a process group the program is what this rank traces, with its numbers; `aot_compile_spmd` makes one of all ranks.

    Raises TorchTPUError: for operators that are not supported, all of them at once; for a topology that libtpu does not
    know; for a program that does not fit; OSError for an output that cannot be written, before anything is compiled."""
    if not isinstance(args, (tuple, list)):
        # A tensor would be taken for a sequence of its rows.
        raise TorchTPUError(
            f"args is a {type(args).__name__}, and should be a tuple\nhelp: pass (x,) for one argument"
        )
    work = _Work(_options(options), regions, train, weights, jobs, time_limit, tell)
    return work.artifact(output, key, topology, lambda: [work.captured(fn, args, kwargs or {})])


def aot_compile_spmd(
    build: Callable[[], tuple[Any, ...]],
    ranks: int,
    *,
    sample: bool = False,
    topology: str | Sequence[str] = (),
    train: bool = False,
    options: Mapping[str, Any] | None = None,
    regions: bool = False,
    output: str | os.PathLike[str] | None = None,
    weights: bool = True,
    key: bytes | None = None,
    jobs: int | None = None,
    time_limit: float = topologies.TIME_LIMIT,
    tell: Tell | None = None,
) -> Artifact:
    """One program for all ranks of a world, compiled as `aot_compile` does: the numbers of each rank are in it.

    `build()` is called as each rank, as by `lower_spmd`, and returns `(fn, *args)`. What it makes are a rank's own tensors:
    of a DTensor, the artifact takes and gives this rank's part. Weights that differ from rank to rank are held for each
    of them. Tracing takes its time for each rank: with `sample`, only ranks 0, 1 and the last are traced and must have
    equal programs, and that the others would have the same is then the caller's word. The topology has a device for
    each rank. `Artifact.run_spmd` runs it on as many devices of the CPU. Raises TorchTPUError, also where ranks differ in
    more than numbers."""
    work = _Work(_options(options), regions, train, weights, jobs, time_limit, tell)
    if "cpu" in ([topology] if isinstance(topology, str) else topology):
        raise TorchTPUError(
            "a program for several ranks is compiled for the CPU where it runs\nhelp: leave the topology `cpu` out"
        )
    return work.artifact(output, key, topology, lambda: work.captured_ranks(build, ranks, sample), ranks)


def _options(options: Mapping[str, Any] | None) -> Options:
    """Raises TorchTPUError for an option that says nothing to an artifact."""
    parsed = parse_options(options)
    if parsed.max_data_dependent_size is not None:
        raise TorchTPUError(
            "option 'max_data_dependent_size' is for torch.compile: an artifact has no sizes that data decide\n"
            "help: keep the size, as torch.where does, or compile the parts before and behind it"
        )
    return parsed


def check_topologies(wanted: Sequence[str]) -> None:
    """Raises TorchTPUError for an empty name, and for one that is there twice."""
    for name in wanted:
        if not name:
            raise TorchTPUError(
                "a topology has the empty name\nhelp: `torchtpu topologies` lists names, and cpu is one"
            )
        if wanted.count(name) > 1:
            raise TorchTPUError(f"topology {name!r} is there twice\nhelp: name it once")


@dataclasses.dataclass
class _Work:
    options: Options
    regions: bool
    train: bool
    with_weights: bool
    jobs: int | None
    time_limit: float
    tell: Tell | None
    stages: dict[str, float] = dataclasses.field(default_factory=dict)
    forms_file: str | None = None
    """Where the forms go that a search finds."""
    over: threading.Event = dataclasses.field(default_factory=threading.Event)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        with Progress(name):
            yield
        self.stages[name] = time.perf_counter() - start
        if self.tell is not None:
            self.tell(name, self.stages[name])

    def artifact(
        self,
        output: str | os.PathLike[str] | None,
        key: bytes | None,
        topology: str | Sequence[str],
        capture: Callable[[], list[Capture]],
        ranks: int | None = None,
    ) -> Artifact:
        """The file, of what `capture` traces: as one rank, or as each."""
        wanted = [topology] if isinstance(topology, str) else list(topology)
        check_topologies(wanted)
        self.forms_file = self.options.tuned or (f"{os.fspath(output)}.forms.json" if output else None)
        temporary = None
        if output is None:
            temporary = tempfile.TemporaryDirectory(prefix="torchtpu-artifact-")
            output = Path(temporary.name) / "model.ttpu"
        writer = ArtifactWriter(os.fspath(output))
        try:
            writer.finish(json.dumps(self.compile(writer, capture, wanted, ranks)), key)
        except BaseException:
            with contextlib.suppress(ValueError):
                writer.abandon()
            raise
        artifact = Artifact(output, trusted=True)
        if temporary is not None:
            artifact._temporary = weakref.finalize(artifact, temporary.cleanup)
        return artifact

    def compile(
        self,
        writer: ArtifactWriter,
        traced: Callable[[], list[Capture]],
        wanted: list[str],
        ranks: int | None,
    ) -> dict[str, Any]:
        """Writes the sections; returns the label."""
        away = [name for name in wanted if name != "cpu"]
        known = topologies.check(away) if away else {}
        with self.stage("capture"):
            captures = traced()
        capture = captures[0]
        parts = self.parts(capture)
        programs: dict[str, Program] = {}
        with self.stage("compiler"):
            for name, (kind, sizes) in parts.items():
                programs[name] = self.program([c.graphs[kind] for c in captures], sizes, ranks)
        for name, program in programs.items():
            writer.section(f"{name}.ir", program.graph_text("after").encode())
            writer.section(f"{name}.stablehlo", program.as_text(True).encode())
        if capture.sizes is not None:
            for kind, graph in capture.graphs.items():
                writer.section(f"{kind}.fx", graph.graph.exported.json.encode())
        builds = []
        if "cpu" in wanted:
            builds += self.on_host(writer, programs)
        builds += self.on_topologies(writer, programs, away, known)
        interfaces = {name: json.loads(program.interface()) for name, program in programs.items()}
        by_rank = self.by_rank(captures, interfaces, ranks)
        held = self.weights(writer, captures, by_rank) if self.with_weights else set()
        return {
            "version": VERSION,
            "name": capture.name,
            "compiler": COMPILER,
            "torch": capture.torch_version,
            "created": int(time.time()),
            "train": self.train,
            **({"ranks": ranks} if ranks is not None else traced_as()),
            "inputs": self.inputs(capture),
            "arguments": capture.arguments,
            "keywords": capture.keywords,
            "defaults": capture.defaults,
            "results": capture.results,
            "weights": [
                {"name": n, **described(w), "held": n in held, **({"by_rank": True} if n in by_rank else {})}
                for n, w in capture.weights.items()
            ],
            "programs": {
                name: self.described(
                    capture.graphs[kind],
                    kind,
                    sizes,
                    interfaces[name],
                    programs[name].pass_reports(),
                    [other for other, (of, _) in parts.items() if of == name != other],
                )
                for name, (kind, sizes) in parts.items()
            },
            "builds": builds,
            "stages": self.stages,
        }

    def captured(self, fn: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Capture:
        if self.regions and isinstance(fn, (str, os.PathLike, torch.export.ExportedProgram)):
            raise TorchTPUError(
                "an exported program has no modules left, of which `regions` could be\n"
                "help: compile the module itself, or export it with layers that torch.compiler.nested_compile_region marks"
            )
        if isinstance(fn, (str, os.PathLike)):
            return archive.captured(archive.load(fn), Path(fn).stem, self.train, self.options)
        if isinstance(fn, torch.export.ExportedProgram):
            return archive.captured(fn, "exported", self.train, self.options)
        return captured(fn, args, kwargs, self.train, self.options, self.regions)

    def captured_ranks(self, build: Callable[[], tuple[Any, ...]], ranks: int, sample: bool) -> list[Capture]:
        """What each rank traces, or only a few of them. Raises TorchTPUError where a call differs between them."""
        spmd.check_world(ranks)
        found: list[Capture] = []
        for rank in sorted({0, 1, ranks - 1} & set(range(ranks))) if sample else range(ranks):
            with spmd.as_rank(rank, ranks):
                fn, *args = build()
                found.append(self.captured(fn, args, {}))
            for what in ("inputs", "arguments", "keywords", "results"):
                first, other = getattr(found[0], what), getattr(found[-1], what)
                if first != other:
                    raise TorchTPUError(f"rank {rank} has other {what} than rank 0: {other} and {first}")
            for kind, graph in found[0].graphs.items():
                other = found[-1].graphs.get(kind)
                if other is None or any(
                    getattr(graph, what) != getattr(other, what) for what in ("inputs", "outputs", "notes")
                ):
                    raise TorchTPUError(
                        f"the {kind} of rank {rank} takes or gives other tensors than rank 0's"
                    )
        return found

    def inputs(self, capture: Capture) -> list[dict[str, Any]]:
        """With the sizes that the caller decides, and their bounds."""
        if capture.sizes is None:
            return capture.inputs
        bounds = {name: [s.min, s.max] for name, s in capture.sizes.symbols.items()}
        return [
            {**spec, "extents": [[e, *bounds.get(e, [])] if isinstance(e, str) else e for e in extents]}
            if any(isinstance(e, str) for e in extents)
            else spec
            for spec, extents in zip(capture.inputs, capture.sizes.inputs, strict=True)
        ]

    def parts(self, capture: Capture) -> dict[str, tuple[str, Sizes | None]]:
        """The programs by name: which graph, for which sizes. The one for all sizes is named as its graph."""
        wanted, sizes = parse_buckets(self.options.buckets), capture.sizes
        sources = sizes.sources(capture.inputs) if sizes is not None else {}
        known = [source for each in sources.values() for source in each]
        if missing := [name for name in wanted if name not in known and not (name == "*" and known)]:
            raise TorchTPUError(
                f'option "buckets" names {missing[0]!r}, and the program '
                + (f"has the dynamic sizes {', '.join(known)}" if known else "has no dynamic sizes")
                + "\nhelp: dynamic sizes are the Dims of a program of torch.export's"
            )
        if sizes is None:
            return {kind: (kind, None) for kind in capture.graphs}
        buckets = sizes.buckets(wanted, sources)
        if len(buckets) > MOST_BUCKETS:
            raise TorchTPUError(
                f"the buckets make {len(buckets)} programs, and an artifact has room for {MOST_BUCKETS}\n"
                "help: name fewer sizes, or only the dimension that differs most"
            )
        parts: dict[str, tuple[str, Sizes | None]] = {}
        for kind in capture.graphs:
            for bucket in buckets[:-1]:
                parts[f"{kind}-{'x'.join(map(str, bucket.upper.values()))}"] = (kind, bucket)
            parts[kind] = (kind, buckets[-1])
        return parts

    def described(
        self,
        captured: Captured,
        kind: str,
        sizes: Sizes | None,
        interface: dict[str, Any],
        passes: list[dict[str, Any]],
        smaller: list[str],
    ) -> dict[str, Any]:
        """A program in the label's words; `smaller` are those for buckets of its sizes, ascending."""
        exported = captured.graph.exported
        words = {
            "interface": interface,
            "passes": passes,
            "inputs": captured.inputs,
            "outputs": captured.outputs,
            "nodes": exported.nodes,
            "families": by_family(exported.json),
            **captured.notes,
        }
        if sizes is not None:
            # What is needed to make the program again.
            words["sizes"] = {
                "payload": f"{kind}.fx",
                "symbols": [{"name": n, **dataclasses.asdict(s)} for n, s in sizes.symbols.items()],
                "inputs": sizes.inputs,
                "samples": sizes.samples,
                "settings": json.loads(self.options.program_json(None)),
            }
        if smaller:
            words["buckets"] = smaller
        return words

    def program(self, traced: Sequence[Captured], sizes: Sizes | None, ranks: int | None) -> Program:
        """Of what one rank traced, or several. Raises TorchTPUError, which lists all that is not supported."""
        graph = traced[0].graph
        upper = sizes.upper if sizes is not None else {}
        try:
            if ranks is not None:
                sources = [one.graph.source_payload({})[1] for one in traced]
                return Program.of_ranks(sources, self.options.program_json(None), len(traced) == ranks)
            return graph.program(upper, sizes.samples if sizes is not None else None)
        except TorchTPUError as e:
            if e.stage not in ("import", "lowering"):
                raise
            payload, _ = graph.source_payload(upper)
            found = unsupported(payload, upper)
            if not found and sizes is not None:
                bounds = ", ".join(f"{s} from {v.min} to {v.max}" for s, v in sizes.symbols.items())
                error = TorchTPUError(
                    f"no program of the {graph.exported.kind} serves all sizes ({bounds}): {e}\n"
                    "help: export it with static sizes, once for each that is needed"
                )
                error.stage, error.op, error.location, error.help = e.stage, e.op, e.location, e.help
                raise error from None
            if len(found) < 2:
                raise
            lines = [f"  {op or node} at {line or 'an unknown line'}: {why}" for node, op, line, why in found]
            error = TorchTPUError(
                f"{len(found)} operators of the {graph.exported.kind} are not supported:\n"
                + "\n".join(dict.fromkeys(lines))
                + "\nhelp: torchtpu_dynamo.register_lowering gives one a lowering; docs/ops.md lists what is supported"
            )
            error.stage, error.op, error.location, error.help = e.stage, e.op, e.location, e.help
            raise error from None

    def by_rank(
        self, captures: Sequence[Capture], interfaces: Mapping[str, dict[str, Any]], ranks: int | None
    ) -> set[str]:
        """The weights of which each rank has its own: those that differ, and those that a program writes."""
        if ranks is None:
            return set()
        own = {
            role["weight"]
            for name, interface in interfaces.items()
            for role, spec in zip(captures[0].graphs[name].inputs, interface["inputs"], strict=True)
            if "weight" in role and spec["mutated_by"] is not None
        }
        for name, first in captures[0].weights.items():
            if is_real(first) and any(
                not torch.equal(local(first), local(other.weights[name])) for other in captures[1:]
            ):
                own.add(name)
        if own and len(captures) < ranks and self.with_weights:
            raise TorchTPUError(
                f"weight `{min(own)}` is each rank's own, and {len(captures)} of {ranks} ranks were traced\n"
                "help: leave the weights out, or trace as every rank"
            )
        return own

    def weights(self, writer: ArtifactWriter, captures: Sequence[Capture], by_rank: set[str]) -> set[str]:
        """Writes those that have values."""
        real = {name: w for name, w in captures[0].weights.items() if is_real(w)}
        stored = {name: w for name, w in real.items() if name not in by_rank}
        for rank, capture in enumerate(captures):
            stored.update({f"{name}@{rank}": capture.weights[name] for name in real if name in by_rank})
        if stored:
            tensors = [
                local(w).detach().resolve_conj().resolve_neg().cpu().contiguous() for w in stored.values()
            ]
            with self.stage("weights"):
                writer.weights(list(stored), tensors)
        return set(real)

    def on_host(self, writer: ArtifactWriter, programs: Mapping[str, Program]) -> list[dict[str, Any]]:
        client = plugins.client("cpu", None)
        builds = []
        for kind, program in programs.items():
            with self.stage(f"{kind} for cpu"):
                executable = program.compile(client, self.options.compile_json())
                data, signature = executable.serialize()
            writer.section(f"{kind}.cpu.executable", data)
            memory = json.loads(executable.analysis())["memory"] or {}
            builds.append(
                {
                    "program": kind,
                    "topology": "cpu",
                    "devices": 1,
                    "executable": f"{kind}.cpu.executable",
                    "target": {"host": {"platform": client.platform, "target": client.target}},
                    "options": json.loads(self.options.compile_json()),
                    "signature": json.loads(signature),
                    "memory": memory,
                    "plugin": {"version": client.platform_version},
                    "stages": executable.stage_times(),
                }
            )
        return builds

    def on_topologies(
        self,
        writer: ArtifactWriter,
        programs: Mapping[str, Program],
        wanted: Sequence[str],
        known: Mapping[str, dict[str, Any]],
    ) -> list[dict[str, Any]]:
        """Compiles each program for each topology, in parallel; with a search, one after the other."""
        if not wanted:
            if self.options.tune:
                raise TorchTPUError(
                    "option 'tune' searches for TPUs, and there is no topology to search for\n"
                    "help: name one, such as v5e:2x2"
                )
            return []
        builds = self.tuned if self.options.tune else self.compiled
        made: dict[tuple[str, str], dict[str, Any]] = {}
        with contextlib.closing(builds(programs, wanted, known)) as compiled:
            for kind, topology, prepared, build, seconds in compiled:
                self.stages[f"{kind} for {topology}"] = seconds
                if self.tell is not None:
                    self.tell(f"{kind} for {topology}", seconds)
                section = f"{kind}.{topology.replace(':', '-')}"
                writer.section(f"{section}.hlo", build.hlo)
                writer.section(f"{section}.executable", build.executable)
                plugin = {k: str(v) for k, v in build.plugin.items()}
                target = {name: plugin[name] for name in ("platform", "version", "kind")}
                made[kind, topology] = {
                    "program": kind,
                    "topology": topology,
                    "devices": programs[kind].devices,
                    "hlo": f"{section}.hlo",
                    "executable": f"{section}.executable",
                    "target": {"devices": target},
                    "options": json.loads(self.options.compile_json()),
                    "compiled_with": json.loads(prepared.options)["xla_options"],
                    "form": json.loads(prepared.form),
                    "passes": prepared.pass_reports(),
                    "memory": build.memory,
                    "predicted": fits.analysis(prepared)["memory"]["fused"]["bytes"],
                    "hbm": fits.capacity(known[topology]),
                    "plugin": plugin,
                    "stages": build.stages,
                }
        return [made[kind, topology] for kind in programs for topology in wanted]

    def compiled(
        self, programs: Mapping[str, Program], wanted: Sequence[str], known: Mapping[str, dict[str, Any]]
    ) -> Generator[Compiled]:
        pool = concurrent.futures.ThreadPoolExecutor(
            self.jobs or os.cpu_count() or 1, thread_name_prefix="torchtpu-ahead"
        )
        running = {}
        try:
            for kind, program in programs.items():
                # The passes depend on the chip, not on how many there are.
                chips: dict[str, ForTpu] = {}
                for topology in wanted:
                    chip = tuning.chip_of(topology)
                    if chip not in chips:
                        chips[chip] = program.for_tpu(topology, self.options.compile_json())
                    job = pool.submit(self.build, kind, program, chips[chip], topology, known[topology])
                    running[job] = (kind, topology, chips[chip])
            for job in concurrent.futures.as_completed(running):
                yield *running[job], *job.result()
        finally:
            # Whatever still runs, where one failed or the user has had enough, is of no use to anybody.
            self.over.set()
            pool.shutdown(cancel_futures=True)

    def tuned(
        self, programs: Mapping[str, Program], wanted: Sequence[str], known: Mapping[str, dict[str, Any]]
    ) -> Generator[Compiled]:
        """Each gets its share of the time that is left. What is found is written down as soon as it is."""
        if self.forms_file is not None:
            # A file that cannot be written is an error now, and not behind the search.
            forms.merge(self.forms_file, [])
        until = time.monotonic() + self.options.tune
        pairs = [(kind, topology) for kind in programs for topology in wanted]
        for i, (kind, topology) in enumerate(pairs):
            program = programs[kind]
            seconds = max(until - time.monotonic(), 0.0) / (len(pairs) - i)
            prepared = program.for_tpu(topology, self.options.compile_json())
            with Progress(f"{kind} for {topology}"), explained(kind, prepared, topology, known[topology]):
                found = tuning.search(
                    program,
                    kind,
                    topology,
                    self.options,
                    seconds,
                    jobs=self.jobs,
                    time_limit=self.time_limit,
                    cancelled=self.over.is_set,
                    tell=self.tell or _silent,
                )
            if self.forms_file is not None:
                forms.merge(self.forms_file, [found.entry(kind, program, topology)])
            yield kind, topology, found.best.prepared, found.best.build, found.seconds

    def build(
        self,
        kind: str,
        program: Program,
        prepared: ForTpu,
        topology: str,
        described: dict[str, Any],
    ) -> tuple[topologies.Build, float]:
        start = time.perf_counter()
        with Progress(f"{kind} for {topology}"), explained(kind, prepared, topology, described):
            made = topologies.build(
                prepared.as_bytecode(),
                topology,
                name=kind,
                options_json=prepared.options,
                replicas=program.devices,
                time_limit=self.time_limit,
                cancelled=self.over.is_set,
            )
        return made, time.perf_counter() - start


@contextlib.contextmanager
def explained(kind: str, prepared: ForTpu, topology: str, described: dict[str, Any]) -> Iterator[None]:
    """An error of the topology's compiler becomes one that says what takes the memory, where it is short."""
    try:
        yield
    except TorchTPUError as e:
        raise fits.explained(e, kind, prepared, topology, described) from None


def _silent(what: str, seconds: float) -> None:
    """For a caller who does not want to know."""


def is_real(weight: torch.Tensor) -> bool:
    """Whether it has values."""
    own = local(weight)
    return not isinstance(own, FakeTensor) and own.device.type != "meta"


def traced_as() -> dict[str, Any]:
    """Of which rank the numbers are, where there are several."""
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() < 2:
        return {}
    return {"traced_as": [dist.get_rank(), dist.get_world_size()]}


def by_family(payload: str) -> dict[str, list[str]]:
    """The nodes of a payload, by the family of their operators."""
    graph, known = json.loads(payload), families()
    names = [target["name"] for target in graph["targets"]]
    found: dict[str, list[str]] = {}
    for node in graph["nodes"]:
        found.setdefault(known.get(names[node["target"]], "other"), []).append(node["name"])
    return found
