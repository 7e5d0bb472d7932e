"""`explain`: what it reports, and that it leaves nothing behind."""

from html.parser import HTMLParser

import pytest
import torch
from torch import Tensor, nn

import torchtpu_dynamo
from torchtpu_dynamo import explain
from torchtpu_dynamo.spmd import as_rank

VOID = {"meta", "rect", "path", "br"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and gathers them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 64)
        self.norm = nn.BatchNorm1d(64)
        self.second = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(self.first(x)).relu()).softmax(-1)


def with_breaks(x: Tensor) -> Tensor:
    y = x.sin()
    if y.sum() > 100:
        y = y * 2
    return y.cos()


def test_a_graph() -> None:
    report = explain(lambda a, b: (a @ b).relu().sum(), torch.randn(16, 32), torch.randn(32, 8))
    (graph,) = report.graphs
    assert (graph.kind, graph.error) == ("inference", None)
    assert graph.families == {"linear": 1, "pointwise": 1, "reduce": 1}
    assert {node.line.rpartition(":")[0] for node in graph.nodes if node.line} == {__file__}
    assert graph.program is not None
    assert graph.program["flops"] == 2 * 16 * 32 * 8 + 16 * 8 + 16 * 8
    assert graph.program["memory"]["arguments"] == 4 * (16 * 32 + 32 * 8)
    product = next(node for node in graph.nodes if node.target == "aten.mm.default")
    assert product.flops == 2 * 16 * 32 * 8
    assert {"export", "import", "lower", "passes", "emit", "xla"} <= set(graph.stages)
    assert graph.passes
    assert not report.breaks


def test_what_the_plugin_says() -> None:
    (graph,) = explain(lambda x: (x.sin() + x.cos()).exp(), torch.randn(64, 64)).graphs
    assert graph.xla is not None
    (fusion,) = graph.xla["hlo"]["fusions"]
    assert {"sine", "cosine", "exponential"} <= set(fusion["ops"])
    assert fusion["bytes"] == 4 * 64 * 64
    assert any(line.startswith(f"{__file__}:") for line in fusion["lines"])
    assert graph.xla["memory"]["arguments"] == 4 * 64 * 64


@pytest.mark.parametrize("train", [False, True])
def test_predicted_memory_is_that_of_the_plugin(train: bool) -> None:
    """Within 15% of arguments, results and temporaries together, on a network of products and pointwise parts."""
    net = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10))
    for graph in explain(net, torch.randn(512, 64), train=train).graphs:
        assert graph.program is not None
        assert graph.xla is not None
        memory = graph.xla["memory"]
        taken = memory["arguments"] + memory["outputs"] + memory["temporaries"] - memory["alias"]
        peak = graph.program["memory"]["fused"]["bytes"]
        assert 0.85 < peak / taken < 1.15
        assert peak <= graph.program["memory"]["unfused"]["bytes"]


def test_training() -> None:
    report = explain(Net(), torch.randn(4, 32), train=True)
    assert [graph.kind for graph in report.graphs] == ["forward", "backward"]


def test_the_peak_names_tensors_and_lines() -> None:
    report = explain(lambda x: (x @ x.T).exp().sum(), torch.randn(64, 8))
    assert report.graphs[0].program is not None
    program = report.graphs[0].program
    largest = program["memory"]["fused"]["tensors"][0]
    assert (largest["type"], largest["bytes"]) == ("f32[64,64]", 4 * 64 * 64)
    assert program["nodes"][largest["node"]]["line"].startswith(__file__)


def test_breaks() -> None:
    report = explain(with_breaks, torch.randn(4))
    assert len(report.graphs) == 2
    (broken,) = report.breaks
    file, line, function = broken.lines[0]
    assert (file, line, function) == (__file__, with_breaks.__code__.co_firstlineno + 2, "with_breaks")
    assert "break 1" in str(report)


def test_one_graph_is_not_run() -> None:
    ran = []

    def fn(x: Tensor) -> Tensor:
        y = x.add_(1)
        ran.append(1)
        return y

    x = torch.zeros(2)
    explain(fn, x)
    assert x.tolist() == [0, 0]
    assert not ran


def test_tensors_and_random_numbers_are_put_back() -> None:
    net = Net()
    frozen = torch.zeros(4, 8)

    def fn(x: Tensor, other: Tensor) -> Tensor:
        y = net(x)
        torch._dynamo.graph_break()
        frozen.add_(1)
        other.mul_(2)
        loss = (y + torch.rand(4, 8)).sum()
        loss.backward()
        return loss

    x, other = torch.ones(4, 32), torch.ones(4)
    state = torch.get_rng_state()
    report = explain(fn, x, other, train=True)
    assert report.breaks
    assert torch.equal(torch.get_rng_state(), state)
    assert net.norm.num_batches_tracked == 0
    assert net.norm.running_mean is not None
    assert not net.norm.running_mean.any()
    assert net.first.weight.grad is None
    assert other.eq(1).all()
    assert not frozen.any()


@pytest.mark.parametrize("fn", [with_breaks, torch.sin], ids=["breaks", "whole"])
def test_later_compilations_are_as_without(fn: object) -> None:
    before = torchtpu_dynamo.stats()
    explain(fn, torch.randn(4))  # type: ignore[arg-type]
    assert torchtpu_dynamo.stats() == before
    compiled = torch.compile(fn, backend="torchtpu_dynamo")  # type: ignore[call-overload]
    compiled(torch.randn(4))
    assert torchtpu_dynamo.stats().compilations == (2 if fn is with_breaks else 1)
    assert not torchtpu_dynamo.stats().recompilations


def test_earlier_compilations_stay() -> None:
    def fn(x: Tensor) -> Tensor:
        return x + 1

    compiled = torch.compile(fn, backend="torchtpu_dynamo")
    compiled(torch.ones(2))
    explain(compiled, torch.ones(2))
    compiled(torch.ones(2))
    assert torchtpu_dynamo.stats().compilations == 1


def test_recompilations_of_the_function() -> None:
    def fn(x: Tensor) -> Tensor:
        return x + 1

    def other(x: Tensor) -> Tensor:
        return x * 2

    for function in (fn, other):
        compiled = torch.compile(function, backend="torchtpu_dynamo", dynamic=False)
        compiled(torch.ones(2))
        compiled(torch.ones(3))
        noted = explain(compiled, torch.ones(2)).recompilations
        assert len(noted) == 1
        assert "size" in noted[0].reason
    assert "recompiled" in str(explain(fn, torch.ones(2)))


def test_a_graph_that_is_refused() -> None:
    report = explain(lambda x: torch.linalg.eig(x)[1].real + 1, torch.eye(2))
    (graph,) = report.graphs
    assert graph.error is not None
    assert "linalg_eig" in graph.error
    assert graph.nodes
    assert "linalg_eig" in str(report)
    assert "linalg_eig" in report.to_html()


def test_nothing_to_compile() -> None:
    report = explain(lambda x: 3, torch.ones(2))
    assert not report.graphs
    assert "0 graphs" in str(report)
    Page(report.to_html())


def test_text_fits() -> None:
    text = str(explain(Net(), torch.randn(4, 32), train=True))
    assert max(map(len, text.splitlines())) <= 100
    for words in ("2 graphs", "families", "FLOP", "peak", "kernels", "test_explain.py:"):
        assert words in text


def test_page() -> None:
    text = explain(Net(), torch.randn(4, 32), train=True).to_html()
    page = Page(text)
    assert page.tags.count("svg") == 4
    assert {"table", "details", "title", "style"} <= set(page.tags)
    assert "script" not in page.tags
    assert "http" not in text
    assert len(text) < 200_000


def test_page_of_many_operators() -> None:
    def fn(x: Tensor) -> Tensor:
        for _ in range(40):
            x = (x + 1).sin()
            x = x * 2
        return x

    report = explain(fn, torch.randn(4))
    assert len(report.graphs[0].nodes) == 120
    assert "fn: 2 operators" in "".join(Page(report.to_html()).text)


def test_page_escapes() -> None:
    scope = {}  # type: ignore[var-annotated]
    exec(compile("def fn(x):\n    return x.sin()", "/<script>alert(1)</script>.py", "exec"), scope)
    scope["fn"].__qualname__ = "<img src=x>"
    text = explain(scope["fn"], torch.randn(3)).to_html()
    assert "<script" not in text
    assert "<img" not in text
    Page(text)


def test_decisions_about_collectives():
    """What the passes for TPUs would do about each, with the user's line, or why it stays."""
    from torch.distributed._functional_collectives import all_gather_tensor, all_reduce

    world = torch.distributed.group

    def fn(x: Tensor, up: Tensor, down: Tensor, head: Tensor) -> tuple[Tensor, ...]:
        y = all_reduce(torch.relu(x @ up) @ down, "sum", world.WORLD)
        most = all_reduce(y.amax(1), "max", world.WORLD)
        rows = all_gather_tensor(y * 2, 0, world.WORLD)
        return y, most, rows @ head, all_gather_tensor(x, 0, world.WORLD) + 1

    with as_rank(1, 4):
        weights = torch.zeros(256, 512), torch.zeros(512, 256), torch.zeros(256, 64)
        report = explain(fn, torch.zeros(4096, 256), *weights)
    (graph,) = report.graphs
    said = {(d["op"].split()[0], d["line"].rpartition(":")[2], d["text"]) for d in graph.decisions}
    first = fn.__code__.co_firstlineno
    by_line = {int(line) - first: (op, text) for op, line, text in said}
    assert by_line[1][0] == "all_reduce" and by_line[1][1].startswith("stays: ")
    assert by_line[2] == ("all_reduce", "stays: it is no sum but max")
    assert by_line[3][0] == "all_gather" and by_line[3][1].startswith(
        "a ring of 4 parts of 4.19 MB beside products"
    )
    assert by_line[4] == ("all_gather", "stays: it is of an argument, and libtpu starts it early")
    assert by_line[3][1] in " ".join(str(report).split()) and by_line[3][1] in " ".join(
        Page(report.to_html()).text
    )
