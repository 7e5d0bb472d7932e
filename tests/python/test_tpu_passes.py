"""The passes for TPUs, run by devices of the CPU: the same numbers as without them, and as eager's in one process."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed._functional_collectives import (
    all_gather_tensor,
    all_reduce,
    all_to_all_single,
    reduce_scatter_tensor,
)
from torch.testing import assert_close

from torchtpu_dynamo import lower, lower_spmd

ROWS, WIDTH, FEATURES = 8192, 256, 512
OVERLAPS = {"early_sums", "exchange", "ring", "ring_gradients", "scatter_sums"}


def weights() -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = (ROWS, WIDTH), (WIDTH, FEATURES), (FEATURES, WIDTH), (WIDTH, FEATURES)
    return [torch.randn(shape) / shape[0] ** 0.5 for shape in shapes]


def layer(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """In one process."""
    y = x + F.silu(x @ up) @ down
    return F.rms_norm(y, (WIDTH,)) @ last


def tensor_parallel(ranks: int, sequence: bool):
    """As `layer`, of a rank's features; between the products either a part of the rows, or sums of all of them."""

    def build():
        rank, world = dist.get_rank(), dist.group.WORLD
        x, up, down, last = weights()
        up, last = (w.chunk(ranks, 1)[rank].contiguous() for w in (up, last))
        down = down.chunk(ranks, 0)[rank].contiguous()

        def fn(x, up, down, last):
            if not sequence:
                y = x + all_reduce(F.silu(x @ up) @ down, "sum", world)
                return F.rms_norm(y, (WIDTH,)) @ last
            gathered = all_gather_tensor(x * 1.0, 0, world)
            y = x + reduce_scatter_tensor(F.silu(gathered @ up) @ down, "sum", 0, world)
            return all_gather_tensor(F.rms_norm(y, (WIDTH,)), 0, world) @ last

        return fn, (x.chunk(ranks)[rank].contiguous() if sequence else x), up, down, last

    return build


def gradient(ranks: int):
    """The gradient of a weight over the rows of all ranks, a part of it for each."""

    def build():
        rank, world = dist.get_rank(), dist.group.WORLD
        x = weights()[0].chunk(ranks)[rank].contiguous()
        torch.manual_seed(1)
        cotangent = torch.randn(ROWS, 8192).chunk(ranks)[rank].contiguous()
        return lambda x, g: reduce_scatter_tensor(g.T @ x, "sum", 0, world), x, cotangent

    return build


def both(build, ranks: int) -> tuple[list[list[torch.Tensor]], set[str]]:
    """What the passes give, compared with what the program gives without them, and which of them did something."""
    plain = lower_spmd(build, ranks)
    rehearsed = lower_spmd(build, ranks, options={"tpu_passes": True})
    did = {r["name"] for r in rehearsed.programs["inference"].for_tpu().pass_reports() if r["rewrites"]}
    found = rehearsed.run_spmd()
    assert_close(found, plain.run_spmd())
    return found, did & OVERLAPS


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("sequence", [True, False])
def test_tensor_parallelism(ranks: int, sequence: bool) -> None:
    found, did = both(tensor_parallel(ranks, sequence), ranks)
    assert did == ({"ring"} if sequence else {"ring", "scatter_sums"})
    assert_close(torch.cat([result for (result,) in found], 1), layer(*weights()))


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_gradients(ranks: int) -> None:
    found, did = both(gradient(ranks), ranks)
    assert did == {"ring_gradients"}
    torch.manual_seed(1)
    expected = torch.randn(ROWS, 8192).T @ weights()[0]
    assert_close(torch.cat([result for (result,) in found]), expected)


def expert_parallel(ranks: int, local: int):
    """Each rank's rows to the experts of all ranks, of which it has some, and back: `[expert, row, width]`."""

    def build():
        rank, world = dist.get_rank(), dist.group.WORLD
        x, up, down = (w.chunk(ranks)[rank].contiguous() for w in experts(ranks, local))

        def fn(x, up, down):
            sent = all_to_all_single(x.flatten(0, 1) * 1.0, None, None, world)
            sent = sent.view(ranks, local, -1, WIDTH).transpose(0, 1).flatten(1, 2)
            y = F.silu(sent @ up) @ down
            y = y.unflatten(1, (ranks, -1)).transpose(0, 1).reshape(-1, WIDTH)
            return all_to_all_single(y, None, None, world).view_as(x)

        return fn, x, up, down

    return build


def experts(ranks: int, local: int) -> list[torch.Tensor]:
    """The rows of all ranks for each expert, and the weights of all experts."""
    torch.manual_seed(0)
    count = ranks * local
    shapes = (ranks * count, 1024, WIDTH), (count, WIDTH, FEATURES), (count, FEATURES, WIDTH)
    return [torch.randn(shape) / WIDTH**0.5 for shape in shapes]


@pytest.mark.parametrize("local", [1, 2])
def test_expert_parallelism(local: int) -> None:
    found, did = both(expert_parallel(4, local), 4)
    assert did == {"exchange"}
    x, up, down = experts(4, local)
    expected = F.silu(x.unflatten(0, (4, -1)) @ up) @ down
    assert_close(torch.cat([result for (result,) in found]), expected.flatten(0, 1))


class Attention(torch.nn.Module):
    """Grouped heads between products, with a gate behind them: what the passes for one chip are for."""

    def __init__(self, width: int = 256, heads: int = 16, key_heads: int = 4):
        super().__init__()
        self.heads, self.key_heads, self.size = heads, key_heads, 64
        self.norm = torch.nn.LayerNorm(width)
        self.q = torch.nn.Linear(width, heads * self.size, bias=False)
        self.kv = torch.nn.Linear(width, 2 * key_heads * self.size, bias=False)
        self.o = torch.nn.Linear(heads * self.size, width, bias=False)
        self.gate, self.up = torch.nn.Linear(width, 1024), torch.nn.Linear(width, 1024)
        self.down = torch.nn.Linear(1024, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.shape[1]
        y = self.norm(x)
        q = self.q(y).view(1, rows, self.heads, self.size).transpose(1, 2)
        k, v = self.kv(y).view(1, rows, 2, self.key_heads, self.size).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).reshape(1, rows, -1))
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


class Decoding(Attention):
    """A token more, with keys and values of those before, which are held where a position is written over."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("past", torch.randn(2, 1, self.key_heads, 512, self.size))

    def forward(self, x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        q = self.q(x).view(1, 1, self.heads, self.size).transpose(1, 2)
        new = self.kv(x).view(1, 1, 2, self.key_heads, self.size).permute(2, 0, 3, 1, 4)
        self.past.index_copy_(3, at, new)
        k, v = (t.repeat_interleave(self.heads // self.key_heads, 1) for t in self.past)
        mask = (torch.arange(512) <= at).view(1, 512)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.down(F.silu(self.gate(x)) * self.up(x)) + self.o(y.transpose(1, 2).reshape(1, 1, -1))


def test_a_step_of_decoding() -> None:
    """One row and few queries: the weights are read by the matrix unit, and keys without copies."""
    torch.manual_seed(0)
    module, x, at = Decoding().eval(), torch.randn(1, 1, 256), torch.tensor([300])
    prepared = lower(module, x, at).programs["inference"].for_tpu()
    assert {"share_heads", "widen_rows"} <= {r["name"] for r in prepared.pass_reports() if r["rewrites"]}
    assert "[1,16,512,64]" not in prepared.graph_text()
    past = module.past.clone()
    results = []
    for options in ({}, {"tpu_passes": True}):
        torch._dynamo.reset()
        module.past.copy_(past)
        with torch.no_grad():
            results.append(torch.compile(module, backend="tpu", fullgraph=True, options=options)(x, at))
    assert_close(results[1], results[0])


class Stem(torch.nn.Module):
    """The first stage of a ResNet, the step to the second, and the mean of what that gives."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.block(3, 64, 7, stride=2, padding=3)
        self.narrow, self.same = self.block(64, 64, 1), self.block(64, 64, 3, padding=1)
        self.wide, self.step = torch.nn.Conv2d(64, 128, 1), self.block(128, 128, 3, stride=2, padding=1)

    @staticmethod
    def block(*sizes: int, **window: int) -> torch.nn.Sequential:
        norm = torch.nn.BatchNorm2d(sizes[1])
        torch.nn.init.normal_(norm.running_mean)
        torch.nn.init.uniform_(norm.running_var, 0.5, 2)
        return torch.nn.Sequential(torch.nn.Conv2d(*sizes, **window), norm, torch.nn.SiLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(self.first(x), 3, stride=2, padding=1)
        x = x + self.same(self.narrow(x))
        return self.step(F.relu(self.wide(x))).mean((2, 3))


def test_columns_of_images() -> None:
    """Pairs of columns from the image to the step between two stages."""
    torch.manual_seed(0)
    module, x = Stem().eval(), torch.randn(48, 3, 112, 112)
    prepared = lower(module, x).programs["inference"].for_tpu()
    assert "pack_columns" in {r["name"] for r in prepared.pass_reports() if r["rewrites"]}
    assert "[48,256,56,14]" in prepared.graph_text() and "[48,64,56,56]" not in prepared.graph_text()
    results = []
    for options in ({}, {"tpu_passes": True}):
        torch._dynamo.reset()
        with torch.no_grad():
            results.append(torch.compile(module, backend="tpu", fullgraph=True, options=options)(x))
    assert_close(results[1], results[0])


def test_one_chip() -> None:
    """Forward and backward of a layer in the form that it has on a TPU: tiles, and a loop over memory that nobody set."""
    torch.manual_seed(0)
    module, x = Attention(), torch.randn(1, 1024, 256, requires_grad=True)
    programs = lower(module, x, train=True).programs
    forward, backward = (
        {r["name"] for r in programs[kind].for_tpu().pass_reports() if r["rewrites"]}
        for kind in ("forward", "backward")
    )
    assert {"repeat_heads", "normalize_first", "one_pass_variance", "tile_batch"} <= forward
    assert "tile_batch" in backward and "allocate" in programs["backward"].for_tpu().graph_text()
    cotangent = torch.randn(1, 1024, 256) / 32
    results = []
    for options in ({}, {"tpu_passes": True}):
        torch._dynamo.reset()
        module.zero_grad()
        x.grad = None
        y = torch.compile(module, backend="tpu", options=options)(x)
        y.backward(cotangent)
        results.append([y.detach(), x.grad.clone(), *(p.grad.clone() for p in module.parameters())])
    assert_close(results[1], results[0])
