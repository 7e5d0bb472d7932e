"""What ranks come to together: who takes part, whether they agree, and who is missing.

A plugin whose devices are all this process's own cannot speak to another process, so that a graph is cut at its
collectives (`fallback`) and torch's process groups run them on the host; TPUs speak to one another (`multiprocess`). Gloo
ends the process where the ranks' sizes differ, and waits for half an hour for a rank that never comes. So before a
collective starts, each rank says in the store of the process groups where it is, and compares its call with that of the
first to come. How a graph is cut is `fallback`'s business."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import queue
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch.fx import GraphModule, Node

from .. import plugins
from ..options import Options

T = TypeVar("T")

NAMESPACES = ("_c10d_functional", "_c10d_functional_autograd")
WAITS = ("wait_tensor", "wait_tensors")
PAIRWISE = ("isend", "irecv", "batch_p2p_ops")
"""No collectives: most ranks of the group take no part."""

GRACE = 2.0
"""Seconds that a rank whose connection broke gives the others to say where they are."""


class CollectiveError(Exception):
    """A collective that failed: its text names the ranks."""

    def __init__(self, text: str, help: str) -> None:
        super().__init__(text)
        self.help = help


def is_collective(node: Node) -> bool:
    """What all ranks of a group do together; waiting for it is no part of it."""
    if not _is_functional(node) or _name(node.target) in PAIRWISE:
        return False
    return "group_name" in _parameters(node.target)


def is_wait(node: Node) -> bool:
    return _is_functional(node) and _name(node.target) in WAITS


def wait(result: torch.Tensor) -> torch.Tensor:
    """A collective's result once it is there."""
    waited: torch.Tensor = torch.ops._c10d_functional.wait_tensor(result)
    return waited


def between_processes(gm: GraphModule, options: Options) -> bool:
    """Whether a graph has collectives that the plugin cannot run: those of several processes, of which it knows only this
    one."""
    if not several() or not has_collectives(gm):
        return False
    return plugins.client(options.plugin, options.zero_copy).platform != plugins.TPU


def has_collectives(gm: GraphModule) -> bool:
    """Whether a graph, or one nested in it, has what ranks do together."""
    return any(is_collective(n) for m in _graphs(gm) for n in m.graph.nodes)


def several() -> bool:
    """Whether this process is one of several, which torch's process groups connect."""
    dist = torch.distributed
    if not dist.is_available() or not dist.is_initialized():
        return False
    return dist.get_world_size() > 1 and dist.get_backend() != "fake"


def nested_collective(gm: GraphModule, node: Node) -> Node | None:
    """The first collective in the graphs that a higher-order operator runs."""
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            owned = functools.reduce(getattr, str(source.target).split("."), gm)
            for inner in _graphs(owned) if isinstance(owned, GraphModule) else ():
                found = next(filter(is_collective, inner.graph.nodes), None)
                if found is not None:
                    return found
    return None


def _graphs(gm: GraphModule) -> Iterator[GraphModule]:
    return (m for m in gm.modules() if isinstance(m, GraphModule))


def _is_functional(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target.namespace in NAMESPACES


def _parameters(target: Any) -> list[str]:
    return [a.name for a in target._schema.arguments]


def _name(target: Any) -> str:
    return str(target._schema.name.partition("::")[2])


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a rank is: the collective that it came to last."""

    group: str
    call: str
    line: str
    counts: dict[str, int]
    """By group: how many collectives the rank has come to."""
    failed: bool = False

    @property
    def number(self) -> int:
        return self.counts[self.group]

    def __str__(self) -> str:
        return f"`{self.call}`, number {self.number} of group `{self.group}`, at {self.line}"


class Member:
    """This process as a rank of one process group."""

    def __init__(self, group: Any) -> None:
        from torch.distributed import distributed_c10d as c10d

        self.name: str = group.group_name
        self.ranks: list[int] = torch.distributed.get_process_group_ranks(group)
        self.me = torch.distributed.get_rank()
        self.others = [rank for rank in self.ranks if rank != self.me]
        self.store = torch.distributed.PrefixStore("torchtpu", c10d._get_default_store())
        self.count = 0

    def publish(self, position: Position) -> None:
        self.store.set(f"at/{self.me}", json.dumps(dataclasses.astuple(position)))

    def position(self, rank: int) -> Position | None:
        """None of a rank that has come to no collective yet."""
        key = f"at/{rank}"
        return Position(*json.loads(self.store.get(key))) if self.store.check([key]) else None


@contextlib.contextmanager
def limit(group: Any, seconds: float) -> Iterator[None]:
    """Gives collectives that start in the block so long; the user's own keep what the group was made with."""
    backend = group._get_backend(torch.device("cpu"))
    backend = getattr(backend, "wrapped_pg", backend)  # of TORCH_DISTRIBUTED_DEBUG=DETAIL
    if backend.name() != "gloo":
        yield
        return
    before = backend.options._timeout
    backend._set_default_timeout(timedelta(seconds=seconds))
    try:
        yield
    finally:
        backend._set_default_timeout(before)


_members: weakref.WeakKeyDictionary[Any, Member] = weakref.WeakKeyDictionary()


def group_of(value: Any) -> Any:
    """The process group that an operator takes, which may be its name."""
    from torch.distributed import distributed_c10d as c10d

    return c10d._resolve_process_group(value) if isinstance(value, str) else value  # type: ignore[arg-type]


class Meeting:
    """What all ranks of a group come to, and where this rank compares itself with the others."""

    def __init__(self, group: Any, call: str, line: str, seconds: float) -> None:
        """`call` is what the ranks compare, `line` is the user's; `seconds` is how long it waits for other ranks."""
        if group not in _members:
            _members[group] = Member(group)
        self.group, self.member, self.seconds = group, _members[group], seconds
        self.member.count += 1
        counts = {m.name: m.count for m in _members.values()}
        self.position = Position(self.member.name, f"{call} over {listed(self.member.ranks)}", line, counts)
        self.key = f"{self.member.name}/{self.member.count}"
        self.own_keys: list[str] = []
        """What this rank has put into the store, of no use once all have come."""
        self.started = time.monotonic()

    def check_in(self) -> None:
        """Says where this rank is. Raises CollectiveError where another is elsewhere."""
        self.member.publish(self.position)
        if self.member.others:
            self.compare()

    def compare(self) -> None:
        """Raises CollectiveError unless this is the call of the rank that was first."""
        mine = json.dumps([self.member.me, self.position.call, self.position.line])
        found = self.member.store.compare_set(self.key, "", mine).decode()
        if found == mine:
            self.own_keys.append(self.key)
        rank, call, line = json.loads(found)
        if call != self.position.call:
            raise self.disagreement(rank, f"is at `{call}` ({line})", f"is at `{self.position.call}`")

    def told(self, what: str, mine: Any) -> list[Any]:
        """What each rank of the group, in its order, says of `what`: something that JSON can hold."""
        member = self.member
        key = lambda rank: f"{self.key}/{what}/{rank}"
        member.store.set(key(member.me), json.dumps(mine))
        self.own_keys.append(key(member.me))
        self.wait([key(rank) for rank in member.others])
        return [json.loads(said) for said in member.store.multi_get([key(rank) for rank in member.ranks])]

    def wait(self, keys: list[str]) -> None:
        # A little less than all the time, so that a rank that is late is told from a store that does not answer.
        self.member.store.wait(keys, timedelta(seconds=0.9 * self.seconds))

    def disagreement(self, rank: int, theirs: str, ours: str) -> CollectiveError:
        self.member.publish(dataclasses.replace(self.position, failed=True))
        text = f"ranks disagree: rank {rank} {theirs}, and rank {self.member.me} {ours}"
        return CollectiveError(
            text, "every rank of a group must come to the same collectives in the same order"
        )

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """Turns what torch raises for a broken connection or a late rank into CollectiveError."""
        try:
            yield
        except RuntimeError as e:
            # Gloo's own place in its sources is of no use, nor are its advice and the store's keys.
            cause = re.sub(r"^\[[^\]]*\] |, keys: .*", "", str(e).partition("\n")[0]).partition(". ")[0]
            raise self.failure(cause) from None

    def failure(self, cause: str) -> CollectiveError:
        late = time.monotonic() - self.started >= 0.9 * self.seconds
        call = f"`{self.position.call}`"
        try:
            grace = 0 if late else GRACE
            absent, silent, positions = answered(lambda: self.survey(grace), grace + GRACE)
        except RuntimeError:
            holder = "torchrun" if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else "rank 0"
            text = (
                f"{call} failed, and {holder}, which holds the store of the process groups, does not answer"
            )
            return CollectiveError(f"{text}\n  cause: {cause}", f"the output of {holder} may say why")
        if late:
            help = 'options={"collective_timeout": SECONDS} gives them longer, as where one compiles for that long'
            text = f"{listed(absent)} did not come to {call} within {self.seconds:g} s"
            if not absent:
                text = f"{call} took longer than {self.seconds:g} s, though all ranks came to it"
        else:
            help = "the other ranks' own output may say why"
            who = f"{listed(silent)} said nothing since" if silent else "so it did on the other ranks"
            text = f"{call} failed, " + (
                f"and {listed(absent)} had not come to it" if absent else f"and {who}"
            )
        lines = [text]
        for rank in absent:
            at = positions[rank]
            lines.append(f"  rank {rank}: {'came to no collective' if at is None else f'last at {at}'}")
        return CollectiveError("\n".join([*lines, f"  cause: {cause}"]), help)

    def survey(self, grace: float) -> tuple[list[int], list[int], dict[int, Position | None]]:
        """Of the other ranks those that have not come to this collective, those that are at it and have not failed, and
        where each is. Takes `grace` seconds unless one rank is left to blame."""
        self.member.publish(dataclasses.replace(self.position, failed=True))
        end = time.monotonic() + grace
        while True:
            positions = {rank: self.member.position(rank) for rank in self.member.others}
            absent = [rank for rank, at in positions.items() if at is None or not self.has_come(at)]
            silent = [
                r for r, at in positions.items() if at is not None and r not in absent and self.is_at(at)
            ]
            if len(absent or silent) <= 1 or time.monotonic() >= end:
                return absent, silent, positions
            time.sleep(0.02)

    def has_come(self, other: Position) -> bool:
        """Here, or past this."""
        count = other.counts.get(self.position.group, 0)
        elsewhere = other.group == self.position.group and other.call != self.position.call
        return count > self.position.number or (count == self.position.number and not elsewhere)

    def is_at(self, other: Position) -> bool:
        """At this, and not failed."""
        here = (other.group, other.number) == (self.position.group, self.position.number)
        return here and not other.failed


class Collective(Meeting):
    """One collective of this rank, from the comparison with the other ranks to the end of its transfer."""

    def __init__(
        self, op: Any, args: Sequence[Any], kwargs: dict[str, Any], line: str, seconds: float
    ) -> None:
        self.name = _name(op)
        given = {**dict(zip(_parameters(op), args, strict=False)), **kwargs}
        group = group_of(given.pop("group_name"))
        self.splits = [given.pop(name, None) for name in ("input_split_sizes", "output_split_sizes")]
        arguments = ", ".join(described(value, self.splits[0] is not None) for value in given.values())
        super().__init__(group, f"{self.name}({arguments})", line, seconds)

    def start(self, start: Callable[[], Any]) -> Any:
        """What `start` gives: results that are there only once waited for. Raises CollectiveError."""
        with self.failing():
            answered(self.check_in, self.seconds)
        try:
            with limit(self.group, self.seconds):
                return start()
        except (RuntimeError, ValueError) as e:
            text = f"the process group refuses `{self.position.call}`: {str(e).partition(chr(10))[0]}"
            raise CollectiveError(
                text, "what its backend takes is in the documentation of torch.distributed"
            ) from None

    @contextlib.contextmanager
    def waited_for(self) -> Iterator[None]:
        """Around what waits for the transfer. Raises CollectiveError."""
        with self.failing():
            yield
            # All have come by now. Of a broadcast a rank may still be on its way, and then finds nothing to compare with.
            if self.own_keys:
                answered(lambda: [self.member.store.delete_key(key) for key in self.own_keys], self.seconds)
                self.own_keys.clear()

    def check_in(self) -> None:
        super().check_in()
        if self.member.others and self.splits[0] is not None:
            self.compare_splits()

    def compare_splits(self) -> None:
        """Raises CollectiveError unless every rank sends what this one expects of it."""
        sent, expected = self.splits
        member = self.member
        for rank, sends in zip(member.ranks, self.told("splits", sent), strict=True):
            rows, expects = sends[member.ranks.index(member.me)], expected[member.ranks.index(rank)]
            if rank != member.me and rows != expects:
                raise self.disagreement(rank, f"sends {rows} rows", f"expects {expects} in `{self.name}`")


def answered(ask: Callable[[], T], seconds: float) -> T:
    """What `ask` gives. Raises RuntimeError where the store takes longer: its own calls wait for ever for a process or a
    machine that has stopped."""
    answers: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((ask(), None))
        except Exception as e:
            answers.put((None, e))

    threading.Thread(target=run, daemon=True).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise RuntimeError("the store of the process groups does not answer") from None
    if error is not None:
        raise error
    return cast(T, answer)


def described(value: Any, any_length: bool = False) -> str:
    """An argument as the ranks compare it; with `any_length`, tensors may differ in their first dimension."""
    if isinstance(value, torch.Tensor):
        sizes = [str(size) for size in value.shape]
        if any_length:
            sizes[:1] = ["*"]
        return f"{str(value.dtype).removeprefix('torch.')}[{', '.join(sizes)}]"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(described(v) for v in value)}]"
    return str(value)


def listed(ranks: Sequence[int], what: str = "rank") -> str:
    """`rank 2`, `ranks 0-3`, `ranks 0, 2`."""
    if len(ranks) == 1:
        return f"{what} {ranks[0]}"
    if len(ranks) > 2 and list(ranks) == list(range(ranks[0], ranks[-1] + 1)):
        return f"{what}s {ranks[0]}-{ranks[-1]}"
    return f"{what}s {', '.join(map(str, ranks))}"
