"""Cases for several processes whose client says that it is a TPU's; `tests.ranks` runs them.

All that ranks tell one another is real. What a TPU would run, a CPU runs here: in every process, with the arguments of all
ranks, on as many devices."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_gather_tensor, all_reduce
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import torchtpu_dynamo
from torchtpu_dynamo import TorchTPUError, plugins
from torchtpu_dynamo.ahead import topologies
from torchtpu_dynamo.distributed import multiprocess

SECONDS = 5
TOPOLOGY = "v5e:2x2"
DEVICES = [2, 3, 0, 1]
"""By rank, the id of its device: not in order, as a slice's need not be."""


class Client:
    """Says that it is a TPU's, one process of four."""

    platform, platform_version = "tpu", "pretended"

    def devices(self) -> list[dict[str, Any]]:
        return [{"id": DEVICES[dist.get_rank()], "kind": "TPU v5 lite"}]

    def global_ids(self) -> list[int]:
        return sorted(DEVICES)

    def process_index(self) -> int:
        return DEVICES[dist.get_rank()]


class Together:
    """The program on the CPU, as all ranks, each time that it is called."""

    def __init__(self, program: Any) -> None:
        self.program, self.uses_seed = program, program.uses_seed

    def stage_times(self) -> dict[str, float]:
        return {}

    def __call__(self, tensors: list[Tensor], seed: int) -> list[Tensor]:
        every: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(every, [t.detach() for t in tensors])
        results = self.program.run_spmd(every)[dist.get_rank()]
        with torch.no_grad():  # what the program writes
            for ours, ran in zip(tensors, every[dist.get_rank()], strict=True):
                ours.copy_(ran)
        return results


class Pretended:
    """While it is entered, the plugin is libtpu's; what ranks compiled together is in `programs`, with its device
    assignment. With `on_cpu` it is the CPU's, whose devices pass for a slice's: what a process compiles by itself runs
    too."""

    def __init__(self, on_cpu: bool = False) -> None:
        self.on_cpu = on_cpu
        self.programs: list[tuple[Any, list[int]]] = []

    def compile_rank(self, program: Any, client: Any, options_json: str, assignment: list[int]) -> Any:
        assert isinstance(client, Client) or self.on_cpu
        self.programs.append((program, assignment))
        return Together(program)

    def __enter__(self) -> Pretended:
        real, client = plugins.client, Client()
        choose = lambda *args, **more: real(*args, **more) if more.get("cpu_devices") else client
        self.patches = [
            mock.patch.object(multiprocess, "compile_rank", self.compile_rank),
            mock.patch.object(multiprocess, "CHUNK", 1000),  # of a graph there are several
        ]
        if self.on_cpu:
            self.patches += [
                mock.patch.object(plugins, "TPU", "cpu"),
                mock.patch.object(multiprocess, "device_assignment", return_value=DEVICES),
            ]
        else:
            self.patches.append(mock.patch.object(plugins, "client", choose))
        for patch in self.patches:
            patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        for patch in self.patches:
            patch.stop()


def compiled(fn: Any, **options: Any) -> Any:
    return torch.compile(fn, backend="torchtpu_dynamo", fullgraph=True, options=options)


class Tagger(nn.Module):
    """Of its embedding a rank has a part of the vocabulary, whose beginning is a number in its graph."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.up, self.down = nn.Embedding(32, 16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.down(self.up(self.words(tokens)).relu())


def pretended_program() -> None:
    """One whole graph a direction, eager's numbers, and the same program for the same devices on every rank."""
    from torch.distributed.tensor import Replicate

    reference, whole = Tagger(), Tagger()
    tokens = torch.arange(24).reshape(4, 6) % 32
    plan = {
        "words": RowwiseParallel(input_layouts=Replicate()),
        "up": ColwiseParallel(),
        "down": RowwiseParallel(),
    }
    model = parallelize_module(whole, init_device_mesh("cpu", (4,)), plan)
    with Pretended() as tpu:
        results = compiled(model)(tokens)
        results.square().sum().backward()
    expected = reference(tokens)
    expected.square().sum().backward()
    torch.testing.assert_close(results, expected)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.full_tensor(), theirs.grad)
    stats = torchtpu_dynamo.stats()
    assert (stats.collectives, len(tpu.programs)) == (0, 2), (stats.collectives, len(tpu.programs))
    assert all(assignment == DEVICES for _, assignment in tpu.programs), tpu.programs
    forward = tpu.programs[0][0]
    assert "replica_id" in forward.as_text(), "where a part of the vocabulary begins is a table by rank"
    prepared, program = forward.for_tpu(TOPOLOGY), forward.as_text().encode()
    build = topologies.build(
        prepared.as_bytecode(),
        TOPOLOGY,
        name="forward",
        options_json=prepared.options,
        replicas=4,
        devices=tpu.programs[0][1],
    )
    said = [hashlib.sha256(text).hexdigest() for text in (program, build.executable)]
    Path(sys.argv[1], f"digests.{dist.get_rank()}").write_text(json.dumps(said))


def pretended_sizes() -> None:
    """Sizes that change, and a tensor that is written."""
    group, rank = dist.group.WORLD, dist.get_rank()

    def fn(x: Tensor, state: Tensor) -> Tensor:
        state.add_(all_reduce(x.sum(0), "sum", group))
        return all_gather_tensor(x * 2, 0, group)

    step = torch.compile(fn, backend="torchtpu_dynamo", fullgraph=True)
    with Pretended() as tpu:
        for rows in (2, 3, 5):
            torch.manual_seed(rank)
            x, state = torch.randn(rows, 3), torch.ones(3)
            wanted = state.clone()
            torch.testing.assert_close(step(x, state), fn(x, wanted))
            torch.testing.assert_close(state, wanted)
    assert len(tpu.programs) == 3, len(tpu.programs)


def pretended_fallback() -> None:
    """Groups that are not everybody's: torch runs their collective, which is done before its result is read."""
    groups = [dist.new_group([0, 3]), dist.new_group([1, 2])]
    group, x = groups[dist.get_rank() in (1, 2)], torch.full((1 << 20,), 1.0 + dist.get_rank())

    def fn(x: Tensor) -> Tensor:
        return all_reduce(x * 2, "sum", group) + all_reduce(x, "sum", dist.group.WORLD)

    with Pretended(on_cpu=True) as tpu, warnings.catch_warnings(action="ignore"):
        torch.testing.assert_close(compiled(fn, fallback="eager")(x), torch.full_like(x, 20.0))
    stats = torchtpu_dynamo.stats()
    assert (stats.collectives, len(tpu.programs)) == (1, 1), (stats, tpu.programs)


def first_error(call: Any) -> str:
    try:
        call()
    except TorchTPUError as e:
        return str(e)
    return ""


def pretended_differing_rank() -> str:
    """Another operation on rank 2: there is no program of all."""
    group, rank = dist.group.WORLD, dist.get_rank()

    def fn(x: Tensor) -> Tensor:
        y = x.sin() if rank == 2 else x.cos()
        return all_reduce(y, "sum", group)

    with Pretended():
        return first_error(lambda: compiled(fn, collective_timeout=SECONDS)(torch.ones(4)))


def pretended_differing_options() -> str:
    group, rank = dist.group.WORLD, dist.get_rank()
    xla = {"xla_options": {"xla_tpu_scoped_vmem_limit_kib": 1024}} if rank == 1 else {}
    with Pretended():
        step = compiled(lambda x: all_reduce(x, "sum", group), collective_timeout=SECONDS, **xla)
        return first_error(lambda: step(torch.ones(4)))


def pretended_missing_rank() -> str:
    group = dist.group.WORLD
    with Pretended():
        step = compiled(lambda x: all_reduce(x, "max", group), collective_timeout=SECONDS)
        return "" if dist.get_rank() == 3 else first_error(lambda: step(torch.ones(4)))


def configured() -> None:
    """What libtpu is told under torchrun."""
    rank = dist.get_rank()
    with mock.patch.dict(os.environ, {"TPU_PROCESS_PORT": "9000"}):
        multiprocess.configure()
        assert os.environ["TPU_PROCESS_BOUNDS"] == "2,2,1"
        assert os.environ["TPU_VISIBLE_CHIPS"] == os.environ["CLOUD_TPU_TASK_ID"] == str(rank)
        assert os.environ["TPU_PROCESS_PORT"] == "9000", "the user's own"


CASES = {
    f.__name__: f
    for f in (
        pretended_program,
        pretended_sizes,
        pretended_fallback,
        pretended_differing_rank,
        pretended_differing_options,
        pretended_missing_rank,
        configured,
    )
}
