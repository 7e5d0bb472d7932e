"""All ranks in one process: what each of them traces becomes one program, which several CPU devices run at once.

Each rank is traced under a process group of which only the numbers are real. No rank's numbers are taken for another's:
where traces differ, the compiler makes the numbers a table by rank, or says what differs."""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from . import plugins
from ._torchtpu import Executable, Program, TorchTPUError
from .api import Lowered, capture
from .graph import draw_seed
from .options import Options, parse_options

_executables: weakref.WeakKeyDictionary[Program, dict[tuple[int, str], Executable]] = (
    weakref.WeakKeyDictionary()
)


@dataclasses.dataclass(frozen=True)
class LoweredSpmd(Lowered):
    """The programs of all ranks, and what the first of them to run is called with."""

    inputs: Sequence[Sequence[torch.Tensor]]
    """By rank, the tensors that the program "inference" or "forward" takes: parameters, buffers and arguments."""
    options: Options = dataclasses.field(default_factory=Options)

    def run_spmd(self) -> list[list[torch.Tensor]]:
        """Runs that program; the results of each rank, in the program's order."""
        return run(next(iter(self.programs.values())), self.inputs, self.options)


def lower_spmd(
    build: Callable[[], tuple[Any, ...]],
    ranks: int,
    *,
    train: bool = False,
    options: Mapping[str, Any] | None = None,
) -> LoweredSpmd:
    """One program for all ranks of a world, made as `lower` makes it.

    `build()` is called as each rank, with `torch.distributed` initialized for a world of `ranks`, and returns
    `(fn, *args)`: it makes its meshes and shards there. No collective of its own is run, so that weights are not sent
    from one rank to others: `src_data_rank=None`. Raises TorchTPUError where ranks differ in more than numbers."""
    check_world(ranks)
    parsed = parse_options(options)
    traced = [_trace(build, rank, ranks, train, parsed) for rank in range(ranks)]
    kinds = list(traced[0])
    for rank, of_rank in enumerate(traced):
        if list(of_rank) != kinds:
            raise TorchTPUError(f"rank {rank} has the programs {list(of_rank)}, rank 0 has {kinds}")
    programs = {
        kind: Program.of_ranks([of_rank[kind][0] for of_rank in traced], parsed.program_json(None))
        for kind in kinds
    }
    return LoweredSpmd(programs, [of_rank[kinds[0]][1] for of_rank in traced], parsed)


def check_world(ranks: int) -> None:
    """Raises TorchTPUError where no process groups of so many ranks can be made."""
    if not dist.is_available():
        raise TorchTPUError("this torch was built without torch.distributed")
    if dist.is_initialized():
        raise TorchTPUError(
            "a process group is made for each rank, and there is one already\n"
            "help: call torch.distributed.destroy_process_group() first; meshes are made in `build`"
        )
    if ranks < 1:
        raise TorchTPUError(f"a world of {ranks} ranks has none to trace as")


@contextlib.contextmanager
def as_rank(rank: int, ranks: int) -> Iterator[None]:
    """Under a process group of which only the numbers are real."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    try:
        _forget_shardings()
        yield
    finally:
        dist.destroy_process_group()


def _forget_shardings() -> None:
    """DTensor keeps how it shards the results of an operator, with the mesh of the rank that asked first."""
    from torch.distributed.tensor import debug

    clear = getattr(debug, "_clear_sharding_prop_cache", None)  # private, and not in every torch
    if clear is not None:
        clear()


def _trace(
    build: Callable[[], tuple[Any, ...]],
    rank: int,
    ranks: int,
    train: bool,
    options: Options,
) -> dict[str, tuple[Any, list[torch.Tensor]]]:
    with as_rank(rank, ranks):
        fn, *args = build()
        return capture(fn, args, {}, train, options, lambda graph: graph.source_payload({})[1])


def run(
    program: Program, inputs_per_rank: Sequence[Sequence[torch.Tensor]], options: Options | None = None
) -> list[list[torch.Tensor]]:
    """What `Program.run_spmd` does."""
    ranks = [list(tensors) for tensors in inputs_per_rank]
    if not ranks:
        raise TorchTPUError("run_spmd takes a list of tensors for each rank")
    executables = _executables.setdefault(program, {})
    key = len(ranks), (options or Options()).compile_json()
    executable = executables.get(key)
    if executable is None:
        client = plugins.client("cpu", cpu_devices=len(ranks))
        executable = program.compile_spmd(client, key[1])
        executables[key] = executable
    return executable.call_spmd(ranks, draw_seed() if program.uses_seed else 0)
