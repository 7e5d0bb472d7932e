"""The pytest plugin `hlo_snapshot`, in test suites of its own, and `torchtpu diff`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from torchtpu_dynamo import hlo_text
from torchtpu_dynamo.commands import diff
from torchtpu_dynamo.hlo_snapshot import libtpu_version

MODEL = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.register_buffer("table", torch.arange(64, dtype=torch.float32).reshape(8, 8))

    def forward(self, x):
        y = torch.relu(self.up(x))
        return self.down(y) @ self.table
"""

TEST = """
import torch
from model import Model

def test_model(hlo_snapshot):
    hlo_snapshot.check(Model(), torch.ones(2, 8))

def test_train(hlo_snapshot):
    hlo_snapshot.check(Model(), torch.ones(2, 8), train=True)
"""


@pytest.fixture
def suite(tmp_path, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "test_model.py").write_text(TEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def run(suite: Path, *args: str, ok: bool = True) -> str:
    """pytest in a process of its own, as a user runs it."""
    done = subprocess.run(
        # Under `-p`, whether or not this checkout's entry points are installed.
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "torchtpu_dynamo.pytest_plugin",
            "-p",
            "no:torchtpu",
            *args,
        ],
        capture_output=True,
        text=True,
        cwd=suite,
        check=False,
    )
    assert (done.returncode == 0) is ok, done.stdout + done.stderr
    return done.stdout


def files(suite: Path) -> dict[str, str]:
    folder = suite / "__hlo_snapshots__" / "test_model"
    return {p.name: p.read_text() for p in sorted(folder.iterdir())} if folder.exists() else {}


def test_written_compared_and_told(suite):
    told = run(suite)
    first = files(suite)
    assert list(first) == [
        "test_model.inference.mlir",
        "test_train.backward.mlir",
        "test_train.forward.mlir",
    ]
    assert "hlo_snapshot: wrote __hlo_snapshots__/test_model/test_model.inference.mlir" in told
    assert "loc(" not in first["test_model.inference.mlir"] and str(suite) not in "".join(first.values())
    assert "wrote" not in run(suite) and files(suite) == first

    (suite / "model.py").write_text(MODEL.replace("torch.relu(self.up(x))", "torch.tanh(self.up(x))"))
    told = run(suite, ok=False)
    assert "from model.py:13" in told, "the line that changed"
    assert "stablehlo.tanh: 0 -> 1" in told and "stablehlo.maximum: 1 -> 0" in told
    assert any(
        line.startswith("+ ") and "stablehlo.tanh" in line and "# model.py:13" in line
        for line in told.splitlines()
    )
    assert files(suite) == first, "nothing is accepted by itself"
    run(suite, "--hlo-snapshot-update")
    assert files(suite) != first and "wrote" not in run(suite)


def test_two_processes_give_the_same_bytes(suite):
    run(suite)
    first = files(suite)
    for path in (suite / "__hlo_snapshots__" / "test_model").iterdir():
        path.unlink()
    run(suite, "-k", "train")
    run(suite, "-n", "2")
    assert files(suite) == first


def test_missing_fails_in_ci(suite, monkeypatch):
    monkeypatch.setenv("CI", "true")
    told = run(suite, ok=False)
    assert (
        "__hlo_snapshots__/test_model/test_model.inference.mlir is missing; run pytest on your machine"
        in told
    )
    assert files(suite) == {}


@pytest.mark.parametrize("workers", [[], ["-n", "2"]])
def test_orphans_are_listed(suite, workers):
    run(suite)
    (suite / "__hlo_snapshots__" / "test_model" / "test_gone.inference.mlir").write_text("module")
    assert "no test uses __hlo_snapshots__/test_model/test_gone.inference.mlir" in run(suite, *workers)
    assert "no test uses" not in run(suite, "-k", "test_train"), "what did not run may be used"


def test_for_one_version_of_torch(suite):
    run(suite)
    common = files(suite)
    run(suite, "--hlo-snapshot-update=torch")
    assert files(suite) == common, "what is the same needs no file of its own"
    (suite / "model.py").write_text(MODEL.replace("relu", "tanh"))
    run(suite, "--hlo-snapshot-update=torch")
    assert {name: files(suite)[name] for name in common} == common
    assert any(".torch-2." in name for name in files(suite))
    assert "no test uses" not in run(suite), "files of other versions stay"


def test_large_constants_are_hashed_and_locations_kept(suite):
    (suite / "test_model.py").write_text(
        "import torch\nTABLE = [[float(i * j) for i in range(24)] for j in range(4)]\n"
        "def test_it(hlo_snapshot):\n"
        "    hlo_snapshot.check(lambda x: x + torch.tensor(TABLE), torch.ones(4, 24), locations=True)\n"
    )
    run(suite)
    (text,) = files(suite).values()
    assert 'dense<"blake2:' in text and '"test_model.py":4' in text and str(suite) not in text
    run(suite)


@pytest.mark.sample
def test_the_example_project(tmp_path, monkeypatch):
    """examples/user_project: its snapshots are those of today, and a changed model is told by its line."""
    example = Path(__file__).parents[2] / "examples" / "user_project"
    project = shutil.copytree(
        example, tmp_path / "project", ignore=shutil.ignore_patterns("build", "__pycache__")
    )
    monkeypatch.setenv("CI", "true")
    chosen = () if list(project.rglob(f"*.libtpu-{libtpu_version()}.json")) else ("-k", "not on_a_tpu")
    run(project, *chosen)
    model = project / "model.py"
    model.write_text(model.read_text().replace("functional.silu", "functional.gelu"))
    told = run(project, "-k", "test_block and not tpu", ok=False)
    assert "from model.py:19" in told and "chlo.erf" in told


def test_a_topology(suite):
    test = TEST.partition("def test_train")[0].replace(
        "torch.ones(2, 8)", 'torch.ones(2, 8), topology="v5e:1x1"'
    )
    (suite / "test_model.py").write_text(test)
    run(suite)
    (name,) = (name for name in files(suite) if name.endswith(".json"))
    assert name.startswith("test_model.inference.v5e-1x1.libtpu-")
    path = suite / "__hlo_snapshots__" / "test_model" / name
    path.write_text(path.read_text().replace('"cycles": ', '"cycles": 9'))
    told = run(suite, ok=False)
    assert "v5e:1x1 runs it otherwise" in told and "cycles: " in told and "beyond 2%" in told


OLD = """module @a {
  func.func public @main(%arg0: tensor<2xf32>) -> tensor<2xf32> {
    %0 = stablehlo.negate %arg0 : tensor<2xf32>
    return %0 : tensor<2xf32>
  }
}
"""
NEW = """module @b {
  func.func public @main(%arg0: tensor<2xf32> loc(#loc1)) -> tensor<2xf32> {
    %0 = stablehlo.exponential %arg0 : tensor<2xf32> loc(#loc2)
    %1 = stablehlo.negate %0 : tensor<2xf32> loc(#loc3)
    return %1 : tensor<2xf32> loc(unknown)
  } loc(unknown)
} loc(unknown)
#loc1 = loc("x")
#loc2 = loc("exp"("f"("model.py":7:0)))
#loc3 = loc("neg"("f"("model.py":8:0)))
"""


def test_difference_of_texts():
    shown = list(hlo_text.difference(hlo_text.stable(OLD, "m"), hlo_text.stable(NEW, "m")))
    assert [line for line in shown if line[0] in "+-"] == [
        "+     %0 = stablehlo.exponential %arg0 : tensor<2xf32>  # model.py:7"
    ], "renumbered values are no difference"
    assert hlo_text.changed_lines(OLD, NEW) == ["model.py:7"]
    assert hlo_text.count_changes(OLD, NEW) == ["stablehlo.exponential: 0 -> 1"]
    assert list(hlo_text.difference(NEW, NEW)) == []


def test_diff_of_files_and_revisions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def git(*args: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@t", *args], check=True, capture_output=True
        )

    folder = tmp_path / "tests" / "__hlo_snapshots__" / "test_m"
    folder.mkdir(parents=True)
    git("init")
    (folder / "test_a.inference.mlir").write_text(OLD)
    git("add", "-A")
    git("commit", "-m", "old")
    (folder / "test_a.inference.mlir").write_text(NEW)
    (folder / "test_b.inference.mlir").write_text(NEW)
    git("add", "-A")
    git("commit", "-m", "new")
    told = list(diff.compared("HEAD~1", "HEAD", 0.0))
    assert told[0] == "tests/__hlo_snapshots__/test_m/test_a.inference.mlir:"
    assert "    stablehlo.exponential: 0 -> 1" in told
    assert told[-1] == "tests/__hlo_snapshots__/test_m/test_b.inference.mlir: new"
    path = "tests/__hlo_snapshots__/test_m/test_a.inference.mlir"
    assert "  from model.py:7" in list(diff.compared(f"HEAD~1:{path}", path, 0.0))
    assert list(diff.compared(path, path, 0.0)) == []
