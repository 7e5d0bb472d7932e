"""Compiling ahead: capture, artifacts, and running them with and without torch."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from torchtpu_dynamo import Artifact, TorchTPUError, aot_compile, lower
from torchtpu_dynamo import _torchtpu as extension
from torchtpu_dynamo.ahead import topologies
from torchtpu_dynamo.cli import main
from torchtpu_dynamo.files import replacing

KEY = bytes(range(32))


class Net(nn.Module):
    """State, a keyword that may be left out, and a dictionary of results."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x, scale=None):
        self.count.add_(1)
        y = torch.relu(self.a(x))
        if scale is not None:
            y = y * scale
        return {"y": self.b(y), "sum": y.sum(1)}


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def artifact(net, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ahead") / "net.ttpu"
    aot_compile(net, (torch.randn(3, 6),), {"scale": torch.tensor(2.0)}, topology="cpu", output=path, key=KEY)
    return path


@pytest.mark.sample
def test_equals_eager_and_keeps_state(net, artifact):
    loaded, eager = Artifact(artifact), copy.deepcopy(net)
    for _ in range(2):
        x = torch.randn(3, 6)
        torch.testing.assert_close(loaded(x, scale=torch.tensor(3.0)), eager(x, scale=torch.tensor(3.0)))
    assert loaded.model.weight("count") == ("float32", [], np.float32(2).tobytes())
    assert net.count == 0, "capturing runs nothing"


def test_numpy_in_numpy_out(net, artifact):
    x = np.random.default_rng(0).standard_normal((3, 6), np.float32)
    found = Artifact(artifact)(x, scale=np.float32(2))
    expected = copy.deepcopy(net)(torch.from_numpy(x), scale=torch.tensor(2.0))
    assert isinstance(found["y"], np.ndarray)
    torch.testing.assert_close(torch.from_numpy(found["y"]), expected["y"].detach())
    by_position, by_name = Artifact(artifact)(x, np.float32(2)), Artifact(artifact)(scale=np.float32(2), x=x)
    np.testing.assert_equal(by_position["y"], found["y"])
    np.testing.assert_equal(by_name["y"], found["y"])


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((np.zeros((3, 6), np.float32),), {}, r"the artifact takes \(x, scale\)"),
        ((np.zeros((3, 5), np.float32),), {"scale": 1.0}, r"input `x` has shape \[3, 5\], not \[3, 6\]"),
        ((np.zeros((3, 6)),), {"scale": 1.0}, r"input `x` is float64, not float32"),
        ((np.zeros((3, 6), np.float32),), {"scale": 1.0, "more": 1}, r"the artifact takes"),
    ],
)
def test_wrong_arguments(artifact, args, kwargs, message):
    with pytest.raises(TypeError, match=message):
        Artifact(artifact)(*args, **kwargs)


def test_one_tensor_is_no_tuple_of_arguments(net):
    with pytest.raises(TorchTPUError, match=r"args is a Tensor, and should be a tuple\nhelp: pass \(x,\)"):
        aot_compile(net, torch.randn(2, 6))


def test_trust(artifact, tmp_path):
    assert "not said to be trusted" in Artifact(artifact).prepare()
    assert Artifact(artifact, trusted=True).prepare() == "loaded"
    assert Artifact(artifact, key=KEY).prepare() == "loaded"
    assert "not signed with the key" in Artifact(artifact, key=bytes(32)).prepare()


@pytest.mark.parametrize("at", [0, 20, 70, 200, 5000, -1])
def test_altered_files_are_refused(artifact, tmp_path, at):
    data = bytearray(artifact.read_bytes())
    data[at] ^= 4
    (tmp_path / "bad.ttpu").write_bytes(data)
    with pytest.raises(TorchTPUError, match="artifact"):
        Artifact(tmp_path / "bad.ttpu", trusted=True)


def test_truncated_files_are_refused(artifact, tmp_path):
    data = artifact.read_bytes()
    for length in (0, 7, 95, len(data) // 2, len(data) - 1):
        (tmp_path / "bad.ttpu").write_bytes(data[:length])
        with pytest.raises(TorchTPUError, match="artifact"):
            Artifact(tmp_path / "bad.ttpu")


def test_other_version(artifact, tmp_path):
    label = {**Artifact(artifact).label, "version": 99}
    writer = extension.ArtifactWriter(tmp_path / "new.ttpu")
    writer.finish(json.dumps(label))
    with pytest.raises(TorchTPUError, match="version 99, and this torchtpu-dynamo reads 1"):
        Artifact(tmp_path / "new.ttpu")


def test_label_that_lies_is_refused(artifact, tmp_path):
    """The IR is believed, and what the label says of it is compared with it."""
    whole = Artifact(artifact)
    label = whole.label
    label["builds"] = []
    types = [spec["tensor"]["ty"] for spec in label["programs"]["inference"]["interface"]["inputs"]]
    next(ty for ty in types if len(ty["shape"]) == 2)["shape"] = [800, 6]
    writer = extension.ArtifactWriter(tmp_path / "lie.ttpu")
    for name, _ in whole.file.sections():
        writer.section(name, whole.section(name))
    writer.finish(json.dumps(label))
    with pytest.raises(TorchTPUError, match="inputs are not those of the graph"):
        Artifact(tmp_path / "lie.ttpu").prepare()


def test_another_plugin_compiles_from_the_ir(artifact, tmp_path):
    whole = Artifact(artifact)
    label = whole.label
    label["builds"][0]["target"]["host"]["target"] = "another machine"
    writer = extension.ArtifactWriter(tmp_path / "moved.ttpu")
    for name, _ in whole.file.sections():
        writer.section(name, whole.section(name))
    writer.finish(json.dumps(label))
    assert (
        "compiled from the IR: the artifact's executables are for other"
        in Artifact(tmp_path / "moved.ttpu", trusted=True).prepare()
    )


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -3 * gradient


class Trained(nn.Module):
    """A gradient of the user's own, a checkpoint, tied weights, and an argument that is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 8)
        self.tied = self.b.weight

    def forward(self, x, n=2):
        y = torch.utils.checkpoint.checkpoint(lambda v: torch.tanh(self.a(v)), x, use_reentrant=False)
        return Reversed.apply(self.b(y) @ self.tied), x, n


@pytest.mark.sample
def test_train():
    module, x = Trained(), torch.randn(3, 4, requires_grad=True)
    compiled = aot_compile(module, (x,), train=True)
    assert compiled.programs == ("forward", "backward")
    (y, same, n), saved = compiled.forward(x)
    assert same is x and n == 2
    expected, _, _ = module(x)
    torch.testing.assert_close(y, expected.detach())
    cotangent = torch.randn_like(expected)
    expected.backward(cotangent)
    with pytest.raises(
        TypeError, match=rf"backward takes the {len(saved)} saved tensors that forward gave, not"
    ):
        compiled.backward(saved[:-1], cotangent)
    found = compiled.backward(saved, cotangent)
    wanted = {name: p.grad for name, p in module.named_parameters()} | {"x": x.grad}
    torch.testing.assert_close(found, wanted)


def test_random_operators_follow_the_seed():
    compiled = aot_compile(nn.Dropout(0.5), (torch.ones(1000),))
    x = torch.ones(1000)
    assert torch.equal(compiled(x, seed=1), compiled(x, seed=1))
    assert not torch.equal(compiled(x, seed=1), compiled(x, seed=2))
    assert 400 < (compiled(x, seed=3) == 0).sum() < 600
    for seed in (-1, 2**64):
        with pytest.raises(TorchTPUError, match=r"a seed is a number from 0 to 2\*\*64 - 1, not"):
            compiled(x, seed=seed)


@pytest.mark.sample
def test_abstract_weights(net, tmp_path):
    with torch.device("meta"):
        module, x = Net(), torch.randn(3, 6)
    aot_compile(module, (x,), output=tmp_path / "abstract.ttpu")
    with pytest.raises(TorchTPUError, match="has no value"):
        Artifact(tmp_path / "abstract.ttpu")(torch.randn(3, 6))
    with pytest.raises(TypeError, match="input `x` has no values: it is a meta or fake tensor"):
        Artifact(tmp_path / "abstract.ttpu", weights=net.state_dict())(x)
    x = torch.randn(3, 6)
    found = Artifact(tmp_path / "abstract.ttpu", weights=net.state_dict())(x)
    torch.testing.assert_close(found, copy.deepcopy(net)(x))


def test_a_device_is_not_replaced(net, tmp_path):
    """As by `-o /dev/null`."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="it is no file"):
        aot_compile(net, (torch.randn(3, 6),), output=pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with replacing(pipe) as file:
        file.write(b"page")
    assert os.read(reader, 9) == b"page" and pipe.is_fifo()
    os.close(reader)


def test_weights_of_a_file(tmp_path):
    """Of every dtype, and without torch."""
    module, x = nn.Linear(6, 2).bfloat16(), torch.randn(3, 6).bfloat16()
    module.register_buffer("bits", torch.randn(2).to(torch.float8_e4m3fn))
    module.forward = lambda x: (
        torch.nn.functional.linear(x, module.weight, module.bias),
        module.bits.float(),
    )
    path, weights = tmp_path / "net.ttpu", tmp_path / "net.safetensors"
    aot_compile(module, (x,), output=path, weights=False)
    import safetensors.torch

    for stored in (module.state_dict(), {**module.state_dict(), "weight": module.weight.detach().float()}):
        safetensors.torch.save_file(stored, weights)
        torch.testing.assert_close(Artifact(path, weights=weights)(x), module(x))
    safetensors.torch.save_file({**module.state_dict(), "weight": module.weight.detach().double()}, weights)
    with pytest.raises(TypeError, match="weight `weight` is float64, not bfloat16"):
        Artifact(path, weights=weights)(x)
    prefixed = Artifact(path, weights={f"model.{k}": v for k, v in module.state_dict().items()})
    for _ in range(2):
        with pytest.raises(
            TorchTPUError, match=r"none of the weights(.|\n)*`model\.\w+` was given, and its own are `"
        ):
            prefixed(x)
    whole = weights.read_bytes()
    for data, message in (
        (b"", "no safetensors file"),
        (b"nonsense", "no safetensors"),
        (whole[:-8], "ends in weight"),
    ):
        weights.write_bytes(data)
        with pytest.raises(TorchTPUError, match=message):
            Artifact(path, weights=weights)(x)


@pytest.mark.sample
def test_pt2(net, tmp_path):
    x, scale = torch.randn(3, 6), torch.tensor(2.0)
    torch.export.save(torch.export.export(net, (x,), {"scale": scale}), tmp_path / "net.pt2")
    compiled = aot_compile(tmp_path / "net.pt2")
    torch.testing.assert_close(compiled(x, scale=scale), copy.deepcopy(net)(x, scale))
    assert compiled.model.weight("count")[2] == np.float32(1).tobytes(), "a buffer that is written is state"
    functional = torch.export.export(net, (x,), {"scale": scale}).run_decompositions()
    compiled = aot_compile(functional)
    torch.testing.assert_close(compiled(x, scale=scale), copy.deepcopy(net)(x, scale))
    assert compiled.model.weight("count")[2] == np.float32(1).tobytes()


def test_pt2_of_another_version(tmp_path):
    (tmp_path / "old.pt2").write_bytes(b"PK not really an archive")
    with pytest.raises(TorchTPUError, match="cannot load this archive"):
        aot_compile(tmp_path / "old.pt2")
    with pytest.raises(TorchTPUError, match="no such file"):
        aot_compile(tmp_path / "none.pt2")


def test_results_that_are_views_in_another_order():
    def fn(x):
        y = (x + 1).transpose(1, 2)
        return y.reshape(6, 4), y[:, -1], x.t()[1:] if x.dim() == 2 else x.mT[:, 1:]

    for x in (torch.randn(2, 4, 3), torch.randn(2, 3, 4).mT):
        torch.testing.assert_close(aot_compile(fn, (x,))(x), fn(x))


class Ragged(nn.Module):
    """Sizes in the middle of shapes, in views, in what is returned and in what is changed."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.project = nn.Embedding(11, 8), nn.Linear(8, 24)

    def forward(self, ids, bias):
        batch, length = ids.shape
        q, k, v = self.project(self.embed(ids)).view(batch, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, bias)
        bias.mul_(2)
        return {
            "y": y.mean(-1),
            "flat": y.transpose(1, 2).reshape(batch * length, 8),
            "last": y[:, :, -1],
            "length": length,
        }


@pytest.fixture(scope="module")
def ragged(tmp_path_factory):
    torch.manual_seed(0)
    net = Ragged().eval()
    batch, length = torch.export.Dim("batch", min=1, max=4), torch.export.Dim("length", min=2, max=9)
    exported = torch.export.export(
        net,
        (torch.randint(11, (3, 5)), torch.randn(5, 5)),
        dynamic_shapes=({0: batch, 1: length}, {0: length, 1: length}),
    )
    path = tmp_path_factory.mktemp("ragged") / "net.ttpu"
    torch.export.save(exported, path.with_suffix(".pt2"))
    aot_compile(path.with_suffix(".pt2"), topology="cpu", output=path, key=KEY)
    return net, path


@pytest.mark.parametrize("trusted", [True, False])
def test_dynamic_sizes(ragged, trusted):
    net, path = ragged
    compiled = Artifact(path, trusted=trusted)
    assert compiled.prepare().startswith("loaded" if trusted else "compiled")
    for batch in range(1, 5):
        for length in range(2, 10):
            torch.manual_seed(length)
            ids, bias = torch.randint(11, (batch, length)), torch.randn(length, length)
            expected, own = bias.clone(), bias.clone()
            torch.testing.assert_close(compiled(ids, own), net(ids, expected))
            torch.testing.assert_close(own, expected)


@pytest.mark.parametrize(
    ("ids", "bias", "message"),
    [
        ((5, 3), (3, 3), "input `ids` has size 5 in dimension 0, and was exported for 1 to 4"),
        ((1, 1), (1, 1), "input `ids` has size 1 in dimension 1, and was exported for 2 to 9"),
        ((2, 3), (3, 4), r"input `bias` has shape \[3, 4\], not \[3, 3\]"),
        ((2, 3), (4, 4), r"input `bias` has shape \[4, 4\], not \[3, 3\]"),
        ((2,), (3, 3), "input `ids` has no dimension 1|has shape"),
    ],
)
def test_other_sizes_are_refused(ragged, ids, bias, message):
    with pytest.raises(TorchTPUError, match=message):
        Artifact(ragged[1])(torch.zeros(ids, dtype=torch.int64), torch.zeros(bias))


@pytest.mark.parametrize(
    ("buckets", "programs"),
    [
        ({"ids:1": [4, 6, 100]}, ["inference-4x4", "inference-4x6", "inference"]),
        (
            {"bias:0": [4], "ids:0": "pow2"},
            ["inference-2x4", "inference-2x9", "inference-4x4", "inference"],
        ),
        ({"*": [1, 4]}, ["inference-1x4", "inference-1x9", "inference-4x4", "inference"]),
    ],
)
def test_buckets(ragged, buckets, programs):
    net, path = ragged
    compiled = aot_compile(path.with_suffix(".pt2"), topology="cpu", options={"buckets": buckets})
    assert list(compiled.programs) == programs
    for batch, length in [(1, 2), (1, 4), (1, 5), (2, 4), (4, 6), (3, 7), (4, 9)]:
        ids, bias = torch.randint(11, (batch, length)), torch.randn(length, length)
        expected, own = bias.clone(), bias.clone()
        torch.testing.assert_close(compiled(ids, own), net(ids, expected))
        torch.testing.assert_close(own, expected)
    assert "inference" in dict(compiled.model.origins())
    # The smallest that serves a call is the one that is run, and no other is made for it.
    again = Artifact(compiled.path)
    again(torch.zeros(1, 3, dtype=torch.int64), torch.zeros(3, 3))
    assert [name for name, _ in again.model.origins()] == programs[:1]


def test_buckets_of_no_size(ragged):
    with pytest.raises(
        TorchTPUError, match="names 'x:0', and the program has the dynamic sizes ids:0, ids:1, bias:0"
    ):
        aot_compile(ragged[1].with_suffix(".pt2"), options={"buckets": {"x:0": [4]}})
    for name in ("input:0", "*"):
        with pytest.raises(TorchTPUError, match="has no dynamic sizes"):
            aot_compile(nn.Linear(3, 4), (torch.randn(2, 3),), options={"buckets": {name: [4]}})
    dims = {i: torch.export.Dim(f"d{i}", min=2, max=16) for i in range(4)}
    exported = torch.export.export(nn.ReLU(), (torch.randn(3, 4, 5, 6),), dynamic_shapes=(dims,))
    with pytest.raises(TorchTPUError, match="81 programs, and an artifact has room for 64"):
        aot_compile(exported, options={"buckets": {"*": [4, 8]}})


def test_dynamic_sizes_are_shown(ragged, capsys):
    assert main(["inspect", str(ragged[1])]) == 0
    assert "takes ids: int64[1..4,2..9], bias: float32[2..9,2..9]" in capsys.readouterr().out


def test_dynamic_sizes_that_cannot_be_served():
    batch = torch.export.Dim("batch", min=2, max=64)
    linear, x = nn.Linear(6, 2), torch.randn(3, 6)
    exported = torch.export.export(linear, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with pytest.raises(
        TorchTPUError, match="dimension 0 of argument `input` is dynamic and has no upper bound"
    ):
        aot_compile(exported)
    exported = torch.export.export(linear, (x,), dynamic_shapes=({0: batch},))
    with pytest.raises(TorchTPUError, match="for inference alone"):
        aot_compile(exported, train=True)


class Pairs(nn.Module):
    def forward(self, x, y):
        return x.view(-1, 2, 3).sum(1) + y


def test_sizes_that_are_computed():
    """They need the size that they are computed of."""
    size = torch.export.Dim("size", min=2, max=8)
    args = torch.randn(6, 3), torch.randn(3, 3)
    alone = torch.export.export(Pairs(), (args[0], args[1][:1]), dynamic_shapes=({0: 2 * size}, None))
    with pytest.raises(
        TorchTPUError, match=r"dimension 0 of argument `x` is 2\*s\d+, and no argument has the size s"
    ):
        aot_compile(alone)
    compiled = aot_compile(torch.export.export(Pairs(), args, dynamic_shapes=({0: 2 * size}, {0: size})))
    for n in (2, 5, 8):
        x, y = torch.randn(2 * n, 3), torch.randn(n, 3)
        torch.testing.assert_close(compiled(x, y), Pairs()(x, y))
    with pytest.raises(TorchTPUError, match=r"`x` has shape \[5, 3\], not \[8, 3\]"):
        compiled(torch.randn(5, 3), torch.randn(4, 3))


class Head(nn.Module):
    def forward(self, x):
        written = x.exp()
        written[:2] = 0.0
        return x[:2] * 2, x[-2:].sin(), x.narrow(0, 0, 2) - 1, written


def test_slices_of_all_rows():
    """What is a part of more rows is whole at the smallest size."""
    dims = {0: torch.export.Dim("rows", min=2, max=8)}
    compiled = aot_compile(torch.export.export(Head(), (torch.randn(5, 3),), dynamic_shapes=(dims,)))
    for rows in (2, 3, 8):
        x = torch.randn(rows, 3)
        torch.testing.assert_close(compiled(x), Head()(x))


def test_sizes_that_data_decide():
    with pytest.raises(
        TorchTPUError, match="'max_data_dependent_size' is for torch.compile: an artifact has no"
    ):
        aot_compile(torch.nonzero, (torch.ones(3),), options={"max_data_dependent_size": 3})


def test_all_unsupported_operators_are_listed():
    def bad(x):
        values, _ = torch.linalg.eig(x)
        return values, torch.linalg.eig(x + 1)

    with pytest.raises(TorchTPUError) as caught:
        aot_compile(bad, (torch.randn(3, 3),))
    text = str(caught.value)
    assert text.startswith("2 operators of the inference are not supported")
    first = bad.__code__.co_firstlineno
    for line in (first + 1, first + 2):
        assert f"aten.linalg_eig.default at {__file__}:{line}: " in text


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x, n: x.nonzero(), "the size of what `aten.nonzero.default` gives"),
        (lambda x, n: x[x > 0].sum(), "the size of what `aten.index.Tensor` gives"),
        (lambda x, n: torch.unique(x), "the size of what `aten._unique2.default` gives"),
        (lambda x, n: x * n.item(), "the value of what `aten._local_scalar_dense.default` gives"),
    ],
)
@pytest.mark.parametrize(
    "entry", [aot_compile, lambda fn, args: lower(fn, *args)], ids=["artifact", "lowered"]
)
def test_what_the_data_decide_is_refused(fn: Any, message: str, entry: Any) -> None:
    with pytest.raises(TorchTPUError) as caught:
        entry(fn, (torch.randn(3), torch.tensor(3)))
    text = str(caught.value)
    assert text.startswith(f"{message} depends on the data, and one program does not leave the device")
    assert f"at:    {__file__}:{fn.__code__.co_firstlineno} in " in text
    assert "compile the parts before and behind this line" in text


def test_bad_arguments_and_results():
    with pytest.raises(TorchTPUError, match="an argument is a object, which an artifact cannot keep"):
        aot_compile(lambda x, o: x + 1, (torch.ones(2), object()))


def test_output_is_checked_before_anything_is_compiled(net, tmp_path):
    with pytest.raises(OSError, match="cannot write"):
        aot_compile(net, (torch.randn(3, 6),), output=tmp_path / "no" / "where.ttpu")
    with pytest.raises(OSError, match="it is a folder"):
        aot_compile(net, (torch.randn(3, 6),), output=tmp_path)


def test_a_failed_build_leaves_nothing(tmp_path):
    with pytest.raises(TorchTPUError):
        aot_compile(lambda x: torch.linalg.eigvals(x), (torch.ones(2, 2),), output=tmp_path / "bad.ttpu")
    assert list(tmp_path.iterdir()) == []


FACTORY = """
import torch
from torch import nn
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), (torch.randn(4, 6),)
def slow():
    import time
    print("tracing", flush=True)
    time.sleep(60)
def wrong():
    return 3
def tensor():
    return nn.Linear(6, 2), torch.randn(4, 6)
def keywords():
    return nn.Linear(6, 2), (torch.randn(4, 6),), 3
NUMBER = 3
"""


def command(*args: str, cwd: Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "torchtpu_dynamo.cli", *args],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )
    assert (done.returncode == 0) is ok, done.stdout + done.stderr
    return done


def test_commands(tmp_path):
    """compile, inspect and run, the last two without torch."""
    (tmp_path / "factory.py").write_text(FACTORY)
    made = command("compile", "factory:net", "-t", "cpu", "-o", "net.ttpu", cwd=tmp_path)
    assert "inference for cpu" in made.stderr
    told = command("inspect", "net.ttpu", cwd=tmp_path).stdout
    assert "0.weight" in told and "inference for cpu" in told and "input: float32[4,6]" in told
    assert "rewrites by our passes" in told
    figures = json.loads(command("inspect", "net.ttpu", "--json", cwd=tmp_path).stdout)
    assert figures["programs"]["inference"]["passes"]["canonicalize"]["rewrites"] > 0
    assert figures["programs"]["inference"]["flops"] >= 2 * 4 * (6 * 8 + 8 * 2)
    assert figures["builds"][0]["memory"]["arguments"] > 0
    command("inspect", "net.ttpu", "--html", "net.html", cwd=tmp_path)
    page = (tmp_path / "net.html").read_text()
    assert "<svg" in page and "http" not in page.replace("http-equiv", "")
    command("inspect", "net.ttpu", "--hlo", "hlo", cwd=tmp_path)
    assert "stablehlo.dot_general" in (tmp_path / "hlo" / "inference.stablehlo.mlir").read_text()
    x = np.random.default_rng(0).standard_normal((4, 6), np.float32)
    np.savez(tmp_path / "in.npz", input=x)
    command("run", "net.ttpu", "--inputs", "in.npz", "--outputs", "out.npz", "--trust", cwd=tmp_path)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    with np.load(tmp_path / "out.npz") as found:
        torch.testing.assert_close(torch.from_numpy(found["output"]), module(torch.from_numpy(x)).detach())
    np.savez(tmp_path / "wrong.npz", y=x)
    told = command(
        "run", "net.ttpu", "--inputs", "wrong.npz", "--outputs", "o.npz", cwd=tmp_path, ok=False
    ).stderr
    assert "input missing, y unknown" in told
    assert "no difference" in command("diff", "net.ttpu", "net.ttpu", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["factory:wrong"], "returned int, and should return (module, args)"),
        (["factory:tensor"], "returned (Linear, Tensor), and should return (module, args)"),
        (["factory:keywords"], "returned (Linear, tuple, int), and should return (module, args)"),
        (["factory:NUMBER"], "factory:NUMBER is of the type int, which cannot be called"),
        (["factory:net", "-t", "cpu", "-t", "cpu"], "topology 'cpu' is there twice"),
        (["factory:net", "-t", ""], "a topology has the empty name"),
        (["factory:none"], "has no attribute 'none'"),
        (["nothing:net"], "No module named 'nothing'"),
        (["none.pt2"], "no such file"),
        (["factory:net", "-o", "no/where.ttpu"], "cannot write no/where.ttpu"),
        (["factory:net", "--option", "colour=red"], "unknown option 'colour'"),
    ],
)
def test_commands_that_fail(tmp_path, args, message):
    (tmp_path / "factory.py").write_text(FACTORY)
    told = command(
        "compile", *args, *([] if "-o" in args else ["-o", "x.ttpu"]), cwd=tmp_path, ok=False
    ).stderr
    assert message in told and "Traceback" not in told
    assert not list(tmp_path.glob("*.ttpu")) and not list(tmp_path.glob(".*ttpu*"))


def test_opt_of_no_text(artifact, capsys):
    assert main(["opt", str(artifact)]) == 1
    assert "this is no text" in capsys.readouterr().err


def test_interrupted_build_leaves_nothing(tmp_path):
    (tmp_path / "factory.py").write_text(FACTORY)
    child = subprocess.Popen(
        [sys.executable, "-m", "torchtpu_dynamo.cli", "compile", "factory:slow", "-o", "slow.ttpu"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert child.stdout.readline() == "tracing\n"
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=60)
    assert child.returncode == 130 and "interrupted" in told and "Traceback" not in told
    assert not list(tmp_path.glob("*ttpu")) and not list(tmp_path.glob(".*"))


def test_run_imports_no_torch(artifact):
    script = (
        "import sys, numpy as np, torchtpu_dynamo\n"
        f"a = torchtpu_dynamo.Artifact({str(artifact)!r})\n"
        "a(np.zeros((3, 6), np.float32), scale=np.float32(1))\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_for_a_tpu(tmp_path):
    """A program for a described TPU: judged, compared with itself, and still right on this machine's CPU."""
    module, x = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256)), torch.randn(128, 256)
    path = tmp_path / "mlp.ttpu"
    compiled = aot_compile(module, (x,), topology=["v5e:1x1"], output=path, options={"xla_options": {}})
    build = compiled.build("inference", "v5e:1x1")
    assert build["compiled_with"] == {"xla_tpu_scoped_vmem_limit_kib": 65536}
    assert build["memory"]["arguments"] > 4 * 2 * 256 * 512 and build["hbm"] > 15 << 30
    assert build["memory"]["arguments"] < build["predicted"] < 1.15 * build["memory"]["peak"]
    judged = compiled.judged("inference", "v5e:1x1")["cost"]
    assert judged["estimated"] > 1000 and judged["unknown"] == []
    assert sum(judged["by_name"].values()) == judged["estimated"]
    torch.testing.assert_close(compiled(x), module(x).detach())
    assert "holds no executable for cpu" in compiled.prepare()


class Block(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(size, size), nn.LayerNorm(size)

    def forward(self, x):
        return x + torch.relu(self.linear(self.norm(x)))


@pytest.mark.parametrize("train", [False, True])
def test_layers_as_regions(train):
    """Equal ones are one function; others, and modules of a single operator, are what they were."""
    module = nn.Sequential(
        nn.Linear(6, 4), nn.Linear(4, 4), nn.Sequential(*[Block(4) for _ in range(3)]), Block(4)
    )
    forward = Block.__dict__["forward"]
    x = torch.randn(2, 6)
    compiled = aot_compile(module, (x,), regions=True, train=train)
    assert Block.__dict__["forward"] is forward
    for kind in compiled.programs:
        text = compiled.stablehlo(kind)
        assert text.count('inlineable = "false"') == text.count("func.call @") == 4
        assert text.count("func.func private") == 1
    found = compiled.forward(x)[0] if train else compiled(x)
    torch.testing.assert_close(found, module(x).detach())
    with pytest.raises(TorchTPUError, match="an exported program has no modules left"):
        aot_compile(torch.export.export(module, (x,)), regions=True)


def test_equal_layers_are_compiled_once():
    """A region that is called several times stays a function, and is judged once for each call."""

    @torch.compiler.nested_compile_region
    def layer(x, w):
        return torch.relu(x @ w) + x

    def calls(count):
        def fn(x, *weights):
            for w in weights:
                x = layer(x, w)
            return x

        return aot_compile(fn, (torch.randn(256, 256), *[torch.randn(256, 256)] * count), topology="v5e:1x1")

    once, four = calls(1), calls(4)
    assert four.stablehlo("inference").count('inlineable = "false"') == 4
    assert "inlineable" not in once.stablehlo("inference")
    of_one, of_four = (a.judged("inference", "v5e:1x1")["cost"]["estimated"] for a in (once, four))
    assert 2 * of_one < of_four < 8 * of_one
    kernels = [len(a.judged("inference", "v5e:1x1")["cost"]["by_name"]) for a in (once, four)]
    assert kernels[1] < 4 * kernels[0]


def test_does_not_fit(tmp_path):
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(32768, 32768, bias=False) for _ in range(5))

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    with torch.device("meta"):
        module, x = Wide(), torch.randn(16, 32768)
    with pytest.raises(TorchTPUError) as caught:
        aot_compile(module, (x,), topology="v5e:1x1", output=tmp_path / "wide.ttpu")
    text = str(caught.value)
    assert "does not fit on v5e:1x1: it needs 21.5 GB of HBM and a device has 16.9 GB, 4.56 GB less" in text
    assert "layers.4.weight" in text and "by our own estimate the peak is 21.5 GB" in text
    assert "bfloat16" in text and "shard them over 2 devices" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("v5e:0x1", "it has no chips"),
        ("v5p:2x2x0", "it has no chips"),
        ("v5p:512x512x512", "it has more than 65,536"),
    ],
)
def test_impossible_topology(net, name, why):
    with pytest.raises(
        TorchTPUError, match=f"there is no topology '{name}': {why}(.|\n)*`torchtpu topologies` lists"
    ):
        aot_compile(net, (torch.randn(3, 6),), topology=name)
    assert why in topologies.describe([name, "v5e:1x1"])[name]["error"]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("a", "is of the type str, and should be an array of float32"),
        (None, "was a tensor when this was compiled, and is None"),
        ([[1.0], [1.0, 2.0]], "is no array: its rows are not equally long"),
        (object(), "is of the type object, and should be an array of float32"),
        (np.ones((3, 6)), "is float64, not float32"),
    ],
)
def test_values_that_are_no_arrays(artifact, value, why):
    with pytest.raises(TypeError, match=f"input `x` {why}"):
        Artifact(artifact, key=KEY)(value, 1.0)


def test_folder_is_no_artifact(tmp_path, capsys):
    assert main(["inspect", str(tmp_path)]) == 1
    assert f"torchtpu inspect: {tmp_path}: this is a folder, and no artifact\n" in capsys.readouterr().err


def test_unknown_topology(net):
    with pytest.raises(
        TorchTPUError, match=r"libtpu knows no topology 'v5e:2x3'\nhelp: did you mean .*v5e:2x2"
    ):
        aot_compile(net, (torch.randn(3, 6),), topology="v5e:2x3")


def test_without_libtpu(net, monkeypatch):
    monkeypatch.setattr(topologies.plugins, "libtpu_path", lambda: None)
    monkeypatch.delenv("TORCHTPU_LIBTPU", raising=False)
    with pytest.raises(TorchTPUError, match=r"libtpu is not installed\nhelp: pip install"):
        aot_compile(net, (torch.randn(3, 6),), topology="v5e:1x1")


WORKERS = {
    "crash": "import os; os.abort()",
    "kill": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "noise": "import sys; print('E0000 something of libtpu', file=sys.stderr); sys.exit(3)",
    "hang": "import time; time.sleep(60)",
}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("crash", "libtpu died of SIGABRT after"),
        ("kill", "was killed, most likely for want of memory"),
        ("noise", "ended with status 3 after"),
        ("hang", "took longer than 1 s, and was stopped"),
    ],
)
def test_a_child_that_fails(monkeypatch, tmp_path, how, message):
    """Whatever happens to libtpu is an error here, and no more."""
    (tmp_path / "python").write_text(f"#!{sys.executable}\n{WORKERS[how]}\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(topologies, "library", lambda: "libtpu.so")
    monkeypatch.setattr(topologies.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(TorchTPUError, match=message) as caught:
        topologies.build(b"", "v5e:1x1", name="inference", time_limit=1.0 if how == "hang" else 60.0)
    if how == "noise":
        assert "| E0000 something of libtpu" in str(caught.value)


def test_what_is_not_needed_any_more_ends(monkeypatch, tmp_path):
    """Ctrl-C, or one compilation that fails, stops the others."""
    (tmp_path / "python").write_text(f"#!{sys.executable}\n{WORKERS['hang']}\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(topologies, "library", lambda: "libtpu.so")
    monkeypatch.setattr(topologies.sys, "executable", str(tmp_path / "python"))
    start = time.monotonic()
    with pytest.raises(TorchTPUError, match="compiling 'inference' for v5e:1x1 was stopped"):
        topologies.build(b"", "v5e:1x1", name="inference", cancelled=lambda: time.monotonic() - start > 0.5)
    assert time.monotonic() - start < 20


def test_children_end_with_their_parent(tmp_path):
    """A parent that is killed leaves no compilation behind."""
    script = (
        "import sys, time, threading, os\n"
        "from torchtpu_dynamo.ahead import worker\n"
        "threading.Thread(target=worker._end_with_parent, daemon=True).start()\n"
        "print(os.getpid(), flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys\n"
            f"subprocess.Popen([sys.executable, '-c', {script!r}], stdin=subprocess.PIPE).wait()",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not os.path.exists(f"/proc/{child}") or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the child lives on")
