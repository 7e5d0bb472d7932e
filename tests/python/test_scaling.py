"""What does not grow with the world, and the model of docs/scaling.md on graphs small enough to count by hand."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
import torch.distributed as dist
from scripts import roofline
from scripts.roofline import Chip
from torch import nn
from torch.distributed._functional_collectives import all_reduce
from torch.nn import functional as F
from torchtpu_dynamo._torchtpu import optimize

from torchtpu_dynamo import aot_compile, lower, spmd
from torchtpu_dynamo.distributed import fully_shard

WIDTH = 8192  # rows of each matrix, so that none of as many ranks has padding


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH, eps=1e-5)
        self.q, self.k, self.v, self.o, self.up, self.down = (
            nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(6)
        )

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (f(h).unflatten(-1, (-1, 128)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2))
        return x + self.down(F.silu(self.up(x)))


@functools.cache
def trained(ranks):
    """Two layers, fully sharded, as rank 0 of a world traces them."""
    with spmd.as_rank(0, ranks):
        with torch.device("meta"):
            module = nn.Sequential(Layer(), Layer()).to(torch.bfloat16)
            x = torch.empty(1, 64, WIDTH, dtype=torch.bfloat16)
        return aot_compile(fully_shard(module), (x,), train=True, weights=False)


@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_graphs_do_not_grow_with_the_world(kind):
    nodes = {ranks: trained(ranks).analysis(kind)["nodes"] for ranks in (8, 256, 8192)}
    ops = {ranks: [(n["op"], n["name"]) for n in found] for ranks, found in nodes.items()}
    assert ops[8] == ops[256] == ops[8192]
    # The backward needs no derivative by the input, and so not the first weights.
    assert sum(op == "all_gather" for op, _ in ops[8]) == {"forward": 14, "backward": 13}[kind]


def test_emitted_bytes_grow_by_one_list_of_ranks():
    """StableHLO lists the ranks of a group, in eight bytes each; all collectives have the same list."""

    def step(x):
        for _ in range(10):
            x = all_reduce(x.sin(), "sum", dist.group.WORLD)
        return x

    sizes = {}
    for ranks in (256, 8192):
        with spmd.as_rank(0, ranks):
            sizes[ranks] = len(lower(step, torch.ones(4)).programs["inference"].as_bytecode())
    assert 0 < sizes[8192] - sizes[256] - 8 * (8192 - 256) <= 16


@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_one_trace_stands_for_larger_worlds(kind):
    """What the predictions rest on: a program of 256 ranks is that of 8,192 with other shards."""
    few, many = (works(optimize(trained(ranks).ir(kind), [], True)[0]) for ranks in (256, 8192))
    assert [w.transfer for w in roofline.over(few, 256, 8192)] == [w.transfer for w in many]
    assert [w.matrix for w in few] == [w.matrix for w in many]


CHIP = Chip("none", 1e9, 1 << 30, 1e9, 1e12, 1e9, 1, frozenset(), True, 0.5)
SHARDED = """graph "g" {
  %0 = parameter {role=input, index=0} : f32[250,1000]
  %1 = parameter {role=input, index=1} : f32[1000,1000]
  %2 = all_gather %0 {dimension=0, groups=[4] along [0]} : f32[1000,1000]
  %3 = dot_general %1, %2 PRODUCT : f32[1000,1000]
  %4 = exponential %3 : f32[1000,1000]
  %5 = reduce_scatter %4 {dimension=0, groups=[4] along [0], kind=add} : f32[250,1000]
  %6 = add %5, %5 : f32[250,1000]
  return %6
}"""
PRODUCT = "{lhs_batch=[], rhs_batch=[], lhs_contracting=[1], rhs_contracting=[0], precision=default}"


def works(ir):
    return roofline.works(roofline.analysed(ir.replace("PRODUCT", PRODUCT)))


def test_the_works_of_a_graph():
    gather, product, scatter, add = works(SHARDED)
    assert gather.transfer == roofline.Transfer("all_gather", 4_000_000, 1000, 4, early=True)
    assert scatter.transfer == roofline.Transfer("reduce_scatter", 4_000_000, 1000, 4, early=False)
    assert (product.matrix, product.vector) == (2 * 10**9, roofline.SLOW * 10**6)
    # Of 4 MB each, the argument comes from memory; what is gathered and the result stay.
    assert (product.bytes, product.reads) == (4_000_000, (0,))
    assert (add.vector, add.bytes) == (250_000, 1_000_000)


def test_a_loop_has_what_is_inside_of_it():
    body = """graph "g" {
  %0 = parameter {role=input, index=0} : f32[8,8]
  %1 = constant {value=0} : s64[]
  %2, %3 = while %1, %0 {cond=graph "cond" {
    %0 = parameter {role=input, index=0} : s64[]
    %1 = parameter {role=input, index=1} : f32[8,8]
    %2 = constant {value=5} : s64[]
    %3 = compare %0, %2 {direction=lt} : pred[]
    return %3
  }, body=graph "body" {
    %0 = parameter {role=input, index=0} : s64[]
    %1 = parameter {role=input, index=1} : f32[8,8]
    %2 = constant {value=1} : s64[]
    %3 = add %0, %2 : s64[]
    %4 = dot_general %1, %1 PRODUCT : f32[8,8]
    %5 = exponential %4 : f32[8,8]
    return %3, %5
  }} : s64[], f32[8,8]
  return %3
}"""
    loop = next(n for n in roofline.analysed(body.replace("PRODUCT", PRODUCT))["nodes"] if n["op"] == "while")
    assert loop["matrix"] == pytest.approx(5 * 2 * 8**3, rel=0.01)  # the condition is shared out too
    assert loop["slow"] == pytest.approx(5 * 64, rel=0.01)


def test_the_time_of_a_schedule():
    steps = works(SHARDED)
    # A product of 2 ms at half of the peak, an addition of 1 MB, and three steps around a ring with 3 MB, twice.
    once = 3e-6 + 3e-3
    found = roofline.replay(steps, CHIP)
    assert found.compute == pytest.approx(4e-3 + 1e-3)
    assert (found.links, found.exposed) == pytest.approx((2 * once, 2 * once))
    whole = roofline.replay(steps, dataclasses.replace(CHIP, scatters=False))
    assert whole.links == pytest.approx(3 * once)
    torus = roofline.replay(steps, CHIP, {4: 2})
    assert found.links - torus.links == pytest.approx(2e-6)


def test_gatherings_of_weights_run_ahead():
    steps = works(SHARDED)
    beside = dataclasses.replace(CHIP, beside=frozenset(("all_gather", "reduce_scatter")))
    four = roofline.replay(roofline.chained([steps] * 4), beside)
    once = 3e-6 + 3e-3
    # Eight transfers, of which the links are never without one; the last addition is behind them.
    assert four.links == pytest.approx(8 * once)
    assert four.exposed == pytest.approx(8 * once - 4 * 4e-3)
    assert four.compute == pytest.approx(4 * 5e-3)
    alone = roofline.replay(roofline.chained([steps] * 4), CHIP)
    assert alone.exposed == pytest.approx(8 * once)


def test_rows_are_padded_to_the_ranks():
    transfer = roofline.Transfer("all_gather", 4096 * 2, 4096, 8, early=True)
    assert transfer.over(8192) == roofline.Transfer("all_gather", 8192 * 2, 8192, 8192, early=True)
    assert transfer.over(256).bytes == transfer.bytes
