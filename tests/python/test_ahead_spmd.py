"""Artifacts of all ranks: what they compute on several devices of the CPU, against one process in eager."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from examples.distributed.common import VOCABULARY, Transformer, loss_of
from torch import nn
from torch.distributed._functional_collectives import all_reduce
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.testing import assert_close

from torchtpu_dynamo import Artifact, TorchTPUError, aot_compile, aot_compile_spmd
from torchtpu_dynamo.ahead import inspection, inspection_text
from torchtpu_dynamo.distributed import fully_shard

RANKS = 4


class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = Transformer()

    def forward(self, tokens):
        return loss_of(self.model(tokens), tokens)


def batch():
    return torch.randint(VOCABULARY, (8, 8), generator=torch.Generator().manual_seed(1))


def eager():
    """Loss and gradients of the whole batch in one process."""
    whole = Loss()
    loss = whole(batch())
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in whole.named_parameters()}


def test_fully_sharded_training(tmp_path):
    """Each rank has its rows of each parameter and its part of the batch, and gets the mean gradient of its rows."""
    path = tmp_path / "sharded.ttpu"

    def build():
        return fully_shard(Loss()), batch().chunk(RANKS)[dist.get_rank()]

    aot_compile_spmd(build, RANKS, train=True, output=path)
    artifact = Artifact(path)  # as another process would see it
    assert artifact.ranks == RANKS and artifact.kinds == ("forward", "backward")
    answers = artifact.forward_spmd([[part] for part in batch().chunk(RANKS)])
    expected, wanted = eager()
    assert_close(torch.stack([loss for loss, _ in answers]).mean(), expected)
    gradients = artifact.backward_spmd([saved for _, saved in answers], [[torch.ones(())]] * RANKS)
    assert set(gradients[0]) == set(wanted)
    for name, whole in wanted.items():
        rows = torch.cat([of_rank[name] for of_rank in gradients])
        assert_close(rows, whole, msg=lambda text, name=name: f"{name}: {text}")
    shown = inspection.inspected(artifact)
    assert "one program for all of 4 ranks" in inspection_text.text(shown)
    spec = next(w for w in artifact.label["weights"] if w["name"] == "model.head.weight")
    assert spec["by_rank"] and spec["shape"] == [VOCABULARY // RANKS, 16]
    assert spec["whole"] == [VOCABULARY, 16] and spec["placements"] == ["S(0)"]


def tensor_parallel():
    """All see the whole batch; the embedding's rows begin elsewhere on each rank."""
    module, mesh = Loss(), init_device_mesh("cpu", (RANKS,))
    plan = {"model.embedding": RowwiseParallel(input_layouts=Replicate())}
    for i in range(len(module.model.blocks)):
        plan.update(
            {f"model.blocks.{i}.{name}": ColwiseParallel() for name in ("query", "key", "value", "up")}
        )
        plan.update({f"model.blocks.{i}.{name}": RowwiseParallel() for name in ("out", "down")})
    parallelize_module(module, mesh, plan, src_data_rank=None)
    return module, batch()


def test_tensor_parallel_training():
    artifact = aot_compile_spmd(tensor_parallel, RANKS, train=True)
    answers = artifact.forward_spmd([[batch()]] * RANKS)
    expected, wanted = eager()
    for loss, _ in answers:
        assert_close(loss, expected)
    gradients = artifact.backward_spmd([saved for _, saved in answers], [[torch.ones(())]] * RANKS)
    weights = {w["name"]: w for w in artifact.label["weights"]}
    for name, whole in wanted.items():
        dim = {"S(0)": 0, "S(1)": 1}.get(weights[name].get("placements", ["R"])[0])
        if name == "model.embedding.weight":
            dim = None  # DTensor's derivative of rows that are chosen is of all rows, on every rank
        for rank, of_rank in enumerate(gradients):
            part = whole if dim is None else whole.chunk(RANKS, dim)[rank]
            assert_close(of_rank[name], part, msg=lambda text, name=name: f"{name}: {text}")


def test_numbers_are_each_ranks():
    def build():
        rank = dist.get_rank()
        return lambda x: (x + rank, x.chunk(RANKS)[rank]), torch.arange(8.0)

    x = torch.arange(8.0)
    for rank, (sum_, part) in enumerate(aot_compile_spmd(build, RANKS).run_spmd([[x]] * RANKS)):
        assert_close(sum_, x + rank)
        assert_close(part, x.chunk(RANKS)[rank])
    with pytest.raises(TorchTPUError, match="a few ranks stand for all only where their programs are equal"):
        aot_compile_spmd(build, RANKS, sample=True)


class Counter(nn.Module):
    """State that each rank has for itself, and a weight that all share."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3))
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x):
        self.seen += x
        return all_reduce(self.seen * self.weight.detach(), "sum", dist.group.WORLD)


def test_state_is_each_ranks():
    artifact = aot_compile_spmd(lambda: (Counter(), torch.ones(3)), RANKS, weights=True)
    assert {w["name"]: w.get("by_rank", False) for w in artifact.label["weights"]} == {
        "weight": False,
        "seen": True,
    }
    x = [[torch.full((3,), float(rank))] for rank in range(RANKS)]
    for calls in (1, 2):
        for result in artifact.run_spmd(x):
            assert_close(result, calls * 6.0 * Counter().weight.detach())
    abstract = aot_compile_spmd(
        lambda: (Counter().to("meta"), torch.ones(3)), RANKS, sample=True, weights=False
    )
    given = Artifact(
        abstract.path,
        weights={"weight": torch.ones(3), **{f"seen@{r}": torch.zeros(3) for r in range(RANKS)}},
    )
    assert_close(given.run_spmd(x)[0], torch.full((3,), 6.0))


def sharded_on_meta():
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512)).to(torch.bfloat16)
    return fully_shard(module), torch.empty(64, 512, dtype=torch.bfloat16, device="meta")


def test_a_topology_has_a_device_for_each_rank(tmp_path):
    artifact = aot_compile_spmd(sharded_on_meta, RANKS, sample=True, train=True, topology="v5e:2x2")
    assert not any(w["held"] for w in artifact.label["weights"])
    for kind in ("forward", "backward"):
        build = artifact.build(kind, "v5e:2x2")
        assert build["devices"] == RANKS
        assert artifact.judged(kind, "v5e:2x2")["replay"]["transfers"] > 0


def test_what_cannot_be(tmp_path):
    def build():
        return nn.Linear(2, 2), torch.ones(1, 2)

    artifact = aot_compile_spmd(build, 2)
    with pytest.raises(TorchTPUError, match="the artifact is for 2 ranks, and a call is one rank's"):
        artifact(torch.ones(1, 2))
    with pytest.raises(TorchTPUError, match="the artifact is for 2 ranks, not 3"):
        artifact.run_spmd([[torch.ones(1, 2)]] * 3)
    with pytest.raises(TorchTPUError, match="is what one rank traced"):
        aot_compile(*[build()[0]], (torch.ones(1, 2),)).run_spmd([[torch.ones(1, 2)]])
    with pytest.raises(TorchTPUError, match="leave the topology `cpu` out"):
        aot_compile_spmd(build, 2, topology="cpu")
    with pytest.raises(TorchTPUError, match="weight `.*` is each rank's own, and 3 of 4 ranks were traced"):
        aot_compile_spmd(lambda: (Counter(), torch.ones(3)), 4, sample=True)

    def other_arguments():
        return lambda x: x + 1, torch.ones(1 + dist.get_rank())

    with pytest.raises(TorchTPUError, match="rank 1 has other inputs than rank 0"):
        aot_compile_spmd(other_arguments, 2)


def test_one_rank_of_several_is_told(tmp_path):
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=4)
    try:
        artifact = aot_compile(lambda x: x + dist.get_rank(), (torch.ones(2),))
    finally:
        dist.destroy_process_group()
    assert "what rank 1 of 4 traced" in inspection_text.text(inspection.inspected(artifact))


FACTORY = """
import torch
import torch.distributed as dist
from torch.distributed._functional_collectives import all_reduce
def step():
    rank = dist.get_rank()
    return lambda x: all_reduce(x + rank, "sum", dist.group.WORLD), (torch.ones(3),)
"""


def test_commands(tmp_path):
    (tmp_path / "factory.py").write_text(FACTORY)

    def command(*args):
        line = [sys.executable, "-m", "torchtpu_dynamo.cli", *args]
        done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=False)
        return done.returncode, done.stdout + done.stderr

    assert command("compile", "factory:step", "--ranks", "2", "-o", "step.ttpu")[0] == 0
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.savez(tmp_path / "in.npz", x=x)
    status, told = command("run", "step.ttpu", "--inputs", "in.npz", "--outputs", "out.npz")
    assert status == 0, told
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_allclose(found["output"], np.stack([x.sum(0) + 1] * 2))
    np.savez(tmp_path / "wrong.npz", x=x[0])
    status, told = command("run", "step.ttpu", "--inputs", "wrong.npz", "--outputs", "out.npz")
    assert status == 1 and "its first dimension is the rank, of 2" in told
    assert "2 ranks" in command("inspect", "step.ttpu")[1]


def test_what_stands_for_parts_of_weights_is_of_the_same_shape():
    """Of a rank's parts only a moment's tensors are at hand while they are replaced, and memory is used again."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from torchtpu_dynamo.ahead.capture import local, placed

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        with torch.device("meta"):
            layers = [torch.nn.Linear(2 * i + 2, 2 * i + 4) for i in range(40)]
        module = torch.nn.Sequential(*layers)
        module[1].bias = module[0].weight
        fully_shard(module)
        found, _, _ = placed(module, (), {})
        for a, b in zip(module.parameters(), found.parameters(), strict=True):
            assert b.shape == a.shape and local(b).shape == local(a).shape
        assert found[1]._parameters["bias"] is found[0]._parameters["weight"]
    finally:
        dist.destroy_process_group()
