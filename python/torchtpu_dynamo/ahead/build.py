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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch._subclasses import FakeTensor

from .. import plugins
from .._torchtpu import COMPILER, ArtifactWriter, Program, TorchTPUError, families, unsupported
from ..buckets import parse_buckets
from ..options import Options, parse_options
from ..progress import Progress
from . import archive, fits, topologies
from .artifact import VERSION, Artifact
from .capture import Capture, Captured, Sizes, captured, described

MOST_BUCKETS = 64
"""Programs of one artifact that are for buckets of sizes."""

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

    Raises TorchTPUError: for operators that are not supported, all of them at once; for a topology that libtpu does not
    know; for a program that does not fit; OSError for an output that cannot be written, before anything is compiled."""
    parsed = parse_options(options)
    wanted = [topology] if isinstance(topology, str) else list(topology)
    work = _Work(parsed, regions, tell or (lambda what, seconds: None))
    temporary = None
    if output is None:
        temporary = tempfile.TemporaryDirectory(prefix="torchtpu-artifact-")
        output = Path(temporary.name) / "model.ttpu"
    writer = ArtifactWriter(os.fspath(output))
    try:
        label = work.compile(
            writer,
            fn,
            args,
            kwargs,
            wanted,
            train,
            weights,
            jobs or os.cpu_count() or 1,
            time_limit,
        )
        writer.finish(json.dumps(label), key)
    except BaseException:
        with contextlib.suppress(ValueError):
            writer.abandon()
        raise
    artifact = Artifact(output, trusted=True)
    if temporary is not None:
        artifact._temporary = weakref.finalize(artifact, temporary.cleanup)
    return artifact


@dataclasses.dataclass
class _Work:
    options: Options
    regions: bool
    tell: Tell
    stages: dict[str, float] = dataclasses.field(default_factory=dict)
    over: threading.Event = dataclasses.field(default_factory=threading.Event)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        with Progress(name):
            yield
        self.stages[name] = time.perf_counter() - start
        self.tell(name, self.stages[name])

    def compile(
        self,
        writer: ArtifactWriter,
        fn: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None,
        wanted: list[str],
        train: bool,
        weights: bool,
        jobs: int,
        time_limit: float,
    ) -> dict[str, Any]:
        """Writes the sections; returns the label."""
        away = [name for name in wanted if name != "cpu"]
        known = topologies.check(away) if away else {}
        with self.stage("capture"):
            capture = self.captured(fn, args, kwargs or {}, train)
        parts = self.parts(capture)
        programs: dict[str, Program] = {}
        with self.stage("compiler"):
            for name, (kind, sizes) in parts.items():
                programs[name] = self.program(capture.graphs[kind], sizes)
        for name, program in programs.items():
            writer.section(f"{name}.ir", program.graph_text("after").encode())
            writer.section(f"{name}.stablehlo", program.as_text(True).encode())
        if capture.sizes is not None:
            for kind, graph in capture.graphs.items():
                writer.section(f"{kind}.fx", graph.graph.exported.json.encode())
        builds = []
        if "cpu" in wanted:
            builds += self.on_host(writer, programs)
        builds += self.on_topologies(writer, programs, away, known, jobs, time_limit)
        held = self.weights(writer, capture.weights) if weights else []
        return {
            "version": VERSION,
            "name": capture.name,
            "compiler": COMPILER,
            "torch": capture.torch_version,
            "created": int(time.time()),
            "train": train,
            "inputs": self.inputs(capture),
            "arguments": capture.arguments,
            "keywords": capture.keywords,
            "results": capture.results,
            "weights": [{"name": n, **described(w), "held": n in held} for n, w in capture.weights.items()],
            "programs": {
                name: self.described(
                    capture.graphs[kind],
                    kind,
                    sizes,
                    programs[name],
                    [other for other, (of, _) in parts.items() if of == name != other],
                )
                for name, (kind, sizes) in parts.items()
            },
            "builds": builds,
            "stages": self.stages,
        }

    def captured(self, fn: Any, args: Sequence[Any], kwargs: Mapping[str, Any], train: bool) -> Capture:
        if self.regions and isinstance(fn, (str, os.PathLike, torch.export.ExportedProgram)):
            raise TorchTPUError(
                "an exported program has no modules left, of which `regions` could be\n"
                "help: compile the module itself, or export it with layers that torch.compiler.nested_compile_region marks"
            )
        if isinstance(fn, (str, os.PathLike)):
            return archive.captured(archive.load(fn), Path(fn).stem, train, self.options)
        if isinstance(fn, torch.export.ExportedProgram):
            return archive.captured(fn, "exported", train, self.options)
        return captured(fn, args, kwargs, train, self.options, self.regions)

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
        self, captured: Captured, kind: str, sizes: Sizes | None, program: Program, smaller: list[str]
    ) -> dict[str, Any]:
        """A program in the label's words; `smaller` are those for buckets of its sizes, ascending."""
        exported = captured.graph.exported
        words = {
            "interface": json.loads(program.interface()),
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

    def program(self, captured: Captured, sizes: Sizes | None = None) -> Program:
        """Raises TorchTPUError, which lists all that is not supported."""
        graph = captured.graph
        upper = sizes.upper if sizes is not None else {}
        try:
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

    def weights(self, writer: ArtifactWriter, weights: Mapping[str, torch.Tensor]) -> set[str]:
        """Writes those that have values."""
        real = {
            name: w.detach().resolve_conj().resolve_neg().cpu().contiguous()
            for name, w in weights.items()
            if not isinstance(w, FakeTensor) and w.device.type != "meta"
        }
        if real:
            with self.stage("weights"):
                writer.weights(list(real), list(real.values()))
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
        jobs: int,
        time_limit: float,
    ) -> list[dict[str, Any]]:
        """Compiles each program for each topology, in parallel."""
        builds: list[dict[str, Any]] = []
        if not wanted:
            return builds
        pool = concurrent.futures.ThreadPoolExecutor(jobs, thread_name_prefix="torchtpu-ahead")
        running = {}
        try:
            for kind, program in programs.items():
                bytecode = program.as_bytecode(tpu=True)
                for topology in wanted:
                    job = pool.submit(
                        self.build, kind, program, bytecode, topology, known[topology], time_limit
                    )
                    running[job] = (kind, topology)
            for job in concurrent.futures.as_completed(running):
                kind, topology = running[job]
                made, seconds = job.result()
                self.stages[f"{kind} for {topology}"] = seconds
                self.tell(f"{kind} for {topology}", seconds)
                section = f"{kind}.{topology.replace(':', '-')}"
                writer.section(f"{section}.hlo", made.hlo)
                writer.section(f"{section}.executable", made.executable)
                plugin = {k: str(v) for k, v in made.plugin.items()}
                target = {name: plugin[name] for name in ("platform", "version", "kind")}
                builds.append(
                    {
                        "program": kind,
                        "topology": topology,
                        "devices": programs[kind].devices,
                        "hlo": f"{section}.hlo",
                        "executable": f"{section}.executable",
                        "target": {"devices": target},
                        "options": json.loads(self.options.compile_json()),
                        "compiled_with": json.loads(self.compile_json(programs[kind], topology))[
                            "xla_options"
                        ],
                        "memory": made.memory,
                        "hbm": fits.capacity(known[topology]),
                        "plugin": plugin,
                        "stages": made.stages,
                    }
                )
        finally:
            # Whatever still runs, where one failed or the user has had enough, is of no use to anybody.
            self.over.set()
            pool.shutdown(cancel_futures=True)
        order = {(kind, topology): i for i, (kind, topology) in enumerate(running.values())}
        return sorted(builds, key=lambda b: order[b["program"], b["topology"]])

    def compile_json(self, program: Program, topology: str) -> str:
        """The user's options, and what suits the program on this topology where they say nothing."""
        return program.options_for(topology, self.options.compile_json())

    def build(
        self,
        kind: str,
        program: Program,
        bytecode: bytes,
        topology: str,
        described: dict[str, Any],
        time_limit: float,
    ) -> tuple[topologies.Build, float]:
        start = time.perf_counter()
        with Progress(f"{kind} for {topology}"):
            try:
                made = topologies.build(
                    bytecode,
                    topology,
                    name=kind,
                    options_json=self.compile_json(program, topology),
                    replicas=program.devices,
                    time_limit=time_limit,
                    cancelled=self.over.is_set,
                )
            except TorchTPUError as e:
                raise fits.explained(e, kind, program, topology, described) from None
        return made, time.perf_counter() - start


def by_family(payload: str) -> dict[str, list[str]]:
    """The nodes of a payload, by the family of their operators."""
    graph, known = json.loads(payload), families()
    names = [target["name"] for target in graph["targets"]]
    found: dict[str, list[str]] = {}
    for node in graph["nodes"]:
        found.setdefault(known.get(names[node["target"]], "other"), []).append(node["name"])
    return found
