"""Bad input: one exception of our own class, whose text is a snapshot under snapshots/errors.

`UPDATE_SNAPSHOTS=1 pytest tests/python/test_errors.py` writes them; they are read before they are committed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torchtpu_dynamo._torchtpu import Client, Program

import torchtpu_dynamo
from torchtpu_dynamo import TorchTPUError

ROOT = Path(__file__).resolve().parents[2]


def check(name: str, error: BaseException | str) -> None:
    """Compares a message with its snapshot; this machine's paths and versions are not part of it."""
    text = str(error)
    text = text.replace(str(ROOT), "ROOT")
    text = re.sub(r"\S*/(tmp|pytest)\S*/", "TMP/", text)
    text = re.sub(r"test_errors\.py:\d+", "test_errors.py:LINE", text)
    text = re.sub(r"\d+ ATen overloads", "N ATen overloads", text)
    text = re.sub(r"0x[0-9a-f]{6,}", "ADDRESS", text)
    path = ROOT / "snapshots" / "errors" / f"{name}.txt"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.rstrip() + "\n")
    assert path.exists(), f"no snapshot {path}; its text would be:\n{text}"
    assert text.rstrip() + "\n" == path.read_text()


def refused(fn: Any, *args: Any, **compile_options: Any) -> TorchTPUError:
    torch._dynamo.reset()
    with pytest.raises(TorchTPUError) as caught:
        torch.compile(fn, backend="torchtpu_dynamo", fullgraph=True, **compile_options)(*args)
    return caught.value


@torch.library.custom_op("torchtpu_tests::mystery", mutates_args=())
def mystery(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@mystery.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def test_op_without_lowering() -> None:
    error = refused(lambda x: mystery(x) + 1, torch.ones(2))
    check("op_without_lowering", error)
    assert error.op == "torchtpu_tests.mystery.default"
    assert "test_errors.py" in error.location


def test_sparse_input() -> None:
    payload = {
        "version": 1, "name": "f", "kind": "inference", "torch": "", "matmul_precision": "highest", "targets": [],
        "inputs": [{"name": "x", "val": {"dtype": "float32", "shape": [2, 2], "layout": "sparse_coo"}}],
        "nodes": [], "outputs": [{"v": 0}],
    }  # fmt: skip
    with pytest.raises(TorchTPUError) as caught:
        Program(json.dumps(payload), {}, "")
    check("sparse", caught.value)
    # Dynamo itself refuses most sparse inputs before a backend sees them: that error is torch's.
    with pytest.raises(Exception, match="(?i)sparse|Unsupported|to_dense"):
        torch.compile(lambda x: x.to_dense() + 1, backend="torchtpu_dynamo", fullgraph=True)(
            torch.eye(2).to_sparse()
        )


def test_quantized_dtype() -> None:
    quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    torch._dynamo.reset()
    with pytest.raises(Exception, match="(?i)quant|qint8"):
        torch.compile(lambda x: x.dequantize() + 1, backend="torchtpu_dynamo", fullgraph=True)(quantized)


def test_other_device() -> None:
    check("other_device", refused(lambda x: x + 1, torch.ones(2, device="meta")))


def test_unknown_option() -> None:
    check("unknown_option", refused(lambda x: x + 1, torch.ones(2), options={"bukets": 3}))


def test_no_time_for_a_collective() -> None:
    error = refused(lambda x: x + 1, torch.ones(2), options={"collective_timeout": 0})
    assert str(error) == "option 'collective_timeout' takes a number of seconds above 0"


def test_activation_memory_that_is_no_number_of_bytes() -> None:
    error = refused(lambda x: x + 1, torch.ones(2), options={"activation_memory": -1})
    assert str(error) == "option 'activation_memory' takes bytes, 0 or more, not -1"
    error = refused(lambda x: x + 1, torch.ones(2), options={"activation_memory": "2GiB"})
    assert str(error).startswith("option 'activation_memory' takes int | None, not '2GiB'; bytes of")


@pytest.mark.parametrize("name", ["opt_level", "activation_memory", "max_data_dependent_size", "tune"])
def test_true_is_no_number(name: str) -> None:
    error = refused(lambda x: x + 1, torch.ones(2), options={name: True})
    assert str(error).startswith(f"option '{name}' takes ") and "not True" in str(error)


def test_other_mode() -> None:
    check("other_mode", refused(lambda x: x + 1, torch.ones(2), mode="max-autotune"))


def test_unknown_pass() -> None:
    check("unknown_pass", refused(lambda x: x + 1, torch.ones(2), options={"disable_passes": ["fuse"]}))


def test_unknown_xla_option() -> None:
    error = refused(lambda x: x + 1, torch.ones(2), options={"xla_options": {"xla_no_such_flag": True}})
    check("unknown_xla_option", str(error))


OLD_PLUGIN = """
static struct {
    unsigned long size; void *extensions;
    struct { unsigned long size; void *extensions; int major, minor; } version;
} table = {sizeof table, 0, {sizeof table.version, 0, 0, 20}};
void *GetPjrtApi(void) { return &table; }
"""


@pytest.mark.parametrize("kind", ["missing", "not_elf", "not_a_plugin", "too_old"])
def test_bad_plugin(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "plugin.so"
    if kind == "too_old":
        source = tmp_path / "plugin.c"
        source.write_text(OLD_PLUGIN)
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(path), str(source)], check=True)
    if kind == "not_elf":
        path.write_text("this is no library")
    if kind == "not_a_plugin":
        library = next(p for p in map(Path, _libraries()) if p.exists())
        path = tmp_path / "libz.so"
        path.write_bytes(library.read_bytes())
    with pytest.raises(TorchTPUError) as caught:
        Client(str(path), {}, True)
    check(f"plugin_{kind}", str(caught.value))


def _libraries() -> list[str]:
    return ["/lib/x86_64-linux-gnu/libz.so.1", "/usr/lib/x86_64-linux-gnu/libz.so.1", "/lib64/libz.so.1"]


@pytest.mark.parametrize("kind", ["garbage", "version", "truncated", "dangling"])
def test_corrupt_payload(kind: str) -> None:
    good = torchtpu_dynamo.lower(lambda x: x.sin(), torch.ones(2)).programs["inference"].payload
    payload = json.loads(good)
    text: bytes
    if kind == "garbage":
        text = b"\x00\xff not json"
    elif kind == "version":
        payload["version"] = 99
        text = json.dumps(payload).encode()
    elif kind == "truncated":
        text = bytes(good).rstrip()[:-1]  # cut at one place of the grammar, however long the paths in it are
    else:
        payload["nodes"][0]["args"] = [{"v": 1000}]
        text = json.dumps(payload).encode()
    with pytest.raises(TorchTPUError) as caught:
        Program(text, {}, "")
    check(f"payload_{kind}", re.sub(r"line \d+ column \d+", "line L column C", str(caught.value)))


def test_shared_donated_buffer() -> None:
    program = torchtpu_dynamo.lower(lambda x, y: x.add_(y), torch.ones(16), torch.ones(16)).programs[
        "inference"
    ]
    from torchtpu_dynamo import plugins

    executable = program.compile(plugins.client(None, None), "")
    x = torch.ones(16)
    with pytest.raises(TorchTPUError) as caught:
        executable([x, x], 0)
    check("shared_donated_buffer", caught.value)
    assert torch.equal(x, torch.ones(16))


def test_index_out_of_range() -> None:
    x, i = torch.arange(4.0), torch.tensor([1, 7])
    check("index_out_of_range", refused(lambda x, i: x[i], x, i, options={"check_bounds": True}))
    fine = torch.compile(lambda x, i: x[i], backend="torchtpu_dynamo", options={"check_bounds": True})
    assert torch.equal(fine(x, torch.tensor([1, -1])), torch.tensor([1.0, 3.0]))


@pytest.mark.parametrize(("name", "beside"), [("indices", True), ("values", False)])
def test_mask_of_another_count(name: str, beside: bool) -> None:
    """Eager refuses a mask that does not fit what is beside it, or what is assigned."""

    def fn(x: torch.Tensor, mask: torch.Tensor, i: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[(mask, i) if beside else mask] = v
        return x

    def masks(*counts: int) -> list[torch.Tensor]:
        return [torch.arange(6) < count for count in counts]

    x, i = torch.zeros(6, 4) if beside else torch.zeros(6), torch.tensor([1, 0, 3])
    v = torch.tensor([1.0, 2.0, 3.0])
    for k, mask in enumerate(masks(2, 4, 0)):
        with pytest.raises((IndexError, RuntimeError)):
            fn(x, mask, i, v)
        e = refused(fn, x, mask, i, v, options={"check_bounds": True})
        if k == 0:
            check(f"mask_of_another_count_{name}", e)
    fine = torch.compile(fn, backend="torchtpu_dynamo", options={"check_bounds": True})
    for mask in masks(3, 1) if beside else masks(3):
        assert torch.equal(fine(x, mask, i, v), fn(x, mask, i, v))


def test_division_by_zero() -> None:
    x, y = torch.tensor([4, 2]), torch.tensor([2, 0])
    check("division_by_zero", refused(lambda x, y: x // y, x, y, options={"check_bounds": True}))


OUT_OF_MEMORY = """
import torch, torchtpu_dynamo
f = torch.compile(lambda x: (x[:, None] * x[None, :]).sin(), backend="torchtpu_dynamo")
try:
    f(torch.ones(1 << 22))
except torchtpu_dynamo.TorchTPUError as e:
    print("ERROR", "memory" in str(e).lower(), "help" in str(e), e)
print("still here", torch.compile(lambda x: x + 1, backend="torchtpu_dynamo")(torch.ones(1)).item())
"""


def test_out_of_memory() -> None:
    out = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr[-2000:]
    assert "ERROR True True" in out.stdout and "still here 2.0" in out.stdout, out.stdout


CTRL_C = """
import os, signal, sys, threading, time, torch, torchtpu_dynamo
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
def deep(x):
    for i in range(1500):
        x = torch.sin(x @ x) + i
    return x
f = torch.compile(deep, backend="torchtpu_dynamo")
def interrupt():
    while not interrupt.armed: time.sleep(0.01)
    time.sleep(0.2)
    interrupt.sent = time.perf_counter()
    os.kill(os.getpid(), signal.SIGINT)
interrupt.armed = False
threading.Thread(target=interrupt, daemon=True).start()
from torchtpu_dynamo.api import lower
program = lower(deep, torch.ones(64, 64)).programs["inference"]
from torchtpu_dynamo import plugins
client = plugins.client(None, None)
interrupt.armed = True
try:
    program.compile(client, "")
    print("finished")
except KeyboardInterrupt:
    print("interrupted", time.perf_counter() - interrupt.sent < 2.0)
os._exit(0)
"""


def test_ctrl_c_during_a_compilation() -> None:
    out = subprocess.run([sys.executable, "-c", CTRL_C], capture_output=True, text=True, timeout=300)
    assert "interrupted True" in out.stdout, out.stdout + out.stderr[-2000:]
