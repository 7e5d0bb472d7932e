"""A training step on a TPU, predicted of our IR behind the passes for TPUs. docs/scaling.md has the model.

Seconds, bytes and operations of one device throughout. Nothing here knows of torch."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

STEP = 1e-6
"""Seconds from one device to the next, as in `compiler/hlo/src/replay.rs`."""

STAYS = 32 << 20
"""Bytes of the largest temporary that is taken to stay in vector memory: the limit of `tile_batch`."""

SLOW = 8
"""Instructions of a vector unit for a division or a transcendental function."""

LANES = 8 * 128 * 4
"""Instructions that the vector unit of a TensorCore starts in a cycle."""

AHEAD = 128 << 20
"""Bytes of gathered weights that wait for their turn before no more gatherings are begun."""

COLLECTIVES = ("all_gather", "all_reduce", "all_to_all", "collective_permute", "reduce_scatter")

# fmt: off
SLOW_OPS = frozenset((
    "atan2", "cbrt", "cosine", "divide", "erf", "exponential", "exponential_minus_one", "log", "log_plus_one", "logistic",
    "power", "remainder", "rsqrt", "sine", "sqrt", "tan", "tanh",
))
# fmt: on

FREE_OPS = frozenset(("bitcast_convert", "constant", "optimization_barrier", "parameter", "reshape"))

_STATEMENT = re.compile(r"^  (%\d[^=]*) = ([a-z_0-9]+)")
_GROUPS = re.compile(r"groups=\[([\d,]+)\] along \[([\d,]+)\]")
_BODY = re.compile(r"^  }, body=(graph .*)$")


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device, as `compiler/hlo/src/chip.rs` has it, and how libtpu uses it."""

    name: str
    clock: float
    hbm: int
    hbm_bandwidth: float
    peak: float
    ring: float
    cores: int
    """TensorCores of a device."""
    beside: frozenset[str]
    """Collectives that libtpu runs beside the core. It waits for the others."""
    scatters: bool
    """Whether a reduce_scatter is one: else libtpu makes an all_reduce of it, which moves twice as much."""
    attained: float
    """The share of both units' peaks that a layer attains by libtpu's estimates."""

    @property
    def vector(self) -> float:
        """Instructions a second, counted by lane."""
        return self.cores * LANES * self.clock


@dataclasses.dataclass(frozen=True)
class Transfer:
    kind: str
    bytes: int
    """Of the whole tensor."""
    rows: int
    """Of it, along the dimension that is shared out."""
    devices: int
    early: bool
    """Of what is there before the program starts."""

    def over(self, devices: int) -> Transfer:
        """The same tensor over another number of devices, each with equally many rows."""
        rows = -(-self.rows // devices) * devices
        return dataclasses.replace(self, bytes=self.bytes // self.rows * rows, rows=rows, devices=devices)


@dataclasses.dataclass(frozen=True)
class Work:
    """One step of a schedule: a fusion, or a collective."""

    matrix: int
    vector: int
    bytes: int
    reads: tuple[int, ...]
    """Steps whose results it takes."""
    transfer: Transfer | None = None

    def seconds(self, chip: Chip) -> float:
        units = max(self.matrix / chip.peak, self.vector / chip.vector) / chip.attained
        return max(units, self.bytes / chip.hbm_bandwidth)


@dataclasses.dataclass(frozen=True)
class Time:
    compute: float
    exposed: float
    """What the core waits for the links."""
    links: float
    """What all transfers take."""

    @property
    def total(self) -> float:
        return self.compute + self.exposed


def dimensions(type_: str) -> list[int]:
    return [int(d) for d in type_.partition("[")[2].rstrip("]").split(",") if d]


def size(types: str) -> int:
    """Bytes of `bf16[4,2] f32[]`."""
    total = 0
    for type_ in types.split():
        name = type_.partition("[")[0]
        bits = re.match(r"[a-z]+(\d*)", name)
        width = max(1, int(bits[1]) // 8) if bits and bits[1] else 1
        total += width * math.prod(dimensions(type_))
    return total


def statements(ir: str) -> Iterator[list[str]]:
    """The statements of a graph in text, each the lines that it has."""
    lines: list[str] = []
    for line in ir.splitlines():
        if _STATEMENT.match(line) or re.match(r"^  (return|#)", line):
            if lines:
                yield lines
            lines = [line] if _STATEMENT.match(line) else []
        elif lines:
            lines.append(line)


def analysed(ir: str) -> dict[str, Any]:
    """What `Artifact.analysis` gives, of a graph in text. Its nodes have also `matrix`, the operations for a matrix unit,
    `slow`, those that take a vector unit several instructions, `returned`, and of a collective `devices`, the size of a
    group. A loop has what is inside of it."""
    from torchtpu_dynamo._torchtpu import analyse

    analysis: dict[str, Any] = json.loads(analyse(ir))
    results = {v for line in ir.splitlines() if line.startswith("  return ") for v in line[9:].split(", ")}
    for node, lines in zip(analysis["nodes"], statements(ir), strict=True):
        op, flops = node["op"], node["flops"]
        found = _STATEMENT.match(lines[0])
        assert found is not None and found[2] == op, (lines[0], op)
        node["returned"] = not results.isdisjoint(found[1].split(", "))
        node["matrix"] = flops if op in ("dot_general", "convolution") else 0
        node["slow"] = flops if op in SLOW_OPS else 0
        if op == "while":
            at = next(i for i, line in enumerate(lines) if _BODY.match(line))
            first = re.sub(r"^  }, body=", "", lines[at])
            body = analysed("\n".join([first, *(line[2:] for line in lines[at + 1 : -1]), "}"]))
            for part in ("matrix", "slow"):
                inside = sum(n[part] for n in body["nodes"])
                node[part] = round(flops * inside / body["flops"]) if body["flops"] else 0
        elif groups := _GROUPS.search(lines[0]):
            sizes = [int(n) for n in groups[1].split(",")]
            node["devices"] = math.prod(sizes[int(d)] for d in groups[2].split(","))
    return analysis


def works(analysis: Mapping[str, Any]) -> list[Work]:
    """The steps of a program that was `analysed`, in order: each a group of nodes that are fused."""
    nodes = analysis["nodes"]
    members: dict[int, list[int]] = {}
    users: dict[int, set[int]] = {}
    for i, node in enumerate(nodes):
        if node.get("group") is not None:
            members.setdefault(node["group"], []).append(i)
        for operand in node["operands"]:
            users.setdefault(operand, set()).add(i)
    step = {group: at for at, group in enumerate(sorted(members))}

    def in_memory(i: int) -> bool:
        """Whether a value is in HBM; a constant is a part of what reads it."""
        node = nodes[i]
        if node["op"] in ("parameter", "constant"):
            return bool(node["op"] == "parameter")
        return node["returned"] or size(node["type"]) > STAYS

    def of(group: int) -> Work:
        inside = members[group]
        outside = {o for i in inside for o in nodes[i]["operands"] if nodes[o].get("group") != group}
        reads = tuple(sorted({step[nodes[o]["group"]] for o in outside if nodes[o].get("group") is not None}))
        if nodes[inside[0]]["op"] in COLLECTIVES:
            return Work(0, 0, 0, reads, transfer(nodes, inside[0]))
        moved = 0
        if any(nodes[i]["op"] not in FREE_OPS for i in inside):
            for o in filter(in_memory, outside):
                by = [nodes[u] for u in users[o] & set(inside)]
                whole = size(nodes[o]["type"])
                # Of what is cut, as much is read as is written.
                cut = all(u["op"] in ("slice", "dynamic_slice", "gather") for u in by)
                moved += min(whole, sum(size(u["type"]) for u in by)) if cut else whole
            for i in filter(in_memory, inside):
                if nodes[i]["returned"] or users.get(i, set()) - set(inside):
                    moved += size(nodes[i]["type"])
        matrix, slow = (sum(nodes[i][part] for i in inside) for part in ("matrix", "slow"))
        plain = sum(nodes[i]["flops"] for i in inside) - matrix - slow
        return Work(matrix, plain + SLOW * slow, moved, reads)

    return [of(group) for group in sorted(members)]


def transfer(nodes: Sequence[Mapping[str, Any]], at: int) -> Transfer:
    """What a collective moves."""
    node = nodes[at]
    operand = node["operands"][0]
    kind, devices = node["op"], node.get("devices", 2)
    whole = nodes[operand if kind == "reduce_scatter" else at]["type"]

    def is_there(i: int) -> bool:
        """Whether a value is an argument, or several, in another form."""
        if nodes[i]["op"] in ("convert", "reshape", "transpose", "concatenate"):
            return all(map(is_there, nodes[i]["operands"]))
        return bool(nodes[i]["op"] == "parameter")

    rows = (dimensions(whole) or [1])[0]
    return Transfer(kind, size(whole), rows, devices, is_there(operand))


def over(steps: Sequence[Work], devices: int, now: int) -> list[Work]:
    """A program whose weights are shared out over `devices`, as it is over `now`: shards are smaller, the rest is equal."""
    return [
        dataclasses.replace(work, transfer=work.transfer.over(now))
        if work.transfer is not None and work.transfer.devices == devices
        else work
        for work in steps
    ]


def link_seconds(chip: Chip, transfer: Transfer, hops: int | None = None) -> float:
    """As `compiler/hlo/src/replay.rs` prices it, around one ring of the group. `hops`: the steps of another way that moves
    as many bytes, as along one axis of a torus after the other."""
    g = transfer.devices
    steps = g - 1 if hops is None else hops
    share = (g - 1) / g
    if transfer.kind == "all_reduce":
        steps, share = 2 * steps, 2 * share
    elif transfer.kind == "all_to_all":
        steps, share = g // 2 if hops is None else hops, g * g // 4 / g
    elif transfer.kind == "collective_permute":
        steps, share = 1, 1.0  # half of the links, which leaves the other half to another one
    return STEP * steps + transfer.bytes * share / chip.ring


def replay(steps: Sequence[Work], chip: Chip, hops: Mapping[int, int] | None = None) -> Time:
    """Runs a schedule on the core and the links, each of which does one thing at a time. `hops`: by the devices of a
    group, the steps of its collectives where they are no ring's."""
    core = lane = compute = exposed = links = 0.0
    early = [
        i for i, w in enumerate(steps) if w.transfer and w.transfer.early and w.transfer.kind in chip.beside
    ]
    done: dict[int, float] = {}
    begun: set[int] = set()
    unread: dict[int, int] = {}
    sums = {i for i, w in enumerate(steps) if w.transfer and w.transfer.kind == "reduce_scatter"}
    later: set[int] = set()
    at = 0

    def launch(transfer: Transfer, ready: float) -> float:
        nonlocal lane, links
        if transfer.kind == "reduce_scatter" and not chip.scatters:
            transfer = dataclasses.replace(transfer, kind="all_reduce")
        time = link_seconds(chip, transfer, (hops or {}).get(transfer.devices))
        lane = max(lane, ready) + time
        links += time
        return lane

    def wait(until: float) -> None:
        nonlocal core, exposed
        exposed += max(0.0, until - core)
        core = max(core, until)

    for i, work in enumerate(steps):
        while at < len(early) and sum(unread.values()) < AHEAD:
            first = steps[early[at]].transfer
            assert first is not None
            done[early[at]] = launch(first, core)
            begun.add(early[at])
            unread[early[at]] = first.bytes
            at += 1
        if work.transfer is not None:
            if i not in begun:
                ready = max([core, *(done[r] for r in work.reads if r in done)])
                done[i] = launch(work.transfer, ready)
                if work.transfer.kind not in chip.beside:
                    wait(done.pop(i))
            continue
        late = later.intersection(work.reads) or any(r in done and r in sums for r in work.reads)
        if late and not work.matrix:
            later.add(i)  # of a sum that is on its way: an update or a division, for which there is time
            continue
        for r in work.reads:
            if r in done:
                wait(done.pop(r))
                unread.pop(r, None)
        seconds = work.seconds(chip)
        core += seconds
        compute += seconds
    wait(max(done.values(), default=0.0))
    compute += sum(steps[i].seconds(chip) for i in later)
    return Time(compute, exposed, links)


def chained(programs: Sequence[Sequence[Work]]) -> list[Work]:
    """One schedule of programs that run one after the other."""
    found: list[Work] = []
    for program in programs:
        base = len(found)
        found += [dataclasses.replace(w, reads=tuple(base + r for r in w.reads)) for w in program]
    return found
