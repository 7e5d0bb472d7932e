"""The payload says all there is to say: run by torch's own operators, it computes what eager does."""

import json
import linecache
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import PayloadInterpreter
from torch import Tensor, nn

from torchtpu_dynamo import backend
from torchtpu_dynamo.export import Exported, export, tensor_meta, user_frames
from torchtpu_dynamo.graph import arrange, boxed, resolve_outputs
from torchtpu_dynamo.options import Options


class Capture:
    """A backend that exports every graph and runs its payload with the interpreter."""

    def __init__(self) -> None:
        self.graphs: list[Exported] = []

    def __call__(self, gm: torch.fx.GraphModule, inputs: Any, **_: Any) -> Any:
        return backend.compile_with(gm, inputs, self.compile, Options())

    def compile(self, gm: torch.fx.GraphModule, kind: str, static: Any) -> Any:
        exported = export(gm, kind, "g", static)
        self.graphs.append(exported)

        def call(args: list[Any]) -> list[Any]:
            places = exported.symbols.items()
            bindings = {s: args[i] if dim is None else args[i].shape[dim] for s, (i, dim) in places}
            interpreter = PayloadInterpreter(exported.json, bindings)
            tensors = [args[i] for i in exported.tensor_inputs] + exported.constants
            with torch.no_grad():
                results = interpreter(tensors)
            return arrange(resolve_outputs(exported, bindings), results, dict(enumerate(args)))

        return boxed(call)

    def payload(self, index: int = 0) -> dict[str, Any]:
        return json.loads(self.graphs[index].json)


def check(fn: Callable[..., Any], *args: Any, dynamic: bool = False) -> Capture:
    """Compares with eager, and returns what was exported."""
    capture = Capture()
    with torch.no_grad():
        expected = fn(*args)
        actual = torch.compile(fn, backend=capture, fullgraph=True, dynamic=dynamic)(*args)
    torch.testing.assert_close(actual, expected, equal_nan=True)
    return capture


FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "schema defaults": lambda x: (x.add(1, alpha=3), torch.softmax(x, -1), x.sum(0, keepdim=True)),
    "keyword-only arguments": lambda x: (torch.full((2,), 3.5), torch.arange(1, 9, 2), x.to(torch.bfloat16)),
    "infinities": lambda x: (x.clamp(min=-float("inf")), x.masked_fill(x > 0, float("nan"))),
    "several results": lambda x: torch.topk(x, 2, dim=-1),
    "lists of tensors": lambda x: torch.cat([x, x, x], 1),
    "optional indices": lambda x: x[:, torch.tensor([0, 2])],
    "same value twice": lambda x: (lambda y: (y, y + 1, y))(x * 2),
    "views": lambda x: (x.t(), x[1:], x.unsqueeze(0), x.expand(2, *x.shape)),
    "no tensors": lambda x: (x + 1, None, 3),
    "bool and int": lambda x: ((x > 0) & (x < 1), x.argmax(), x.long() // 2),
    "complex": lambda x: (x * 1j).abs(),
    "memory format": lambda x: x.reshape(1, 1, *x.shape).contiguous(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_payload_means_what_eager_does(name: str) -> None:
    check(FUNCTIONS[name], torch.randn(3, 4))


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool, torch.complex64],
)
def test_small_constants_travel_in_the_payload(dtype: torch.dtype) -> None:
    constant = torch.tensor([[1, 0, 3], [0, 2, 1]]).to(dtype).t()
    capture = check(lambda x: torch.where(x > 0, constant, torch.tensor(1).to(dtype)), torch.randn(3, 2))
    (graph,) = capture.graphs
    assert graph.constants == []


def test_large_constants_are_passed() -> None:
    class Table(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.tensor(list(range(5000)))

    capture = check(Table(), torch.randn(5000))
    assert [c.shape for c in capture.graphs[0].constants] == [(5000,)]
    assert ["hex" in c for c in capture.payload()["constants"]] == [False]


def test_empty_constant() -> None:
    check(lambda x: torch.cat([x, torch.tensor([])]), torch.randn(3))


def test_parameters_are_static_and_named_for_the_backward() -> None:
    model = nn.Linear(3, 2)
    capture = Capture()
    torch.compile(model, backend=capture, fullgraph=True)(
        torch.randn(4, 3, requires_grad=True)
    ).sum().backward()
    forward, backward = capture.payload(0), capture.payload(1)
    assert [forward["kind"], backward["kind"]] == ["forward", "backward"]
    shapes = [i["val"]["shape"] for i in forward["inputs"] if i.get("static")]
    assert sorted(shapes) == [[2], [2, 3]]
    assert any(i.get("static") for i in backward["inputs"])
    assert not any(i.get("static") for i in backward["inputs"] if i["name"].startswith("tangents"))


def test_symbols_are_bound_by_numbers_and_sizes() -> None:
    def fn(x: Tensor, y: Tensor) -> Any:
        return torch.cat([x, y]).reshape(-1), x.shape[0] * 2 + y.shape[0], x.new_zeros(x.shape[0] // 2)

    capture = check(fn, torch.randn(6, 4), torch.randn(3, 4), dynamic=True)
    payload = capture.payload()
    assert [i["sym"] for i in payload["inputs"] if "sym" in i]
    assert not any("sym_size" in t["name"] or "_operator" in t["name"] for t in payload["targets"])


def test_mutation_is_an_ordinary_node() -> None:
    def fn(x: Tensor) -> Tensor:
        x.add_(1)
        return x * 2

    capture = Capture()
    x = torch.zeros(3)
    with torch.no_grad():
        assert torch.compile(fn, backend=capture, fullgraph=True)(x).tolist() == [2, 2, 2]
    assert x.tolist() == [1, 1, 1]
    payload = capture.payload()
    last = payload["nodes"][-1]
    assert payload["targets"][last["target"]]["name"] == "aten.copy_.default"
    assert last["args"][0] == {"v": 0}


def test_returned_inputs_are_not_sent_through() -> None:
    capture = check(lambda x, y: (x, y + 1), torch.randn(2), torch.randn(2))
    assert (
        all(kind == "tensor" for kind, _ in capture.graphs[0].outputs)
        or capture.graphs[0].outputs[0][0] == "input"
    )
    assert len(capture.payload()["outputs"]) == 1


def test_assertions_are_left_out() -> None:
    def fn(x: Tensor) -> Tensor:
        torch._check(x.shape[0] > 1)
        return x * 2

    payload = check(fn, torch.randn(3, 2), dynamic=True).payload()
    assert [t["name"] for t in payload["targets"]] == ["aten.mul.Tensor"]


def test_nodes_know_the_users_line() -> None:
    def fn(x: Tensor) -> Tensor:
        return x.sin()

    payload = check(fn, torch.randn(3)).payload()
    file, line, function = payload["stacks"][payload["nodes"][0]["stack"]][0]
    assert (file, function) == (__file__, "fn")
    assert "return x.sin()" in linecache.getline(file, line)


def test_library_lines_are_left_out_when_there_are_others() -> None:
    torch_line = f'  File "{nn.__file__}", line 1, in forward\n    pass\n'
    mine = '  File "/home/me/model.py", line 7, in forward\n    return self.layer(x)\n'
    assert user_frames(mine + torch_line) == [("/home/me/model.py", 7, "forward")]
    assert user_frames(torch_line) == [(nn.__file__, 1, "forward")]


def test_backward_nodes_have_lines() -> None:
    capture = Capture()

    def fn(x: Tensor) -> Tensor:
        return (x.sin() * x.exp()).sum()

    torch.compile(fn, backend=capture, fullgraph=True)(torch.randn(3, requires_grad=True)).backward()
    payload = capture.payload(1)
    assert payload["nodes"]
    assert all("stack" in n for n in payload["nodes"])


def test_unknown_operators_are_exported_by_name() -> None:
    def fn(x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,))

    names: list[str] = []

    def compile_one(gm: torch.fx.GraphModule, kind: str, static: Any) -> Any:
        names.extend(t["name"] for t in json.loads(export(gm, kind, "g", static).json)["targets"])
        return boxed(lambda args: gm(*args))

    def capture(gm: torch.fx.GraphModule, inputs: Any, **_: Any) -> Any:
        return backend.compile_with(gm, inputs, compile_one, Options())

    with torch.no_grad():
        torch.compile(fn, backend=capture, fullgraph=True)(torch.randn(3))
    assert "cond" in names


def test_meta_of_unusual_tensors() -> None:
    from torch._subclasses import FakeTensorMode

    assert tensor_meta(torch.zeros(2, 3, device="meta"))["device"] == "meta"
    assert tensor_meta(torch.zeros(2, 3).to_sparse())["layout"] == "sparse_coo"
    with FakeTensorMode():
        assert tensor_meta(torch.zeros(2, 3).t()) == {"dtype": "float32", "shape": [3, 2], "stride": [1, 3]}
