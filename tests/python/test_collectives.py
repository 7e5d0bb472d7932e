"""Collectives over a process group of which only the size is real."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.distributed._functional_collectives import all_reduce, all_reduce_coalesced
from torch.testing._internal.distributed.fake_pg import FakeStore

import torchtpu_dynamo
from torchtpu_dynamo import TorchTPUError, aot_compile


@pytest.fixture
def world():
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_all_reduce_is_one_operation_over_all_ranks(world):
    def fn(x, y):
        total, mean = all_reduce(x, "sum", world), all_reduce(y, "avg", world)
        return total, mean, all_reduce_coalesced([x, y], "max", world)

    text = torchtpu_dynamo.lower(fn, torch.ones(2, 3), torch.ones(4)).as_text()
    assert text.count('"stablehlo.all_reduce"') == 4
    assert text.count("replica_groups = dense<[[0, 1, 2, 3]]>") == 4
    assert text.count("stablehlo.divide") == 1, "a mean is a sum over 4"


def test_unknown_reduction_and_smaller_groups_are_refused(world):
    with pytest.raises(TorchTPUError, match=r"reduce_op `premul_sum` is not supported"):
        torchtpu_dynamo.lower(lambda x: all_reduce(x, "premul_sum", world), torch.ones(2))
    part = dist.new_group([0, 1])
    with pytest.raises(TorchTPUError, match="does not have all ranks of the world") as caught:
        torchtpu_dynamo.lower(lambda x: all_reduce(x, "sum", part), torch.ones(2))
    assert "test_collectives.py" in str(caught.value)


def test_one_device_does_not_run_it(world):
    compiled = torch.compile(lambda x: all_reduce(x, "sum", world) + 1, backend="tpu")
    with pytest.raises(TorchTPUError, match="is for 4 devices, and 1 of cpu runs it"):
        compiled(torch.ones(2))


def test_compiles_ahead_for_as_many_devices(world, tmp_path):
    def step(w, x):
        gradient, loss = torch.func.grad_and_value(lambda w: torch.tanh(x @ w).square().mean())(w)
        return all_reduce(loss, "avg", world), all_reduce(gradient, "avg", world)

    args = torch.randn(512, 512), torch.randn(64, 512)
    compiled = aot_compile(step, args, topology="v5e:2x2")
    build = compiled.build("inference", "v5e:2x2")
    assert build["devices"] == 4
    replay = compiled.judged("inference", "v5e:2x2")["replay"]
    assert sum(replay["synchronous"].values()) + sum(replay["asynchronous"].values()) >= 1
    assert replay["transfers"] > 0
    with pytest.raises(TorchTPUError, match="the program is for 4 devices, and `v5e:1x1` has 1"):
        aot_compile(step, args, topology="v5e:1x1", output=tmp_path / "small.ttpu")
