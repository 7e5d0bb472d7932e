"""The backend as a user meets it: options, errors, recompilation, statistics, dumps, processes and
threads."""

import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchtpu_dynamo._torchtpu import pass_levels

import torchtpu_dynamo
from torchtpu_dynamo import TorchTPUError, backend, plugins


def compiled(fn: Any, **kwargs: Any) -> Any:
    return torch.compile(fn, backend="tpu", fullgraph=True, **kwargs)


def double(x: Tensor) -> Tensor:
    return x * 2 + 1


def test_both_names() -> None:
    for name in ("tpu", "torchtpu_dynamo"):
        torch._dynamo.reset()
        assert torch.compile(double, backend=name)(torch.ones(2)).tolist() == [3, 3]


# Options and modes


def test_mode_default() -> None:
    assert compiled(double, mode="default")(torch.ones(1)).tolist() == [3]


@pytest.mark.parametrize(
    ("mode", "instead"), [("max-autotune", "tune"), ("reduce-overhead", "leave mode out")]
)
def test_other_modes_name_what_to_use(mode: str, instead: str) -> None:
    with pytest.raises(TorchTPUError, match=rf"no mode '{mode}'.*{instead}"):
        compiled(double, mode=mode)(torch.ones(1))


def test_unknown_option_lists_the_known_ones() -> None:
    with pytest.raises(TorchTPUError) as caught:
        compiled(double, options={"check_bound": True})(torch.ones(1))
    message = str(caught.value)
    assert "unknown option 'check_bound'" in message
    for name in (
        "check_bounds",
        "opt_level",
        "disable_passes",
        "xla_options",
        "plugin",
        "zero_copy",
        "verify",
    ):
        assert name in message


@pytest.mark.parametrize(
    "options",
    [
        {"check_bounds": 1},
        {"disable_passes": "cse"},
        {"disable_passes": [1]},
        {"opt_level": 4},
        {"opt_level": True},
        {"max_data_dependent_size": -1},
        {"xla_options": {"a": []}},
    ],
)
def test_options_have_types(options: dict[str, Any]) -> None:
    with pytest.raises(TorchTPUError, match="takes"):
        compiled(double, options=options)(torch.ones(1))


@pytest.mark.parametrize("level", range(4))
def test_every_level_is_right(level: int) -> None:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    x = torch.randn(2, 5, 16)
    layer(x).square().sum().backward()
    expected = {name: p.grad for name, p in layer.named_parameters()}
    layer.zero_grad()
    torchtpu_dynamo.reset_stats()
    y = compiled(layer, options={"opt_level": level, "cache": False})(x)
    y.square().sum().backward()
    torch.testing.assert_close(y, layer(x))
    for name, p in layer.named_parameters():
        torch.testing.assert_close(p.grad, expected[name])
    passes = torchtpu_dynamo.stats().passes
    assert set(passes) == (set() if level == 0 else {n for n, least in pass_levels().items() if least == 1})
    if level:
        assert passes["canonicalize"].rewrites > 0 and passes["canonicalize"].seconds > 0
        assert passes["canonicalize"].runs == 2 * passes["dce"].runs == 4  # a forward and a backward
        assert "pass canonicalize" in str(torchtpu_dynamo.stats())


def test_known_options() -> None:
    options = {"verify": True, "disable_passes": [], "check_bounds": False, "zero_copy": False}
    assert compiled(double, options=options)(torch.ones(1)).tolist() == [3]


def test_namesake_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    point = metadata.EntryPoint("tpu", "other.backend:tpu", "torch_dynamo_backends")
    ours = metadata.EntryPoint("tpu", "torchtpu_dynamo.backend:tpu", "torch_dynamo_backends")
    monkeypatch.setattr(metadata, "entry_points", lambda **_: [ours, point])
    backend.warn_of_namesakes.cache_clear()
    with pytest.warns(UserWarning, match='registers a backend "tpu" too; backend="torchtpu_dynamo"'):
        backend.warn_of_namesakes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backend.warn_of_namesakes()
    backend.warn_of_namesakes.cache_clear()


def test_torchs_defaults_stay() -> None:
    config = torch._functorch.config
    before = (config.donated_buffer, config.functionalize_rng_ops, torch._dynamo.config.cache_size_limit)
    compiled(double)(torch.ones(2, requires_grad=True)).sum().backward()
    assert before == (
        config.donated_buffer,
        config.functionalize_rng_ops,
        torch._dynamo.config.cache_size_limit,
    )


# Errors


def unsupported(x: Tensor) -> Tensor:
    return torch.linalg.eig(x)[1].real


def test_errors_are_our_own_class() -> None:
    fn = compiled(unsupported)
    for _ in range(2):
        with pytest.raises(TorchTPUError, match="linalg_eig") as caught:
            fn(torch.eye(3))
        assert type(caught.value) is TorchTPUError
        assert caught.value.__cause__ is None
        assert f"{__file__}:{unsupported.__code__.co_firstlineno + 1}" in str(caught.value)
    assert torchtpu_dynamo.stats().errors == 1


def test_error_in_the_backward_only() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return torch.linalg.eig(grad * x)[1].real

    x = torch.eye(3, requires_grad=True)
    y = compiled(lambda x: Square.apply(x))(x)
    assert y.sum().item() == 6
    with pytest.raises(TorchTPUError, match="linalg_eig"):
        y.sum().backward()


def test_missing_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_in_package", lambda *_: None)
    monkeypatch.delenv("TORCHTPU_PLUGIN", raising=False)
    with pytest.raises(TorchTPUError, match=r"pip install 'torchtpu-dynamo\[cpu\]'"):
        plugins.plugin_path()
    with pytest.raises(TorchTPUError, match=r"pip install 'torchtpu-dynamo\[tpu\]'"):
        plugins.plugin_path("tpu")


def test_unknown_plugin_name() -> None:
    with pytest.raises(TorchTPUError, match="no plugin 'gpu'"):
        compiled(double, options={"plugin": "gpu"})(torch.ones(1))


@pytest.mark.skipif(plugins._has_tpu(), reason="this machine has a TPU")
def test_tpu_without_a_tpu_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_in_package", lambda *_: "/somewhere/libtpu.so")
    with pytest.raises(TorchTPUError, match="this machine has no TPU"):
        plugins.plugin_path("tpu")


@pytest.mark.parametrize("path", ["/does/not/exist.so", __file__])
def test_paths_that_are_no_plugins(path: str) -> None:
    with pytest.raises(TorchTPUError, match="cannot use the plugin"):
        compiled(double, options={"plugin": path})(torch.ones(1))


def test_unknown_xla_option() -> None:
    with pytest.raises(TorchTPUError, match="xla_no_such_option"):
        compiled(double, options={"xla_options": {"xla_no_such_option": True}})(torch.ones(1))


# Sizes and statistics


def test_static_recompilation_has_a_reason() -> None:
    fn = compiled(double, dynamic=False)
    for n in (2, 3):
        fn(torch.ones(n))
    stats = torchtpu_dynamo.stats()
    assert (stats.compilations, stats.executions) == (2, 2)
    (again,) = stats.recompilations
    assert "size mismatch" in again.reason
    assert {"export", "xla"} <= set(stats.stage_seconds)
    assert "recompiled" in str(stats)


@pytest.mark.parametrize("dynamic", [None, True])
def test_new_sizes_compile_once_each(dynamic: bool | None) -> None:
    fn = compiled(lambda x: (x * 2).sum(0), dynamic=dynamic)
    for n in (5, 3, 4, 3, 4, 5):
        x = torch.randn(n, 7)
        torch.testing.assert_close(fn(x), (x * 2).sum(0))
    stats = torchtpu_dynamo.stats()
    sizes = [r.reason for r in stats.recompilations if r.reason.startswith("new size ")]
    assert sizes
    assert stats.executions == 6
    assert stats.cache_hits >= 2
    assert stats.compilations <= 4


def test_dynamic_training() -> None:
    model = nn.Linear(4, 3)
    fn = compiled(model, dynamic=True)
    for n in (2, 5, 3):
        x = torch.randn(n, 4)
        model.zero_grad()
        fn(x).square().sum().backward()
        actual = [p.grad for p in model.parameters()]
        model.zero_grad()
        model(x).square().sum().backward()
        torch.testing.assert_close(actual, [p.grad for p in model.parameters()])


def test_sizes_as_results() -> None:
    fn = compiled(lambda x: (x + x.shape[0], x.shape[0] * 2, x.shape[0] + x.shape[1]), dynamic=True)
    for n in (2, 3):
        x = torch.zeros(n, 5)
        y, a, b = fn(x)
        assert (y[0, 0].item(), a, b) == (n, 2 * n, n + 5)


def test_reset_stats() -> None:
    compiled(double)(torch.ones(1))
    assert torchtpu_dynamo.stats().compilations == 1
    torchtpu_dynamo.reset_stats()
    assert torchtpu_dynamo.stats().compilations == 0


def test_graph_breaks() -> None:
    def fn(x: Tensor) -> Tensor:
        y = x * 2
        torch._dynamo.graph_break()
        return y + 1

    assert torch.compile(fn, backend="tpu")(torch.ones(1)).tolist() == [3]
    assert torchtpu_dynamo.stats().compilations == 2


def test_seed_comes_from_torchs_generator() -> None:
    fn = compiled(lambda x: x + torch.rand(100))
    torch.manual_seed(3)
    first, second = fn(torch.zeros(100)), fn(torch.zeros(100))
    torch.manual_seed(3)
    assert torch.equal(fn(torch.zeros(100)), first)
    assert not torch.equal(first, second)
    assert first.min() >= 0
    assert first.max() < 1
    assert abs(first.mean().item() - 0.5) < 0.15


# What can be watched


def test_dump_writes_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHTPU_DUMP", str(tmp_path))
    compiled(nn.Linear(2, 2))(torch.randn(3, 2)).sum().backward()
    compiled(double)(torch.ones(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000_forward", "001_backward", "002_inference"]
    assert "def forward" in (tmp_path / "000_forward/fx.py").read_text()
    assert json.loads((tmp_path / "001_backward/payload.json").read_text())["kind"] == "backward"


def test_dump_has_the_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHTPU_DUMP", str(tmp_path))
    compiled(double)(torch.ones(2))
    folder = tmp_path / "000_inference"
    assert "stablehlo.add" in (folder / "stablehlo.mlir").read_text()
    assert (folder / "stablehlo.bc").read_bytes().startswith(b"ML\xefR")
    assert (folder / "ir_before.txt").stat().st_size
    assert (folder / "ir_after.txt").stat().st_size


def test_dump_of_what_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHTPU_DUMP", str(tmp_path))
    with pytest.raises(TorchTPUError):
        compiled(unsupported)(torch.eye(2))
    assert {p.name for p in (tmp_path / "000_inference").iterdir()} >= {"fx.py", "payload.json"}


SCRIPT = """
import sys, torch, torchtpu_dynamo.backend as b
torch.compile(lambda x: x * 2 + 1, backend=b.torchtpu_dynamo)(torch.ones(3))
"""


def run(script: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **env}, capture_output=True, text=True, timeout=300
    )


def test_structured_trace_has_our_stages(tmp_path: Path) -> None:
    done = run(SCRIPT, TORCH_TRACE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    (log,) = tmp_path.glob("*.log")
    text = log.read_text()
    for stage in ("fx", "payload", "ir_before", "ir_after", "stablehlo"):
        assert f'"name": "torchtpu_inference_{stage}"' in text


def test_torch_logs_show_our_stages() -> None:
    done = run(SCRIPT, TORCH_LOGS="+torchtpu_dynamo")
    assert done.returncode == 0, done.stderr
    assert "compiled 0/0 inference" in done.stderr
    assert "stablehlo" in done.stderr


def test_the_plugin_is_named_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_clients", {})
    with caplog.at_level(logging.INFO, "torchtpu_dynamo"):
        for _ in range(2):
            torch._dynamo.reset()
            compiled(double)(torch.ones(1))
    assert sum("running on" in r.getMessage() for r in caplog.records) == 1


# Lifetime, processes and threads


def test_reset_frees_executables() -> None:
    import gc

    from torchtpu_dynamo.graph import live_graphs

    gc.collect()
    before = len(live_graphs), plugins.live_buffers()
    model = nn.Linear(2, 2)
    compiled(model, options={"zero_copy": False})(torch.randn(3, 2))
    assert len(live_graphs) > before[0]
    torch.compiler.reset()
    gc.collect()
    assert len(live_graphs) <= before[0]
    assert plugins.live_buffers() <= before[1]


def test_threads_share_a_compiled_function() -> None:
    fn = compiled(lambda x: (x @ x).sin())
    inputs = [torch.randn(16, 16) for _ in range(8)]
    fn(inputs[0])
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(20):
            if not torch.allclose(fn(inputs[i]), (inputs[i] @ inputs[i]).sin(), atol=1e-5):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_threads_share_a_dynamic_function() -> None:
    fn = compiled(lambda x: x * 2, dynamic=True)
    fn(torch.ones(3))
    wrong: list[int] = []

    def work(n: int) -> None:
        for _ in range(10):
            if fn(torch.ones(n)).sum().item() != 2 * n:
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in (4, 5, 4, 5)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert torchtpu_dynamo.stats().compilations == 3


class Numbers(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> Tensor:
        return torch.full((2,), float(i))


def test_data_loader_workers_after_the_client_started() -> None:
    fn = compiled(double)
    fn(torch.ones(4, 2))
    loader = torch.utils.data.DataLoader(
        Numbers(), batch_size=4, num_workers=2, multiprocessing_context="fork"
    )
    seen = [fn(batch)[:, 0].tolist() for batch in loader]
    assert seen == [[1, 3, 5, 7], [9, 11, 13, 15]]


def test_a_forked_child_says_why_it_cannot_run() -> None:
    fn = compiled(double)
    fn(torch.ones(2))
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()

    def child() -> None:
        try:
            fn(torch.ones(2))
        except TorchTPUError as e:
            answer.put(str(e))
        else:
            answer.put("no error")

    process = context.Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert "forked after the PJRT plugin had been started" in answer.get()
    assert fn(torch.ones(2)).tolist() == [3, 3]
