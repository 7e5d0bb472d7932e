"""The search for a program's form on a chip, `options={"tune": SECONDS}` and `torchtpu compile --tune SECONDS`.

One choice after another: every value of it is compiled, in child processes, with the best of the others, and libtpu's own
schedule says which is the fastest; then the choices again, until none changes or the time is over. What runs other
passes than the form it started from is taken only if the program behind it, run on the CPU with numbers drawn at random,
gives what it gave before."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from .. import plugins
from .._torchtpu import Client, ForTpu, Program, TorchTPUError, judge
from ..comparison import TOLERANCES
from ..options import Options
from . import topologies

SCOPED_VMEM_KIB = (16384, 32768, 49152, 65536, 81920, 98304)
TILE_MIB = (8, 16, 32, 64)

FIXED = ("canonicalize", "cse", "dce", "narrow_dots")
"""Passes that are no choice: others build on them, and the last is checked where it is tested."""

LEAST = 0.002
"""Of the cycles, what a form must be better by."""

MOST_RANKS = 8
"""Devices of the CPU that a program of several ranks is run on. With more, only libtpu's options are searched."""

Form = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Trial:
    """A form, as libtpu compiled it."""

    form: Form
    prepared: ForTpu
    build: topologies.Build
    cycles: float
    """Estimated, with floors, and what its collectives keep waiting."""
    unpriced: frozenset[str]
    """Kernels that have no estimate, without their numbers."""


@dataclasses.dataclass(frozen=True)
class Found:
    best: Trial
    default: Trial
    tried: int
    seconds: float

    def entry(self, kind: str, program: Program, topology: str) -> dict[str, Any]:
        """What is written down."""
        return {
            "chip": chip_of(topology),
            "products": program.products(),
            "form": self.best.form,
            "program": f"{kind} for {topology}",
            "megacycles": [round(trial.cycles / 1e6, 3) for trial in (self.default, self.best)],
            "tried": self.tried,
            "plugin": self.best.build.plugin.get("version", ""),
        }


def chip_of(topology: str) -> str:
    return topology.partition(":")[0]


def on_device(program: Program, client: Client, options: Options) -> str:
    """`compile_json` with the form that a search finds for the client's chip. Raises TorchTPUError where it is no TPU."""
    if client.platform != "tpu":
        raise TorchTPUError(
            f"option 'tune' searches for TPUs, and this program is for {client.platform}\n"
            "help: leave it out, or compile ahead: torchtpu_dynamo.aot_compile(..., topology=...)"
        )
    names = {
        "TPU v5 lite": "v5e:1x1",
        "TPU v6 lite": "v6e:1x1",
        "TPU v5": "v5p:1x1x1",
        "TPU7x": "tpu7x:1x1x1",
    }
    topology = names.get(client.devices()[0]["kind"])
    if topology is None:
        return options.compile_json()
    found = search(program, program.name, topology, options, options.tune)
    return options.compile_json(form=found.best.form)


def search(
    program: Program,
    kind: str,
    topology: str,
    options: Options,
    seconds: float,
    jobs: int | None = None,
    time_limit: float = topologies.TIME_LIMIT,
    cancelled: Callable[[], bool] = lambda: False,
    tell: Callable[[str, float], None] = lambda what, seconds: None,
) -> Found:
    """The best form that is found within `seconds`, and its executable; the form that there would be without is compiled
    first, however long it takes. Raises TorchTPUError where that one does not compile."""
    return _Search(program, kind, topology, options, seconds, jobs, time_limit, cancelled, tell).run()


class _Search:
    def __init__(
        self,
        program: Program,
        kind: str,
        topology: str,
        options: Options,
        seconds: float,
        jobs: int | None,
        time_limit: float,
        cancelled: Callable[[], bool],
        tell: Callable[[str, float], None],
    ) -> None:
        self.program, self.kind, self.topology, self.options = program, kind, topology, options
        self.jobs = jobs or os.cpu_count() or 1
        self.time_limit, self.cancelled, self.tell = time_limit, cancelled, tell
        self.start = time.monotonic()
        self.until = self.start + seconds
        self.tried: dict[bytes, Trial | None] = {}
        """By bytecode and options, so that what is compiled to the same is compiled once."""
        self.numbers = _Numbers(program, options)
        self.stopped = threading.Event()

    def run(self) -> Found:
        form = json.loads(self.program.for_tpu(self.topology, self.options.compile_json()).form)
        default = self.trial(form, self.time_limit, self.cancelled)
        best = self.improved(default)
        return Found(best, default, len(self.tried), time.monotonic() - self.start)

    def improved(self, default: Trial) -> Trial:
        best = default
        unchanged = 0
        choices = list(self.choices(default))
        while choices:
            for choice in choices:
                if unchanged == len(choices) or self.over():
                    return best
                found = self.best_of(list(_others(best.form, *choice)), best, default)
                unchanged = unchanged + 1 if found is best else 1
                best = found
        return best

    def choices(self, default: Trial) -> Iterator[tuple[str, Sequence[Any]]]:
        """What a form may have otherwise: a size and its values, or "without" and a pass to leave out or not."""
        if "xla_tpu_scoped_vmem_limit_kib" not in self.options.xla_options:
            yield "scoped_vmem_kib", SCOPED_VMEM_KIB
        if not self.numbers.can_be_checked:
            return
        did = {report["name"] for report in default.prepared.pass_reports() if report["rewrites"]}
        if "tile_batch" in did:
            yield "tile_mib", TILE_MIB
        off = set(default.form["without"]) - set(self.options.left_out)
        for name in sorted((did | off) - {*FIXED}):
            yield "without", (name,)

    def best_of(self, forms: list[Form], best: Trial, default: Trial) -> Trial:
        """The fastest of these that is right, or `best` where none is faster."""
        with concurrent.futures.ThreadPoolExecutor(self.jobs, thread_name_prefix="torchtpu-tune") as pool:
            try:
                tried = list(pool.map(self.attempt, forms))
            except BaseException:  # the user has had enough, and the pool waits for its threads
                self.stopped.set()
                raise
        faster = [
            trial
            for trial in tried
            if trial is not None
            and trial.cycles < best.cycles * (1 - LEAST)
            and trial.unpriced <= default.unpriced
        ]
        for trial in sorted(faster, key=lambda trial: trial.cycles):
            if self.numbers.are_kept(default.form, trial.form):
                said = f"{self.kind} for {self.topology}: {_difference(best.form, trial.form)}"
                self.tell(f"{said}, {trial.cycles / 1e6:.2f} Mcycles", time.monotonic() - self.start)
                return trial
        return best

    def attempt(self, form: Form) -> Trial | None:
        """None for one that does not compile, does not fit, or takes too long."""
        if self.over():
            return None
        try:
            return self.trial(form, max(self.until - time.monotonic(), 1.0), self.over)
        except TorchTPUError:
            return None

    def trial(self, form: Form, time_limit: float, cancelled: Callable[[], bool]) -> Trial:
        prepared = self.program.for_tpu(self.topology, self.options.compile_json(form=form))
        bytecode = prepared.as_bytecode()
        key = bytecode + json.dumps(json.loads(prepared.options)["xla_options"]).encode()
        if known := self.tried.get(key):
            return known
        if key in self.tried:
            raise TorchTPUError("this form was tried, and does not compile")
        self.tried[key] = None
        build = topologies.build(
            bytecode,
            self.topology,
            name=self.kind,
            options_json=prepared.options,
            replicas=self.program.devices,
            time_limit=time_limit,
            cancelled=cancelled,
        )
        judged = json.loads(judge(build.hlo, self.topology, self.program.devices))
        cost, replay = judged["cost"], judged["replay"] or {}
        if cost is None:
            raise TorchTPUError(f"the figures of {self.topology} are not known, by which forms are compared")
        cycles = cost["estimated"] + cost["floor"] + replay.get("exposed", 0.0)
        unpriced = frozenset(
            re.sub(r"[.\d]+$", "", name) for name in (*cost["unknown"], *cost["unknown_trips"])
        )
        self.tried[key] = Trial(form, prepared, build, cycles, unpriced)
        return self.tried[key]  # type: ignore[return-value]

    def over(self) -> bool:
        return self.stopped.is_set() or time.monotonic() > self.until or self.cancelled()


class _Numbers:
    """What a program gives in each form, on the CPU, for inputs drawn at random."""

    def __init__(self, program: Program, options: Options) -> None:
        self.program, self.options = program, options
        self.can_be_checked = program.devices <= MOST_RANKS
        self.graph = ""
        self.expected: list[torch.Tensor] = []

    def are_kept(self, default: Form, form: Form) -> bool:
        """Whether two forms give the same, to the tolerances of torch.testing for the largest of each result."""
        graphs = [self.graph_of(one) for one in (default, form)]
        if graphs[0] == graphs[1]:
            return True
        try:
            if self.graph != graphs[0]:
                self.graph, self.expected = graphs[0], self.results(default)
            found = self.results(form)
        except TorchTPUError:
            return False
        return all(map(_close, found, self.expected))

    def graph_of(self, form: Form) -> str:
        return self.program.for_tpu("", self.options.compile_json(form=form)).graph_text()

    def results(self, form: Form) -> list[torch.Tensor]:
        # Without the pass that rounds to bfloat16 what a TPU rounds there and the CPU does not.
        form = {**form, "without": sorted({*form["without"], "narrow_dots"})}
        settings = self.options.compile_json(form=form, tpu_passes=True, xla_options={})
        ranks = [list(_drawn(self.program, rank)) for rank in range(self.program.devices)]
        if self.program.devices > 1:
            executable = self.program.compile_spmd(plugins.client("cpu", cpu_devices=len(ranks)), settings)
            return [result for results in executable.call_spmd(ranks, 0) for result in results]
        return list(self.program.compile(plugins.client("cpu", None), settings)(ranks[0], 0))


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    rtol, atol = TOLERANCES.get(expected.dtype, (0.0, 0.0))
    if not rtol or not expected.numel():
        return bool(torch.equal(found, expected))
    wide = torch.complex128 if expected.is_complex() else torch.float64
    found, expected = found.to(wide), expected.to(wide)
    if not bool(torch.isfinite(expected).all()):
        return bool(torch.equal(found.nan_to_num(), expected.nan_to_num()))
    return bool((found - expected).abs().max() <= atol + rtol * expected.abs().max())


def _drawn(program: Program, rank: int) -> Iterator[torch.Tensor]:
    """Numbers for the inputs: such that a matrix keeps the size of what it multiplies, and indices are in range."""
    generator = torch.Generator().manual_seed(rank)
    for name, shape, order in program.inputs():
        dtype, memory = getattr(torch, name), [shape[i] for i in order]
        if not dtype.is_floating_point and not dtype.is_complex:
            drawn = torch.randint(0, 2, memory, generator=generator)
        elif len(shape) < 2:
            drawn = 1 + torch.randn(memory, generator=generator) / 10
        else:
            drawn = torch.randn(memory, generator=generator) / shape[-1] ** 0.5
        yield drawn.to(dtype).permute([order.index(i) for i in range(len(order))])


def _others(form: Form, name: str, values: Sequence[Any]) -> Iterator[Form]:
    for value in values:
        other = {**form, name: sorted({*form[name]} ^ {value}) if name == "without" else value}
        if other != form:
            yield other


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """What a form has otherwise."""
    return ", ".join(f"{name} {after[name]}" for name in after if after[name] != before[name])
