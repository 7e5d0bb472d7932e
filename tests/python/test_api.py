"""The public functions: import, lower, devices."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchtpu_dynamo
from torchtpu_dynamo import TorchTPUError, lower


def test_every_name_is_there() -> None:
    for name in torchtpu_dynamo.__all__:
        assert getattr(torchtpu_dynamo, name) is not None
    assert set(torchtpu_dynamo.__all__) <= set(dir(torchtpu_dynamo))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        torchtpu_dynamo.nothing  # noqa: B018


def test_no_name_is_that_of_a_module() -> None:
    """Importing the module would put it in the function's place."""
    folder = Path(torchtpu_dynamo.__file__).parent
    assert not {path.stem for path in folder.glob("*.py")} & set(torchtpu_dynamo.__all__)


def test_import_is_cheap() -> None:
    script = """
import time, torch, sys
before = set(sys.modules)
start = time.perf_counter()
import torchtpu_dynamo
print(time.perf_counter() - start)
assert not any(name.startswith(("torch._dynamo", "torch._inductor")) for name in set(sys.modules) - before)
"""
    seconds = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    assert float(seconds) < 0.3


def test_lower_inference() -> None:
    lowered = lower(nn.Linear(3, 2), torch.randn(4, 3))
    assert list(lowered.programs) == ["inference"]
    assert lowered.programs["inference"].ops()


def test_lower_training() -> None:
    lowered = lower(nn.Linear(3, 2), torch.randn(4, 3), train=True)
    assert list(lowered.programs) == ["forward", "backward"]
    assert [p.kind for p in lowered.programs.values()] == ["forward", "backward"]
    assert "// forward" in lowered.as_text()


def test_lower_a_function_of_inputs_that_need_gradients() -> None:
    lowered = lower(lambda x: x.sin(), torch.randn(3, requires_grad=True), train=True)
    assert list(lowered.programs) == ["forward", "backward"]


def test_programs_can_be_read() -> None:
    program = lower(lambda x: x.sin() + 1, torch.randn(4)).programs["inference"]
    assert "stablehlo.sine" in program.as_text()
    assert program.as_bytecode().startswith(b"ML\xefR")
    assert program.graph_text("before")
    assert program.graph_text("after")
    assert program.stage_times()


def test_lower_does_not_execute() -> None:
    x = torch.zeros(3)

    def fn(x: Tensor) -> Tensor:
        x.add_(1)
        return x * 2

    lower(fn, x)
    assert x.tolist() == [0, 0, 0]
    assert torchtpu_dynamo.stats().executions == 0
    model = nn.BatchNorm1d(3)
    lower(model, torch.randn(4, 3), train=True)
    assert model.num_batches_tracked.item() == 0
    assert model.weight.grad is None


def test_lower_needs_no_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHTPU_PLUGIN", "/does/not/exist.so")
    assert lower(lambda x: x + 1, torch.ones(2)).programs


def test_lower_many_times() -> None:
    for n in range(1, 14):
        assert lower(lambda x: x + 1, torch.ones(n)).programs


def test_lower_keyword_arguments() -> None:
    assert lower(lambda x, *, scale: x * scale, torch.ones(2), scale=torch.ones(2)).programs


def test_lower_what_is_compiled_already() -> None:
    compiled = torch.compile(nn.Linear(2, 2), backend="torchtpu_dynamo")
    assert lower(compiled, torch.ones(1, 2)).programs
    assert lower(torch.compile(lambda x: x + 1, backend="torchtpu_dynamo"), torch.ones(1)).programs


def test_lower_errors() -> None:
    with pytest.raises(TorchTPUError, match="nothing to lower"):
        lower(lambda x: 3, torch.ones(2))
    with pytest.raises(TorchTPUError, match="nothing to differentiate"):
        lower(lambda x: x + 1, torch.ones(2), train=True)
    with pytest.raises(TorchTPUError, match="linalg_eig"):
        lower(lambda x: torch.linalg.eig(x)[1].real, torch.eye(2))
    with pytest.raises(TorchTPUError, match="unknown option"):
        lower(lambda x: x + 1, torch.ones(2), options={"nothing": 1})


def test_lower_refuses_graph_breaks() -> None:
    def fn(x: Tensor) -> Tensor:
        y = x + 1
        torch._dynamo.graph_break()
        return y * 2

    with pytest.raises(torch._dynamo.exc.Unsupported):
        lower(fn, torch.ones(2))


def test_lower_leaves_the_callers_compilations_alone() -> None:
    def fn(x: Tensor) -> Tensor:
        return x + 1

    compiled = torch.compile(fn, backend="torchtpu_dynamo")
    compiled(torch.ones(2))
    lower(fn, torch.ones(2))
    compiled(torch.ones(2))
    assert torchtpu_dynamo.stats().compilations == 1


def test_devices() -> None:
    devices = torchtpu_dynamo.devices()
    assert devices
    assert all("id" in d and "kind" in d for d in devices)


def test_progress_appears_only_when_it_takes_long(monkeypatch: Any, capsys: Any) -> None:
    from torchtpu_dynamo import progress

    monkeypatch.setattr(progress, "PATIENCE", 0.05)
    monkeypatch.setattr(progress, "PERIOD", 0.02)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.Progress("quick"):
        pass
    assert capsys.readouterr().err == ""
    with progress.Progress("slow"):
        time.sleep(0.3)
    err = capsys.readouterr().err
    assert "compiling slow" in err
    assert err.endswith("\r\033[K")


def test_typed() -> None:
    assert (Path(torchtpu_dynamo.__file__).parent / "py.typed").exists()


def test_operators_that_torch_registers_when_first_used() -> None:
    pytest.importorskip("torch.nn.modules.linear_cross_entropy")
    code = """
import torch
torch.compile(lambda x: x + 1, backend="torchtpu_dynamo")(torch.ones(2))
import torch.nn.modules.linear_cross_entropy
loss = lambda x, w, t: torch.ops.torch_nn._linear_cross_entropy_batch_chunked_no_reduction(
    x, w, t, None, None, -100, 2, "auto", torch.float32
)
inputs = torch.randn(8, 4), torch.randn(5, 4), torch.arange(8) % 5
compiled = torch.compile(loss, backend="torchtpu_dynamo", fullgraph=True)
expected = torch.nn.functional.cross_entropy(inputs[0] @ inputs[1].T, inputs[2], reduction="none")
torch.testing.assert_close(compiled(*inputs), expected)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_graph_for_tpus():
    def attention(q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    q, k = (
        torch.zeros(1, 8, 2048, 64, dtype=torch.bfloat16),
        torch.zeros(1, 2, 2048, 64, dtype=torch.bfloat16),
    )
    program = lower(attention, q, k, k).programs["inference"]
    assert "f32[1,2,8192,2048]" in program.graph_text() and "f32[1,2,2048,2048]" not in program.graph_text()
    tiled = program.graph_text("tpu")
    assert tiled.count("dot_general") == 8 and tiled.count(": f32[1,2,2048,2048]") >= 8
    assert program.for_tpu().as_bytecode() != program.as_bytecode()
    whole = lower(attention, q, k, k, options={"disable_passes": ["tile_batch"]}).programs["inference"]
    assert whole.graph_text("tpu").count("dot_general") == 2
    with pytest.raises(ValueError, match='"before", "after" or "tpu"'):
        program.graph_text("gpu")


@pytest.mark.parametrize(
    ("module", "x", "topology", "chosen"),
    [
        (torch.nn.Conv2d(3, 8, 3).bfloat16(), torch.zeros(1, 3, 9, 9).bfloat16(), "v5e:2x2", 49152),
        (torch.nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 9, 9), "v5e:2x2", 16384),
        (torch.nn.Linear(3, 8), torch.zeros(2, 3), "v5e:1x1", 65536),
        (torch.nn.Linear(1024, 1024), torch.zeros(512, 1024), "v5e:1x1", 32768),
        (torch.nn.Linear(3, 8), torch.zeros(2, 3), "v4:2x2x1", None),
    ],
    ids=["convolution", "convolution_of_float32", "product", "large_product", "another_chip"],
)
def test_options_by_program(module, x, topology, chosen):
    """What a program is compiled with on a chip depends on what it is made of, and the user decides."""
    program = lower(module, x).programs["inference"]
    name = "xla_tpu_scoped_vmem_limit_kib"
    assert json.loads(program.for_tpu(topology, "{}").options)["xla_options"].get(name) == chosen
    given = json.dumps({"xla_options": {name: 1024}})
    assert json.loads(program.for_tpu(topology, given).options)["xla_options"] == {name: 1024}
