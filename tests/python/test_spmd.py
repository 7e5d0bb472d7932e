"""What all ranks compute, in one process: `lower_spmd` and `run_spmd` against the meaning of each collective, and sharded
modules against the module on one device."""

from __future__ import annotations

import functools
import gc
import operator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._functional_collectives import (
    all_gather_tensor,
    all_reduce,
    all_to_all_single,
    broadcast,
    permute_tensor,
    reduce_scatter_tensor,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.testing import assert_close, make_tensor

from torchtpu_dynamo import TorchTPUError, lower, lower_spmd
from torchtpu_dynamo.spmd import as_rank

P2P = pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "enable_p2p_compilation"), reason="this torch breaks graphs there"
)


def data(rank, dtype, shape=(8, 4)):
    torch.manual_seed(rank)
    return make_tensor(shape, dtype=dtype, device="cpu", low=-4, high=4)


def groups_of(shape, dim):
    """Of ranks that fill a mesh, those along one dimension."""
    world = torch.arange(torch.Size(shape).numel()).reshape(shape)
    return world.movedim(dim, -1).reshape(-1, shape[dim]).tolist()


def by_rank(groups, of_group):
    """The results of all ranks; `of_group` gives those of one group, in its order."""
    results = {rank: r for group in groups for rank, r in zip(group, of_group(group), strict=True)}
    return [results[rank] for rank in sorted(results)]


REDUCTIONS = {
    "sum": operator.add,
    "product": operator.mul,
    "max": torch.maximum,
    "min": torch.minimum,
    "band": operator.and_,
    "bor": operator.or_,
    "bxor": operator.xor,
}


@pytest.mark.parametrize(
    ("shape", "dim", "dtype"),
    [
        ((4,), 0, torch.bool),
        ((2, 2), 0, torch.bfloat16),
        ((2, 2), 1, torch.complex64),
        ((2, 4), 0, torch.float64),
        ((2, 2, 2), 1, torch.int32),
    ],
)
def test_collectives_mean_what_torch_says(shape, dim, dtype):
    groups, n = groups_of(shape, dim), shape[dim]
    ranks = torch.Size(shape).numel()
    kinds = ["sum"]
    if not dtype.is_complex:
        kinds += ["max", "min"]
    if not dtype.is_floating_point and not dtype.is_complex:
        kinds += ["band", "bor", "bxor"]
    if dtype is torch.float64:
        kinds += ["product"]

    def build():
        mesh = init_device_mesh("cpu", shape)
        group = mesh.get_group(dim)

        def fn(x):
            return [
                all_gather_tensor(x, 0, group),
                all_gather_tensor(x, 1, group),
                all_to_all_single(x, None, None, group),
                broadcast(x, n - 1, group),
                *(all_reduce(x, kind, group) for kind in kinds),
                *(reduce_scatter_tensor(x, kind, d, group) for kind in kinds for d in (0, 1)),
            ]

        return fn, data(dist.get_rank(), dtype)

    lowered = lower_spmd(build, ranks)
    x = [data(rank, dtype) for rank in range(ranks)]

    def reduced(group, kind):
        return functools.reduce(REDUCTIONS[kind], [x[rank] for rank in group])

    def exchanged(group):
        parts = [x[rank].chunk(n) for rank in group]
        return [torch.cat([part[i] for part in parts]) for i in range(n)]

    expected = [
        by_rank(groups, lambda g: [torch.cat([x[rank] for rank in g])] * n),
        by_rank(groups, lambda g: [torch.cat([x[rank] for rank in g], 1)] * n),
        by_rank(groups, exchanged),
        by_rank(groups, lambda g: [x[g[n - 1]]] * n),
        *(by_rank(groups, lambda g, k=kind: [reduced(g, k)] * n) for kind in kinds),
        *(
            by_rank(groups, lambda g, k=kind, d=d: reduced(g, k).chunk(n, d))
            for kind in kinds
            for d in (0, 1)
        ),
    ]
    for rank, results in enumerate(lowered.run_spmd()):
        for i, result in enumerate(results):
            assert_close(result, expected[i][rank], msg=lambda m, r=rank, i=i: f"rank {r}, result {i}: {m}")


def test_meshes_of_earlier_process_groups_say_nothing():
    """Process groups are named by counting, so that those of the next world have the same names."""
    held = []

    def program(*shape):
        def build():
            mesh = init_device_mesh("cpu", shape)
            held.append(mesh)
            gc.collect()  # of objects of one generation the oldest comes first
            group = mesh.get_group(0)
            return lambda x: all_gather_tensor(x, 0, group), torch.tensor([float(dist.get_rank())])

        return lower_spmd(build, 8)

    for shape in [(4, 2), (2, 4), (2, 2, 2), (4, 2)]:
        groups = groups_of(shape, 0)
        for rank, result in enumerate(program(*shape).run_spmd()):
            expected = next(group for group in groups if rank in group)
            assert result[0].tolist() == expected, (shape, rank)


def test_what_the_ranks_sent_stays_bit_for_bit():
    special = torch.tensor([-0.0, 0.0, float("nan"), float("inf"), 1e-45])

    def build():
        return lambda x: broadcast(x, 1, dist.group.WORLD), special if dist.get_rank() == 1 else -special

    for [result] in lower_spmd(build, 2).run_spmd():
        assert torch.equal(result.view(torch.int32), special.view(torch.int32))


def test_mean_of_gradients():
    """A data-parallel step, written with autograd: one all-reduce a parameter."""

    def build():
        torch.manual_seed(0)
        model = nn.Linear(4, 3)

        def step(weight, bias, x):
            def loss(weight, bias):
                return (
                    torch.func.functional_call(model, {"weight": weight, "bias": bias}, (x,)).square().mean()
                )

            return [
                all_reduce(g, "avg", dist.group.WORLD) for g in torch.func.grad(loss, (0, 1))(weight, bias)
            ]

        return step, model.weight.detach(), model.bias.detach(), data(dist.get_rank(), torch.float32)

    results = lower_spmd(build, 4).run_spmd()
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    model(torch.cat([data(rank, torch.float32) for rank in range(4)])).square().mean().backward()
    for weight, bias in results:
        assert_close(weight, model.weight.grad)
        assert_close(bias, model.bias.grad)


def test_fully_sharded_step():
    """Weights are gathered where they are used, and their gradients scattered."""
    torch.manual_seed(0)
    whole = torch.randn(8, 4), torch.randn(4, 8)

    def loss(up, down, x):
        return (torch.relu(x @ up.T) @ down.T).square().mean()

    def build():
        rank = dist.get_rank()

        def step(*args):
            *shards, x = args
            weights = [all_gather_tensor(shard, 0, dist.group.WORLD) for shard in shards]
            gradients = torch.func.grad(loss, (0, 1))(*weights, x)
            return [reduce_scatter_tensor(g, "avg", 0, dist.group.WORLD) for g in gradients]

        return step, *(w.chunk(4)[rank].clone() for w in whole), data(rank, torch.float32)

    lowered = lower_spmd(build, 4)
    counts = lowered.programs["inference"].ops()
    assert (counts["all_gather"], counts["reduce_scatter"]) == (2, 2)
    x = torch.cat([data(rank, torch.float32) for rank in range(4)])
    expected = torch.func.grad(loss, (0, 1))(*whole, x)
    for rank, shards in enumerate(lowered.run_spmd()):
        for shard, gradient in zip(shards, expected, strict=True):
            assert_close(shard, gradient.chunk(4)[rank])


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))


class Attention(nn.Module):
    """Each rank has some of the heads."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 16, bias=False) for _ in range(3))
        self.out = nn.Linear(16, 8)

    def forward(self, x):
        q, k, v = (w(x).unflatten(-1, (-1, 2)).transpose(1, 2) for w in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


PLANS = {
    "mlp": (
        Mlp,
        {"up": lambda: ColwiseParallel(), "down": lambda: RowwiseParallel()},
    ),
    "mlp, sequence parallel": (
        Mlp,
        {
            "norm": lambda: SequenceParallel(use_local_output=True),
            "up": lambda: ColwiseParallel(input_layouts=Shard(1)),
            "down": lambda: RowwiseParallel(output_layouts=Replicate()),
        },
    ),
    "attention": (
        Attention,
        {**dict.fromkeys("qkv", lambda: ColwiseParallel()), "out": lambda: RowwiseParallel()},
    ),
}


def model_of(name):
    torch.manual_seed(0)
    module, plan = PLANS[name]
    return module(), {key: make() for key, make in plan.items()}


@pytest.mark.parametrize("name", PLANS)
def test_tensor_parallel_modules(name):
    x = torch.randn(2, 4, 8)

    def build():
        model, plan = model_of(name)
        mesh = init_device_mesh("cpu", (4,))
        # Without a source rank: each has all of the weights, and keeps its part.
        parallelize_module(model, mesh, plan, src_data_rank=None)
        if name != "mlp, sequence parallel":
            return model, x

        # The residual is of a sequence that is sharded: this rank's part of it.
        def fn(part):
            hidden = model.up(DTensor.from_local(model.norm(part), mesh, [Shard(1)], run_check=False))
            return model.down(torch.nn.functional.gelu(hidden))

        return fn, x.chunk(4, 1)[dist.get_rank()].clone()

    model, _ = model_of(name)
    expected = model(x) - (x if name == "mlp, sequence parallel" else 0)
    for [result] in lower_spmd(build, 4).run_spmd():
        assert_close(result, expected)


@pytest.mark.parametrize("ranks", [4])
def test_redistribution(ranks):
    """Every placement to every other, of a tensor that each rank has a part of."""
    placements = [Shard(0), Shard(1), Shard(2), Replicate()]
    torch.manual_seed(0)
    whole = torch.randn(4, 8, 4)
    part = {p: whole.chunk(ranks, p.dim) if p.is_shard() else [whole] * ranks for p in placements}
    addends = torch.randn(ranks, *whole.shape)
    part[Partial()] = list(addends)
    pairs = [(a, b) for a in part for b in placements if a != b]

    def build():
        rank, mesh = dist.get_rank(), init_device_mesh("cpu", (ranks,))

        def fn(*parts):
            shards = (
                DTensor.from_local(x, mesh, [a], run_check=False)
                for x, (a, _) in zip(parts, pairs, strict=True)
            )
            return [x.redistribute(mesh, [b]).to_local() for x, (_, b) in zip(shards, pairs, strict=True)]

        return fn, *(part[a][rank].clone() for a, _ in pairs)

    lowered = lower_spmd(build, ranks)
    counts = lowered.programs["inference"].ops()
    assert "concatenate" not in counts, counts
    for rank, results in enumerate(lowered.run_spmd()):
        for result, (a, b) in zip(results, pairs, strict=True):
            of = addends.sum(0) if a.is_partial() else whole
            assert_close(
                result,
                of.chunk(ranks, b.dim)[rank] if b.is_shard() else of,
                msg=lambda m, p=(a, b): f"{p}: {m}",
            )


@pytest.mark.parametrize(
    ("a", "b"), [(Shard(1), Replicate()), (Partial(), Shard(1)), (Shard(1), Shard(2))], ids=str
)
def test_redistribution_is_of_one_size(a, b):
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def operations(ranks):
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
        try:
            mesh = init_device_mesh("cpu", (ranks,))

            def fn(x):
                return DTensor.from_local(x, mesh, [a], run_check=False).redistribute(mesh, [b]).to_local()

            shape = (2, 1, 256) if a.is_shard() else (2, 256, 4)
            return lower(fn, torch.ones(shape)).programs["inference"].ops()
        finally:
            dist.destroy_process_group()

    few, many = operations(8), operations(256)
    assert few == many
    assert sum(few.get(name, 0) for name in ("all_gather", "reduce_scatter", "all_to_all")) == 1
    assert sum(many.values()) <= 5


@P2P
@torch._dynamo.config.patch(enable_p2p_compilation=True)
def test_a_ring_of_sends_is_a_permutation():
    """Both ways at once, in a ring of each row of a mesh, and around all."""

    def build():
        mesh = init_device_mesh("cpu", (2, 4))
        group, rank = mesh.get_group(1), dist.get_rank()

        def exchanged(tensors, ranks, group):
            at = ranks.index(rank)
            peers = ranks[(at + 1) % len(ranks)], ranks[at - 1]
            got = [torch.empty_like(t) for t in tensors]
            batch = [dist.P2POp(dist.isend, t, peers[i], group) for i, t in enumerate(tensors)]
            batch += [dist.P2POp(dist.irecv, t, peers[1 - i], group) for i, t in enumerate(got)]
            for work in dist.batch_isend_irecv(batch):
                work.wait()
            return got

        def fn(x):
            row = exchanged([x, x * 2], dist.get_process_group_ranks(group), group)
            return *row, *exchanged([row[0].sin()], list(range(8)), dist.group.WORLD)

        return fn, data(rank, torch.float32)

    lowered = lower_spmd(build, 8)
    assert lowered.programs["inference"].ops()["collective_permute"] == 3
    x = [data(rank, torch.float32) for rank in range(8)]
    rows = [[0, 1, 2, 3], [4, 5, 6, 7]]
    before = {rank: row[i - 1] for row in rows for i, rank in enumerate(row)}
    after = {b: a for a, b in before.items()}
    for rank, (ahead, back, around) in enumerate(lowered.run_spmd()):
        assert_close(ahead, x[before[rank]])
        assert_close(back, 2 * x[after[rank]])
        assert_close(around, x[before[(rank - 1) % 8]].sin())


@P2P
@torch._dynamo.config.patch(enable_p2p_compilation=True)
def test_sends_that_are_no_permutation_are_refused():
    def build(peer_of):
        rank = dist.get_rank()

        def fn(x):
            got = torch.empty_like(x)
            batch = [dist.P2POp(dist.isend, x, peer_of(rank)), dist.P2POp(dist.irecv, got, (rank - 1) % 4)]
            for work in dist.batch_isend_irecv(batch):
                work.wait()
            return got

        return fn, torch.ones(2)

    with pytest.raises(
        TorchTPUError, match="what rank 0 gets from rank 3 is not sent by every rank in the same place"
    ):
        lower_spmd(lambda: build(lambda rank: (rank + 2) % 4), 4)
    with as_rank(0, 4), pytest.raises(TorchTPUError, match="to whom the other ranks send.* is not known"):
        lower(*build(lambda rank: (rank + 1) % 4))


def test_single_sends_break_the_graph():
    """Torch traces them only where it is told to, and what one rank sends alone is no collective."""

    def fn(x):
        dist.isend(x, 1).wait()
        return x + 1

    with as_rank(0, 4):
        with pytest.raises(torch._dynamo.exc.Unsupported, match="P2P compilation"):
            lower(fn, torch.ones(2))
        assert_close(torch.compile(fn, backend="tpu")(torch.ones(2)), torch.full((2,), 2.0))


def test_uneven_shards():
    """7 rows over 4 ranks are padded to 2 each; what is padded is of another number on the last rank, which no single
    program has."""

    def build():
        rank, mesh = dist.get_rank(), init_device_mesh("cpu", (4,))

        def fn(x):
            x = DTensor.from_local(x, mesh, [Shard(0)], run_check=False, shape=(7, 3), stride=(3, 1))
            return x.redistribute(mesh, [Replicate()]).to_local()

        return fn, torch.ones(1 if rank == 3 else 2, 3)

    with pytest.raises(TorchTPUError, match=r"input `.*` is f32\[1,3\] on rank 3 and f32\[2,3\] on rank 0"):
        lower_spmd(build, 4)


def test_rows_of_a_vocabulary_begin_elsewhere_on_every_rank():
    def embedding():
        torch.manual_seed(0)
        return nn.Embedding(16, 8)

    tokens = torch.arange(16).reshape(2, 8)

    def build():
        model, mesh = embedding(), init_device_mesh("cpu", (4,))
        parallelize_module(model, mesh, RowwiseParallel(input_layouts=Replicate()), src_data_rank=None)
        return model, tokens

    for [result] in lower_spmd(build, 4).run_spmd():
        assert_close(result, embedding()(tokens))


def test_what_ranks_may_differ_in():
    def build():
        rank = dist.get_rank()
        table = torch.arange(4.0) + rank

        def fn(x):
            return x + rank, x * 2.5**rank, x.chunk(4)[rank], x[rank::4], x[:, rank], x + table, x.roll(0)

        return fn, torch.arange(32.0).reshape(8, 4)

    x = torch.arange(32.0).reshape(8, 4)
    for rank, results in enumerate(lower_spmd(build, 4).run_spmd()):
        expected = (
            x + rank,
            x * 2.5**rank,
            x.chunk(4)[rank],
            x[rank::4],
            x[:, rank],
            x + (torch.arange(4.0) + rank),
            x,
        )
        for result, value in zip(results, expected, strict=True):
            assert_close(result, value)


def test_ranks_that_differ_in_more_than_numbers_are_refused():
    def other_operation():
        rank = dist.get_rank()
        return lambda x: x.sin() if rank == 2 else x.cos(), torch.ones(3)

    with pytest.raises(TorchTPUError, match="rank 2 does something else here than rank 0: `sine") as caught:
        lower_spmd(other_operation, 3)
    assert "test_spmd.py" in str(caught.value)

    def other_setting():
        rank = dist.get_rank()
        return lambda x: x.sum(1 if rank == 1 else 0), torch.ones(3, 3)

    with pytest.raises(TorchTPUError, match="rank 1 does something else here than rank 0"):
        lower_spmd(other_setting, 2)

    def other_shape():
        return lambda x: x + 1, torch.ones(3 + dist.get_rank())

    with pytest.raises(TorchTPUError, match=r"is f32\[4\] on rank 1 and f32\[3\] on rank 0"):
        lower_spmd(other_shape, 2)

    def other_source():
        rank = dist.get_rank()
        return lambda x: broadcast(x, rank, dist.group.WORLD), torch.ones(2)

    with pytest.raises(
        TorchTPUError, match=r"\[0, 1, 2\] broadcast .* rank 0 from 0, rank 1 from 1"
    ) as caught:
        lower_spmd(other_source, 3)
    assert "test_spmd.py" in str(caught.value)


def test_each_group_has_its_own_source():
    def build():
        mesh, rank = init_device_mesh("cpu", (2, 3)), dist.get_rank()
        group = mesh.get_group(1)
        return lambda x: broadcast(x, rank // 3, group), torch.full((2,), float(rank))

    results = lower_spmd(build, 6).run_spmd()
    assert [result.tolist() for (result,) in results] == [[source] * 2 for source in (0, 0, 0, 4, 4, 4)]


def test_no_rows():
    def build():
        group = dist.group.WORLD

        def fn(x):
            return [
                all_gather_tensor(x, 0, group),
                all_gather_tensor(x, 1, group),
                all_reduce(x, "sum", group),
                all_to_all_single(x, None, None, group),
                broadcast(x, 1, group),
                reduce_scatter_tensor(x, "sum", 0, group),
            ]

        return fn, torch.ones(0, 3)

    for results in lower_spmd(build, 3).run_spmd():
        assert [tuple(result.shape) for result in results] == [(0, 3), (0, 9), *[(0, 3)] * 4]


def test_what_one_rank_traced_is_not_run_for_all():
    program = lower(lambda x: x + 1, torch.ones(2)).programs["inference"]
    with pytest.raises(TorchTPUError, match="is what one rank traced, and others may have other numbers"):
        program.run_spmd([[torch.ones(2)]])


def test_wrong_inputs_are_named():
    def build():
        return lambda x: all_reduce(x, "sum", dist.group.WORLD), torch.ones(2)

    program = lower_spmd(build, 4).programs["inference"]
    [[result], *_] = program.run_spmd([[torch.ones(2)]] * 4)
    assert_close(result, torch.full((2,), 4.0))
    with pytest.raises(TorchTPUError, match="is for 4 ranks, not 3"):
        program.run_spmd([[torch.ones(2)]] * 3)
    with pytest.raises(TorchTPUError, match=r"rank 2: .* was compiled for f32\[2\] as `.*`, not f32\[3\]"):
        program.run_spmd([[torch.ones(3 if rank == 2 else 2)] for rank in range(4)])
    with pytest.raises(TorchTPUError, match="rank 1: .* takes 1 tensors, not 2"):
        program.run_spmd([[torch.ones(2)] * (2 if rank == 1 else 1) for rank in range(4)])


def test_what_is_written_is_written_for_each_rank():
    def build():
        def fn(x):
            return x.add_(all_reduce(x, "sum", dist.group.WORLD))

        return fn, torch.ones(2)

    program = lower_spmd(build, 2).programs["inference"]
    tensors = [torch.ones(2), torch.full((2,), 3.0)]
    program.run_spmd([[t] for t in tensors])
    assert [t.tolist() for t in tensors] == [[5.0, 5.0], [7.0, 7.0]]
    with pytest.raises(TorchTPUError, match="rank 1: input `.*` is written, and is another rank's too"):
        program.run_spmd([tensors[:1], tensors[:1]])


def test_all_ranks_draw_the_same():
    lowered = lower_spmd(lambda: (lambda x: torch.rand_like(x), torch.ones(64)), 2)
    torch.manual_seed(0)
    [first], [second] = lowered.run_spmd()
    assert torch.equal(first, second)
    assert not torch.equal(first, lowered.run_spmd()[0][0])


def test_ring():
    def build():
        ring = [1, 2, 3, 0]
        return lambda x: permute_tensor(x, ring, dist.group.WORLD), data(dist.get_rank(), torch.float32, (6,))

    lowered = lower_spmd(build, 4)
    assert lowered.programs["inference"].ops()["collective_permute"] == 1
    for rank, [result] in enumerate(lowered.run_spmd()):
        assert_close(result, data((rank - 1) % 4, torch.float32, (6,)))


def test_parts_of_different_sizes():
    sizes = [[1, 2, 0, 3], [0, 3, 1, 2], [4, 0, 1, 1], [1, 1, 4, 0]]  # by sender; all ranks get 6 rows

    def build():
        rank = dist.get_rank()
        gets = [sizes[sender][rank] for sender in range(4)]
        return lambda x: all_to_all_single(x, gets, sizes[rank], dist.group.WORLD), data(
            rank, torch.float32, (6, 2)
        )

    parts = [data(rank, torch.float32, (6, 2)).split(sizes[rank]) for rank in range(4)]
    for rank, [result] in enumerate(lower_spmd(build, 4).run_spmd()):
        assert_close(result, torch.cat([part[rank] for part in parts]))


@pytest.mark.parametrize("placements", [(Shard(0), Replicate()), (Shard(0), Shard(1))])
def test_meshes_of_two_dimensions(placements):
    """DTensor keeps how it shards results with the mesh of one rank, and each rank has another."""
    whole = torch.arange(64.0).reshape(8, 8)

    def build():
        mesh = init_device_mesh("cpu", (2, 2))
        x = distribute_tensor(whole, mesh, placements, src_data_rank=None)
        return (lambda x: (x * 2).sum(0).full_tensor()), x

    for (found,) in lower_spmd(build, 4).run_spmd():
        assert_close(found, whole.sum(0) * 2)


def test_a_process_group_of_the_callers_is_left_alone():
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        with pytest.raises(TorchTPUError, match="there is one already"):
            lower_spmd(lambda: (torch.sin, torch.ones(2)), 2)
    finally:
        dist.destroy_process_group()
