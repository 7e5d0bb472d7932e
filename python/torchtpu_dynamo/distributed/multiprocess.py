"""Several processes on TPUs: each has chips of one slice, and one program runs on all of them.

libtpu is told which chip is this process's before it is loaded (`configure`). Its devices speak to one another, so that a
graph is not cut at its collectives: a rank is a replica. Ranks tell one another which device is theirs, and what they have
traced, over the store of the process groups; each makes the same program of it and compiles that for the same devices
(`Compilation`). How traces become one program is the compiler's business."""

from __future__ import annotations

import base64
import dataclasses
import glob
import hashlib
import json
import math
import os
import socket
import time
import weakref
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from .. import plugins
from .._torchtpu import COMPILER, Client, Executable, Program, Source, TorchTPUError
from ..export import calling_frames
from ..options import Options
from . import ranks

T = TypeVar("T")

PORT = 8476
"""Of the first process of a host; the next ones have the next."""

CHUNK = 4 << 20
"""Bytes of one value in the store, which takes no more than 8 MiB."""


def refusal(text: str, help: str, stage: str = "compile") -> TorchTPUError:
    error = TorchTPUError(f"{text}\nhelp: {help}")
    error.stage, error.help, error.op, error.location = stage, help, None, None
    return error


# Before libtpu is loaded.


@dataclasses.dataclass(frozen=True)
class Host:
    """A machine of the slice."""

    address: str
    processes: int
    worker: int | None = None
    """The number that Cloud TPU gave it."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a process is."""

    hosts: Sequence[Host]
    """In the order of the ranks."""
    host: int
    local_rank: int
    chips: int
    """Of this host; 0 where they are not counted."""


def environment(place: Place, given: Mapping[str, str]) -> dict[str, str]:
    """What libtpu is told, in variables that are not `given`, for one chip a process. Nothing for one process a host, which
    has all of the host's chips by libtpu's own rules. Raises TorchTPUError where the slice's shape is not known, or has
    other chips than there are processes.

    libtpu documents none of this. The rules are those of PyTorch/XLA (`torch_xla/_internal/tpu.py`, `configure_topology`):
    chips of a process 1,1,1; processes of the slice as its chips lie; tasks counted host after host, hosts by their number;
    an address and a port of each task from 8476 on; the chip with the local rank's number. JAX's tests of several processes
    (`jax/_src/test_multiprocess.py`) set the same, and let libtpu be loaded more than once."""
    hosts, processes = place.hosts, place.hosts[place.host].processes
    if processes == 1:
        return {}
    if any(host.processes != processes for host in hosts):
        raise refusal(
            f"hosts have different numbers of processes: {', '.join(str(h.processes) for h in hosts)}",
            "start as many on each, one for each chip",
        )
    if place.chips not in (0, processes) and "TPU_VISIBLE_CHIPS" not in given:
        raise refusal(
            f"this host has {place.chips} chips and {processes} processes",
            f"start one for each chip: torchrun --nproc-per-node {place.chips}",
        )
    # Cloud TPU's numbers follow the chips; torchrun's follow who came first.
    numbers = [host.worker for host in hosts if host.worker is not None]
    order = list(range(len(hosts)))
    if len(set(numbers)) == len(hosts):
        order.sort(key=numbers.__getitem__)
    addresses = [f"{hosts[i].address}:{PORT + k}" for i in order for k in range(processes)]
    made = {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "CLOUD_TPU_TASK_ID": str(order.index(place.host) * processes + place.local_rank),
        "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_ADDRESSES": ",".join(addresses),
        "TPU_PROCESS_PORT": str(PORT + place.local_rank),
        "TPU_VISIBLE_CHIPS": str(place.local_rank),
    }
    if "TPU_PROCESS_BOUNDS" not in given:
        made["TPU_PROCESS_BOUNDS"] = ",".join(map(str, _shape(len(addresses), len(hosts), given)))
    return {name: value for name, value in made.items() if name not in given}


def _shape(chips: int, hosts: int, given: Mapping[str, str]) -> list[int]:
    """How the slice's chips lie, along three dimensions."""
    said = [given[n] for n in ("TPU_HOST_BOUNDS", "TPU_CHIPS_PER_HOST_BOUNDS") if given.get(n)]
    if len(said) == 2:
        of_hosts, of_chips = (_numbers(text, ",") for text in said)
        shape = [a * b for a, b in zip(of_hosts, of_chips, strict=True)]
    elif given.get("TPU_TOPOLOGY"):
        shape = _numbers(given["TPU_TOPOLOGY"], "x")
    elif hosts == 1 and chips == 4:
        shape = [2, 2, 1]
    else:
        # Eight chips of one host are 2x4 or 4x2, of two hosts 2x4 or 2x2x2.
        raise refusal(
            f"how the {chips} chips of {hosts} host{'s' * (hosts > 1)} lie is not known",
            "set TPU_TOPOLOGY to the slice's shape, such as 2x4 or 2x2x2, or libtpu's own TPU_PROCESS_BOUNDS",
        )
    if math.prod(shape) != chips:
        raise refusal(
            f"the slice is {'x'.join(map(str, shape))} chips, and there are {chips} processes",
            "start one for each chip, or set TPU_PROCESS_BOUNDS to what libtpu is to be told",
        )
    return shape


def _numbers(text: str, mark: str) -> list[int]:
    try:
        return [*map(int, text.split(mark)), 1, 1][:3]
    except ValueError:
        raise refusal(f"{text!r} is no shape of a slice", "TPU_TOPOLOGY is such as 2x4 or 2x2x2") from None


def configure() -> None:
    """Tells libtpu, which is to be loaded next, which chip is this process's, where torchrun has started several. Raises
    TorchTPUError where that is not known, and for ranks that do not come: libtpu would wait for them."""
    try:
        names = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
        local_rank, processes, host = (int(os.environ[name]) for name in names)
    except (KeyError, ValueError):  # another launcher, which tells libtpu itself
        return
    if not ranks.several():
        return
    worker = os.environ.get("TPU_WORKER_ID", "")
    own = Host(_address(), processes, int(worker) if worker.isdigit() else None)
    told = meet("start()", Options().collective_timeout).told("host", [host, *dataclasses.astuple(own)])
    hosts = {of: Host(*fields) for of, *fields in told}
    chips = len(glob.glob("/dev/accel[0-9]*")) or len(glob.glob("/dev/vfio/[0-9]*"))
    place = Place([hosts[of] for of in sorted(hosts)], sorted(hosts).index(host), local_rank, chips)
    os.environ.update(environment(place, os.environ))


def _address() -> str:
    """Under what other hosts reach this one: the end, here, of the way to the first of them."""
    if torch.distributed.get_world_size() == int(os.environ["LOCAL_WORLD_SIZE"]):
        return "localhost"
    master = os.environ.get("MASTER_ADDR", "localhost")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        try:
            way.connect((master, 1))  # sends nothing
            own = str(way.getsockname()[0])
        except OSError:
            own = "127.0.0.1"
    return master if own.startswith("127.") else own


# What ranks tell one another.


def joined(client: Client) -> bool:
    """Whether the client's devices run one program together with those of other processes."""
    return client.platform == plugins.TPU and ranks.several()


class Meeting(ranks.Meeting):
    """One of all ranks, outside of graphs. Methods raise TorchTPUError that names the ranks that do not come."""

    def asked(self, ask: Callable[[], T]) -> T:
        self.started = time.monotonic()
        try:
            with self.failing():
                return ranks.answered(ask, self.seconds)
        except ranks.CollectiveError as e:
            raise refusal(str(e), e.help) from None

    def told(self, what: str, mine: Any) -> list[Any]:
        return self.asked(lambda: super(Meeting, self).told(what, mine))


def meet(call: str, seconds: float) -> Meeting:
    frames = calling_frames()
    line = "{}:{}".format(*frames[0]) if frames else "an unknown line"
    meeting = Meeting(torch.distributed.group.WORLD, call, line, seconds)
    meeting.asked(meeting.check_in)
    return meeting


_assignments: weakref.WeakKeyDictionary[Any, list[int]] = weakref.WeakKeyDictionary()


def device_assignment(client: Client, seconds: float) -> list[int]:
    """By rank the id of its device; asked once. Raises TorchTPUError where ranks and devices are not one to one."""
    group = torch.distributed.group.WORLD
    if group not in _assignments:
        own = [device["id"] for device in client.devices()]
        mine = [client.process_index(), own, sorted(client.global_ids())]
        _assignments[group] = assigned(meet("devices()", seconds).told("devices", mine))
    return _assignments[group]


def assigned(told: Sequence[tuple[int, Sequence[int], Sequence[int]]]) -> list[int]:
    """The id of each rank's device, from what ranks tell in order: the number of the process, its devices, and those of
    all processes that it knows. Raises TorchTPUError where they are not one to one."""
    help = "one process has one chip: torchrun --nproc-per-node CHIPS, and nothing of libtpu's before init_process_group"
    owner: dict[int, int] = {}
    for rank, (process, own, _) in enumerate(told):
        for device in own:
            if device in owner:
                raise refusal(f"rank {owner[device]} and rank {rank} both have device {device}", help)
            owner[device] = rank
        if len(own) != 1:
            found = ranks.listed(own, "device")
            raise refusal(f"rank {rank} (process {process}) has {found}, where one is a rank's", help)
    first = told[0][2]
    for rank, (_, _, known) in enumerate(told):
        if list(known) != list(first):
            theirs, ours = (ranks.listed(ids, "device") for ids in (known, first))
            raise refusal(f"ranks disagree: rank {rank} knows {theirs}, and rank 0 knows {ours}", help)
    if others := sorted(set(first) - owner.keys()):
        what = f"the slice has {ranks.listed(others, 'device')}"
        raise refusal(f"{what} besides those of {ranks.listed(range(len(told)))}", help)
    if missing := sorted(owner.keys() - set(first)):
        raise refusal(f"rank {owner[missing[0]]} has device {missing[0]}, which is not in the slice", help)
    return [own[0] for _, own, _ in told]


class Compilation:
    """One compilation that all ranks come to."""

    def __init__(self, client: Client, kind: str, options: Options) -> None:
        """Raises TorchTPUError where ranks and devices are not one to one, and for ranks that do not come."""
        if options.tune:
            raise refusal(
                "option 'tune' searches for one process, and ranks could find different forms",
                "search ahead of time, by aot_compile_spmd, and give all ranks the file that it writes as `tuned`",
            )
        self.client, self.options = client, options
        self.assignment = device_assignment(client, options.collective_timeout)
        self.meeting = meet(f"compile({kind} graph)", options.collective_timeout)

    def traced(
        self, payload: str, source: Source, bindings: dict[str, int]
    ) -> tuple[list[Source], list[dict[str, int]]]:
        """What each rank has traced, and at which sizes: digests first, and graphs only where these differ. Equal ones are
        one object. Raises TorchTPUError that names the ranks that do not come."""
        text = json.dumps([payload, bindings], sort_keys=True).encode()
        digest = hashlib.sha256(text).hexdigest()
        body = base64.b64encode(zlib.compress(text, 1)).decode()
        parts = [body[i : i + CHUNK] for i in range(0, len(body), CHUNK)]
        told = self.meeting.told("graph", [digest, len(parts)])
        found = {digest: (source, bindings)}
        if len({other for other, _ in told}) > 1:
            others = self.meeting.asked(lambda: self.others(digest, parts, told))
            found |= {other: (Source(graph), sizes) for other, (graph, sizes) in others.items()}
        of_ranks = [found[other] for other, _ in told]
        return [source for source, _ in of_ranks], [sizes for _, sizes in of_ranks]

    def others(
        self, own: str, parts: list[str], told: list[tuple[str, int]]
    ) -> dict[str, tuple[str, dict[str, int]]]:
        """By digest, the graphs that are not this rank's. The first rank that has one sends it."""
        meeting, store = self.meeting, self.meeting.member.store

        def keys(digest: str, count: int) -> list[str]:
            return [f"{meeting.key}/{digest}/{i}" for i in range(count)]

        if [digest for digest, _ in told].index(own) == meeting.member.me:
            for key, part in zip(keys(own, len(parts)), parts, strict=True):
                store.set(key, part)
                meeting.own_keys.append(key)
        wanted = {digest: keys(digest, count) for digest, count in told if digest != own}
        meeting.wait([key for of in wanted.values() for key in of])
        read = lambda of: json.loads(zlib.decompress(base64.b64decode(b"".join(store.multi_get(of)))))
        return {digest: read(of) for digest, of in wanted.items()}

    def executable(self, program: Program) -> Executable:
        """Compiles what all ranks have come to. Raises TorchTPUError where theirs is another program."""
        options_json = self.options.compile_json()
        made = [COMPILER, program.as_text(), options_json, self.client.platform_version, self.assignment]
        digest = hashlib.sha256(json.dumps(made).encode()).hexdigest()
        read = list(self.meeting.own_keys)
        told = self.meeting.told("program", digest)
        self.meeting.asked(lambda: [self.meeting.member.store.delete_key(key) for key in read])
        if (other := next((r for r, theirs in enumerate(told) if theirs != digest), None)) is not None:
            raise refusal(
                f"ranks disagree: rank {other} makes another program than rank {self.meeting.member.me} of the same graphs",
                "give all ranks the same options, and install the same versions on all hosts",
            )
        return compile_rank(program, self.client, options_json, self.assignment)


def compile_rank(
    program: Program, client: Client, options_json: str, assignment: Sequence[int]
) -> Executable:
    """The program on this process's device, which is one of those assigned."""
    return program.compile_rank(client, options_json, list(assignment))
