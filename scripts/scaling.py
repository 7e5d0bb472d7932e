"""Training of Llama-shaped models over 4 to 9,216 chips, on paper: the tables of docs/scaling.md.

    python scripts/scaling.py graphs                 # our compiler's work at 8, 256 and 8,192 ranks
    python scripts/scaling.py points --keep DIR      # what libtpu makes of a layer, beside the prediction
    python scripts/scaling.py predict --keep DIR    # steps of an 8B and a 70B model

Nothing is executed and no weight allocated; each program is traced in a process of its own. `roofline.py` is the model."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts import judging, roofline
from scripts.roofline import Chip, Time, Work

TOKENS = 2048
"""Of a sequence."""
VOCABULARY = 128256


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of a model, as Llama 3 has them."""

    width: int
    heads: int
    kv_heads: int
    hidden: int
    layers: int

    @property
    def layer_parameters(self) -> int:
        kv = self.kv_heads * self.width // self.heads
        return self.width * (2 * self.width + 2 * kv + 3 * self.hidden + 2)

    @property
    def parameters(self) -> int:
        return self.layers * self.layer_parameters + (2 * VOCABULARY + 1) * self.width


MODELS = {"8b": Shape(4096, 32, 8, 14336, 32), "70b": Shape(8192, 64, 8, 28672, 80)}
EVEN = Shape(8192, 64, 64, 24576, 32)
"""Each matrix has a multiple of 8,192 rows, so that no rank of as many has padding."""


@dataclasses.dataclass(frozen=True)
class Program:
    """Of one rank: `layer`, `again` (a layer that is computed again in the backward) or `ends` (embedding, head, loss)."""

    model: str
    part: str
    data: int
    """Ranks over which weights are sharded."""
    tensor: int
    """Ranks that share a layer's features; of `ends` always 1."""
    batch: float
    """Sequences of a group of `tensor` ranks; of `ends`, of one rank."""

    @property
    def name(self) -> str:
        return f"{self.model}-{self.part}-dp{self.data}-tp{self.tensor}-b{self.batch:g}"


def built(program: Program) -> tuple[Any, tuple[Any, ...]]:
    """A module and its arguments, which hold nothing, under a process group."""
    import torch
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor import parallel as tp
    from torch.nn import functional as F
    from torch.utils.checkpoint import checkpoint

    from scripts.bench_models import LlamaLayer
    from torchtpu_dynamo.distributed import fully_shard

    class Again(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> Any:
            return checkpoint(self.layer, x, use_reentrant=False)

    class Ends(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.embed, self.norm = nn.Embedding(VOCABULARY, width), nn.RMSNorm(width, eps=1e-5)
            self.head = nn.Linear(width, VOCABULARY, bias=False)

        def forward(self, ids: torch.Tensor, y: torch.Tensor) -> Any:
            return self.embed(ids), F.cross_entropy(self.head(self.norm(y)), ids)

    shape = MODELS[program.model]
    empty = functools.partial(torch.empty, device="meta")
    mesh = init_device_mesh("cpu", (program.data, program.tensor), mesh_dim_names=("data", "tensor"))
    if program.part == "ends":
        with torch.device("meta"):
            ends = Ends(shape.width).to(torch.bfloat16)
        tokens = int(TOKENS * program.batch)
        y = empty(tokens, shape.width, dtype=torch.bfloat16, requires_grad=True)
        return fully_shard(ends, mesh["data"]), (empty(tokens, dtype=torch.int64), y)
    with torch.device("meta"):
        layer: nn.Module = LlamaLayer(shape.width, shape.heads, shape.kv_heads, shape.hidden)
        layer = layer.to(torch.bfloat16)
    if program.tensor > 1:
        plan: dict[str, Any] = {
            n: tp.ColwiseParallel(input_layouts=Shard(1)) for n in ("q", "k", "v", "gate", "up")
        }
        plan |= {n: tp.RowwiseParallel(output_layouts=Shard(1)) for n in ("o", "down")}
        plan |= {n: tp.SequenceParallel() for n in ("norm1", "norm2")}
        tp.parallelize_module(layer, mesh["tensor"], plan, src_data_rank=None)
    layer = fully_shard(layer, mesh["data"])
    x = empty(
        int(program.batch), TOKENS // program.tensor, shape.width, dtype=torch.bfloat16, requires_grad=True
    )
    return Again(layer) if program.part == "again" else layer, (x,)


def traced(program: Program, topology: str = "", output: str | None = None) -> Any:
    """An artifact of what rank 0 traces; all ranks' programs cost the same."""
    import torchtpu_dynamo
    from torchtpu_dynamo import spmd

    with spmd.as_rank(0, program.data * program.tensor):
        module, args = built(program)
        return torchtpu_dynamo.aot_compile(
            module, args, train=True, weights=False, topology=topology or (), output=output, jobs=1
        )


@dataclasses.dataclass(frozen=True)
class Facts:
    """Of a layer, or of the ends: both programs, and the bytes that they need."""

    forward: list[Work]
    backward: list[Work]
    saved: int
    """What the forward keeps for the backward."""
    working: int
    """What the greater of both needs beside its arguments, and the forward beside what it keeps."""

    def over(self, devices: int, now: int) -> Facts:
        forward, backward = (roofline.over(steps, devices, now) for steps in (self.forward, self.backward))
        return dataclasses.replace(self, forward=forward, backward=backward)

    @property
    def shards(self) -> float:
        """Parameters of one rank, padding included; bfloat16."""
        gathers = [w.transfer for w in self.forward if w.transfer is not None and w.transfer.early]
        return sum(t.bytes / t.devices for t in gathers) / 2

    @property
    def operations(self) -> int:
        return sum(w.matrix for w in (*self.forward, *self.backward))


def facts(artifact: Any, rings: bool) -> Facts:
    """Of an artifact without topologies or with; with rings of gradients or with the sums as they are."""
    from torchtpu_dynamo._torchtpu import optimize

    def behind(ir: str) -> str:
        passes = [report["pass"] for report in json.loads(optimize(ir, [], True)[1])]
        without = "early_sums" if rings else "ring_gradients"
        return optimize(ir, [name for name in passes if name != without], False)[0]

    analysis = {k: roofline.analysed(behind(artifact.ir(k))) for k in ("forward", "backward")}
    kept = [spec for spec in artifact.label["programs"]["backward"]["saved"] if spec is not None]
    saved = sum(WIDTHS[spec["dtype"]] * math.prod(spec["shape"]) for spec in kept)
    peaks = {k: a["memory"]["fused"]["bytes"] - a["memory"]["arguments"] for k, a in analysis.items()}
    working = max(peaks["forward"] - saved, peaks["backward"])
    return Facts(roofline.works(analysis["forward"]), roofline.works(analysis["backward"]), saved, working)


WIDTHS = {"bool": 1, "bfloat16": 2, "float32": 4, "int32": 4, "int64": 8}


def in_child(work: str, *args: Any) -> Any:
    """`work` of this script in a process of its own. Raises RuntimeError with what it said last."""
    found, error = judging.child(__file__, work, *args)
    if error:
        raise RuntimeError(error)
    return found


def kept(program: Program, folder: Path, topology: str = "") -> Path:
    """The artifact of a program in a folder, made where it is not there yet."""
    name = "-".join([program.name, *([topology.replace(":", "-")] if topology else [])])
    path = folder / f"{name}.ttpu"
    if not path.exists():
        in_child("trace", dataclasses.asdict(program), topology, str(path))
    return path


def chip(name: str) -> Chip:
    from torchtpu_dynamo._torchtpu import judge

    row = json.loads(judge(b"", f"{name}:", 1))["chip"]  # of a module without anything
    cores, beside, scatters, attained = LIBTPU[name]
    figures = {key: row[key] for key in ("name", "clock", "hbm", "hbm_bandwidth", "peak", "ring")}
    return Chip(**figures, cores=cores, beside=frozenset(beside), scatters=scatters, attained=attained)


GATHERS, SUMS, SENDS = "all_gather", "reduce_scatter", "collective_permute"
LIBTPU: dict[str, tuple[int, tuple[str, ...], bool, float]] = {
    "v5e": (1, (GATHERS, SENDS), False, 0.86),
    "v6e": (1, (GATHERS, SUMS, SENDS), True, 0.82),
    "v5p": (2, (GATHERS, SUMS, SENDS), True, 0.70),
    "tpu7x": (1, (GATHERS, SUMS, SENDS), True, 0.56),
}
"""By chip: TensorCores of a device, what runs beside the core, whether sums are scattered, and the attained share that
`points --fit` finds. The middle two are read off what libtpu makes of a layer."""

POINTS = (
    (Program("8b", "layer", 4, 1, 1), "v5e:2x2"),
    (Program("8b", "layer", 16, 1, 1), "v5e:4x4"),
    (Program("8b", "layer", 16, 1, 1), "v6e:4x4"),
    (Program("8b", "layer", 16, 1, 1), "v5p:2x2x4"),
    (Program("8b", "layer", 64, 1, 1), "v5p:4x4x4"),
    (Program("8b", "layer", 8, 1, 1), "tpu7x:2x2x1"),
    (Program("8b", "layer", 16, 1, 1), "tpu7x:2x2x2"),
    (Program("70b", "layer", 4, 4, 1), "tpu7x:2x2x2"),
)
FITTED = 16
"""Ranks of the programs, of one kind of parallelism, to which the attained shares are fitted; the others check them."""


def points(folder: Path, fit: bool) -> None:
    """Prints a layer's programs as libtpu makes them and as predicted, milliseconds and MB."""
    head = [
        "program",
        "topology",
        "pass",
        "libtpu, ms",
        "predicted, ms",
        "error",
        "libtpu, MB",
        "predicted, MB",
        "error",
    ]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)
    errors: dict[bool, list[float]] = {False: [], True: []}
    found: dict[str, list[tuple[list[Work], float]]] = {}
    for program, topology in POINTS:
        try:
            path = kept(program, folder, topology)
        except RuntimeError as e:
            print(f"| {topology} | {e} |", flush=True)
            continue
        for kind, judged, memory, predicted, steps in compiled(path, topology):
            on = chip(topology.partition(":")[0])
            time = roofline.replay(steps, on)
            real = judged["compute"] + judged["exposed"]
            error, off = time.total / real - 1, predicted / memory - 1
            fitted = (program.part, program.data, program.tensor) == ("layer", FITTED, 1)
            errors[fitted].append(error)
            if fitted:
                found.setdefault(on.name, []).append((steps, judged["compute"]))
            row: list[Any] = [program.name, topology, kind, shown(judged["compute"], judged["exposed"])]
            row += [shown(time.compute, time.exposed), f"{error:+.0%}", f"{memory / 1e6:.0f}"]
            print(
                "| " + " | ".join(map(str, row)) + f" | {predicted / 1e6:.0f} | {off:+.0%} |",
                flush=True,
            )
    for fitted, of in errors.items():
        mean, most = sum(map(abs, of)) / len(of), max(of, key=abs)
        print(
            f"\n{'fitted' if fitted else 'not fitted'}: mean error of the time {mean:.1%}, largest {most:+.1%}"
        )
    if fit:
        for name, programs in found.items():
            print(f"{name}: attained {attained(chip(name), programs):.2f}")


def compiled(path: Path, topology: str) -> list[tuple[str, dict[str, float], int, int, list[Work]]]:
    """Of each program: seconds by libtpu's schedule, its memory, ours, and the steps of our graph."""
    from torchtpu_dynamo import Artifact

    artifact = Artifact(path)
    ours, found = facts(artifact, not LIBTPU[topology.partition(":")[0]][2]), []
    for kind in artifact.kinds:
        judged, build = artifact.judged(kind, topology), artifact.build(kind, topology)
        seconds = {k: judged["replay"][k] / judged["chip"]["clock"] for k in ("compute", "exposed")}
        found.append((kind, seconds, build["memory"]["peak"], build["predicted"], getattr(ours, kind)))
    return found


def attained(on: Chip, programs: Sequence[tuple[list[Work], float]]) -> float:
    """The share of the peaks with which compute is nearest to libtpu's, as a ratio."""

    def off(share: float) -> float:
        at = dataclasses.replace(on, attained=share)
        return sum(math.log(roofline.replay(steps, at).compute / real) ** 2 for steps, real in programs)

    return min((n / 100 for n in range(10, 101)), key=off)


def shown(compute: float, exposed: float) -> str:
    return f"{compute * 1e3:.2f} + {exposed * 1e3:.2f}"


TOPOLOGIES = {
    "v5e": ("2x2", "4x4", "8x8", "16x16"),
    "v6e": ("2x2", "4x4", "8x8", "16x16"),
    "v5p": ("2x2x1", "2x2x4", "4x4x4", "4x8x8", "8x8x16", "16x16x16", "16x20x28"),
    "tpu7x": ("2x2x1", "2x2x4", "4x4x4", "4x8x8", "8x8x16", "16x16x16", "16x24x24"),
}
CANDIDATES = ((1, 1), (1, 4), (4, 4), (8, 4))
"""Ranks of features, and sequences of a group of them."""

TRACED = 16
"""Ranks of data as which a program is traced that stands for more: it has the same operations. Up to 8 have rings, and
programs of their own where there is no other parallelism."""

BUDGET = 20_000_000
"""Tokens of a step, at most."""

STATE = 16
"""Bytes of a parameter: it and its gradient in bfloat16, in float32 a copy and two moments."""

WAITING = 2 * (336 << 20)
"""Bytes of weights that are gathered ahead, and of gradients that wait to be sent (compiler/driver/src/tpu/mod.rs)."""

UPDATE = 28
"""Bytes that an update of AdamW moves for a parameter."""


@dataclasses.dataclass(frozen=True)
class Step:
    """Of one training step on one device, predicted."""

    data: int
    tensor: int
    batch: int
    again: bool
    time: Time
    ring: Time
    """With a collective once around all devices of its group."""
    update: float
    memory: float
    tokens: float
    """Of one device."""
    share: float
    """Of the matrix units' peak, by the operations that the model needs."""

    @property
    def seconds(self) -> float:
        return self.time.total + self.update


def step(
    model: str, on: Chip, dims: tuple[int, ...], tensor: int, batch: int, again: bool, folder: Path
) -> Step | None:
    """None where a mesh has no such ranks."""
    devices = math.prod(dims)
    data = devices // tensor
    if devices % tensor or data < 2:
        return None

    @functools.cache
    def of(part: str, tensor: int, batch: float, data: int) -> Facts:
        traced = data if data <= 8 and tensor == 1 and part != "ends" else TRACED
        path = kept(Program(model, part, traced, tensor, batch), folder)
        return load(path, not on.scatters).over(traced, data)

    shape = MODELS[model]
    plain = of("layer", tensor, batch, data)
    layer = of("again", tensor, batch, data) if again else plain
    ends = of("ends", 1, batch / tensor, devices)
    whole = roofline.chained(
        [*[layer.forward] * shape.layers, ends.forward, ends.backward, *[layer.backward] * shape.layers]
    )
    hops = {data: hops_of(dims, tensor), devices: hops_of(dims, 1)}
    hops = {group: steps for group, steps in hops.items() if group != tensor}
    time, ring = roofline.replay(whole, on, hops), roofline.replay(whole, on)
    parameters = shape.layers * layer.shards + ends.shards
    memory = STATE * parameters + shape.layers * layer.saved + WAITING
    memory += max(layer.working, ends.saved + ends.working)
    needed = shape.layers * plain.operations + ends.operations
    seconds = time.total + UPDATE * parameters / on.hbm_bandwidth
    tokens = TOKENS * batch / tensor
    return Step(
        data,
        tensor,
        batch,
        again,
        time,
        ring,
        seconds - time.total,
        memory,
        tokens,
        needed / seconds / on.peak,
    )


@functools.cache
def load(path: Path, rings: bool) -> Facts:
    from torchtpu_dynamo import Artifact

    return facts(Artifact(path), rings)


def hops_of(dims: tuple[int, ...], tensor: int) -> int:
    """Steps of a collective along one axis after the other, of a torus whose last axes `tensor` ranks share."""
    left, total = tensor, 0
    for size in reversed(dims):
        mine = math.gcd(size, left)
        left //= mine
        total += size // mine - 1
    return total


def predict(folder: Path, models: list[str], chips: list[str]) -> None:
    """Prints, for each number of chips, what takes the least time a token of what fits."""
    head = ["model", "chip", "chips", "data x tensor", "sequences", "again", "step, ms", "exposed, ms"]
    head += ["on one ring, ms", "update, ms", "memory, GB", "of the peak", "tokens/s"]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)
    for model in models:
        for name in chips:
            on = chip(name)
            for size in TOPOLOGIES[name]:
                axes = tuple(map(int, size.split("x")))
                dims = (*axes, 2) if name == "tpu7x" else axes
                tried = [
                    step(model, on, dims, tensor, batch, again, folder)
                    for tensor, batch in CANDIDATES
                    for again in (False, True)
                    if TOKENS * batch * math.prod(dims) // tensor <= BUDGET
                ]
                found = [s for s in tried if s is not None]
                fits = [s for s in found if s.memory <= on.hbm]
                start = f"| {model} | {name} | {math.prod(axes):,} | "
                if not fits:
                    least = min(s.memory for s in found)
                    print(start + f"does not fit: {least / 1e9:.0f} GB of {on.hbm / 1e9:.0f} |", flush=True)
                    continue
                best = min(fits, key=lambda s: s.seconds / s.tokens)
                row = [f"{best.data:,} x {best.tensor}", best.batch, "yes" if best.again else "no"]
                row += [f"{best.seconds * 1e3:,.0f}", f"{best.time.exposed * 1e3:,.0f}"]
                row += [f"{best.ring.exposed * 1e3:,.0f}", f"{best.update * 1e3:.1f}"]
                row += [f"{best.memory / 1e9:.1f}", f"{best.share:.0%}"]
                row += [f"{best.tokens * math.prod(dims) / best.seconds:,.0f}"]
                print(start + " | ".join(map(str, row)) + " |", flush=True)


WORLDS = {
    8: ("v5p:2x2x2", "tpu7x:2x2x1"),
    256: ("v5p:4x8x8", "tpu7x:4x4x8"),
    8192: ("v5p:16x16x32", "tpu7x:16x16x16"),
}


ROUNDS = 9
"""Of all worlds, one after the other: what else the machine does is the same for each."""


def graphs(layers: int, judged: int, worlds: list[int], shape: str, folder: Path) -> None:
    """Prints nodes and seconds by world size; libtpu's seconds are of a program of `judged` layers."""
    head = ["ranks", "program", "IR", "for TPUs", "StableHLO", "ours", "import", "lower", "passes"]
    head += ["for TPUs, emit", "torch"]
    for ranks in worlds:
        in_child("payloads", ranks, layers, shape, str(folder))  # each world has a process group of its own
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)
    for row in in_child("ours", worlds, layers, shape, str(folder)):
        print("| " + " | ".join(map(str, row)) + " |", flush=True)
    if judged:
        print("\n| ranks | program | topology | libtpu |\n|---|---|---|---|", flush=True)
        for ranks in worlds:
            for row in in_child("theirs", ranks, judged, shape, str(folder), WORLDS[ranks]):
                print("| " + " | ".join(map(str, row)) + " |", flush=True)


def stack(layers: int, shape: Shape) -> Callable[[], tuple[Any, ...]]:
    """Layers that are fully sharded over all ranks, and 256 tokens."""

    def build() -> tuple[Any, ...]:
        import torch
        from torch import nn

        from scripts.bench_models import LlamaLayer
        from torchtpu_dynamo.distributed import fully_shard

        with torch.device("meta"):
            made = (LlamaLayer(shape.width, shape.heads, shape.kv_heads, shape.hidden) for _ in range(layers))
            module = nn.Sequential(*made).to(torch.bfloat16)
            x = torch.empty(1, 256, shape.width, dtype=torch.bfloat16, requires_grad=True)
        return fully_shard(module), x

    return build


def payloads(ranks: int, layers: int, shape: str, folder: Path) -> tuple[float, dict[str, str]]:
    """What torch takes to trace it as rank 0, in seconds, and the payloads; kept in a folder."""
    from torchtpu_dynamo import spmd
    from torchtpu_dynamo.ahead.capture import captured
    from torchtpu_dynamo.options import parse_options

    path = folder / f"{shape}-{layers}-layers-{ranks}.json"
    if not path.exists():
        start = time.perf_counter()
        with spmd.as_rank(0, ranks):
            fn, *args = stack(layers, EVEN if shape == "even" else MODELS[shape])()
            capture = captured(fn, args, {}, True, parse_options(None))
        seconds = time.perf_counter() - start
        texts = {kind: c.graph.source_payload({})[0] for kind, c in capture.graphs.items()}
        path.write_text(json.dumps([seconds, texts]))
    seconds, texts = json.loads(path.read_text())
    return seconds, texts


@dataclasses.dataclass(frozen=True)
class Compiled:
    """By our compiler, for TPUs; seconds."""

    ours: float
    emitted: float
    program: Any
    prepared: Any
    bytecode: bytes

    @staticmethod
    def of(text: str, topology: str) -> Compiled:
        from torchtpu_dynamo._torchtpu import Program, Source

        from torchtpu_dynamo.options import parse_options

        options = parse_options(None)
        start = time.perf_counter()
        program = Program.of_ranks([Source(text)], options.program_json(None), False)
        made = time.perf_counter()
        prepared = program.for_tpu(topology, options.compile_json())
        bytecode = prepared.as_bytecode()
        end = time.perf_counter()
        return Compiled(end - start, end - made, program, prepared, bytecode)


def ours(worlds: list[int], layers: int, shape: str, folder: str) -> list[list[Any]]:
    """The rows of `graphs`: of each program the quickest of several rounds."""
    traced = {ranks: payloads(ranks, layers, shape, Path(folder)) for ranks in worlds}
    rows: list[list[Any]] = []
    for kind in traced[worlds[0]][1]:
        best: dict[int, Compiled] = {}
        for _ in range(ROUNDS):
            for ranks, (_, texts) in traced.items():
                found = Compiled.of(texts[kind], WORLDS[ranks][-1])
                if ranks not in best or found.ours < best[ranks].ours:
                    best[ranks] = found
        for ranks, found in best.items():
            stages = found.program.stage_times()
            graphs = (found.program.graph_text("after"), found.prepared.graph_text())
            nodes = [len(list(roofline.statements(text))) for text in graphs]
            row = [f"{ranks:,}", kind, *nodes, f"{len(found.bytecode):,} B", f"{found.ours * 1e3:.0f} ms"]
            row += [f"{stages.get(name, 0.0) * 1e3:.0f} ms" for name in ("import", "lower", "passes")]
            rows.append([*row, f"{found.emitted * 1e3:.0f} ms", f"{traced[ranks][0]:.0f} s"])
    return rows


def theirs(ranks: int, layers: int, shape: str, folder: str, wanted: list[str]) -> list[list[Any]]:
    """libtpu's seconds for each topology."""
    from torchtpu_dynamo.ahead import topologies

    rows: list[list[Any]] = []
    for kind, text in payloads(ranks, layers, shape, Path(folder))[1].items():
        for topology in wanted:
            found = Compiled.of(text, topology)
            start = time.perf_counter()
            topologies.build(
                found.bytecode, topology, name=kind, options_json=found.prepared.options, replicas=ranks
            )
            rows.append([f"{ranks:,}", kind, topology, f"{time.perf_counter() - start:.0f} s"])
    return rows


def one(work: str, *args: Any) -> Any:
    if work == "trace":
        program, topology, path = args
        part = Path(f"{path}.part")
        traced(Program(**program), topology, str(part))
        part.rename(path)
        return None
    if work == "payloads":
        ranks, layers, shape, folder = args
        payloads(ranks, layers, shape, Path(folder))
        return None
    return {"ours": ours, "theirs": theirs}[work](*args)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("graphs", help="our work by world size")
    made.add_argument("--layers", type=int, default=32)
    made.add_argument("--libtpu", type=int, default=1, metavar="LAYERS", help="for libtpu; 0 leaves it out")
    made.add_argument("--ranks", type=int, nargs="+", default=list(WORLDS), choices=list(WORLDS))
    made.add_argument("--shape", default="even", choices=["even", *MODELS])
    held = commands.add_parser("points", help="a layer by libtpu and by prediction")
    held.add_argument("--fit", action="store_true", help="also the attained shares that fit best")
    paper = commands.add_parser("predict", help="training steps")
    paper.add_argument("--model", nargs="+", default=list(MODELS), choices=list(MODELS))
    paper.add_argument("--chip", nargs="+", default=list(TOPOLOGIES), choices=list(TOPOLOGIES))
    for command in (made, held, paper):
        command.add_argument("--keep", type=Path, help="a folder for what is traced; what it has is taken")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        if args.command == "graphs":
            graphs(args.layers, args.libtpu, args.ranks, args.shape, folder)
        elif args.command == "points":
            points(folder, args.fit)
        else:
            predict(folder, args.model, args.chip)


if __name__ == "__main__":
    judging.run(main, one)
