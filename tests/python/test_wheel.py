"""The wheel as a user gets it: installed into an empty environment, with no compiler or LLVM in reach.

Everything that the wheel may count on (torch, the CPU plugin and what those require) is linked into that
environment one distribution at a time, rather than downloaded again; nothing else of the development
environment can be seen there.
"""

import os
import re
import shutil
import subprocess
import sys
import textwrap
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = ("torch", "numpy", "xla-cpu-pjrt")
COMPILERS = (
    "cc",
    "gcc",
    "g++",
    "c++",
    "clang",
    "ld",
    "lld",
    "rustc",
    "cargo",
    "llvm-config",
    "mlir-opt",
    "nvcc",
)

MODEL = """
    import torch

    torch.manual_seed(0)
    first, second = torch.nn.Linear(16, 32), torch.nn.Linear(32, 4)
    model = torch.nn.Sequential(first, torch.nn.GELU(), torch.nn.LayerNorm(32), second, torch.nn.Softmax(-1))
    inputs = torch.randn(8, 16)
    compiled = torch.compile(model, backend="tpu", fullgraph=True)
    torch.testing.assert_close(compiled(inputs), model(inputs))

    import torchtpu_dynamo

    print("package:", torchtpu_dynamo.__file__)
    for line in open("/proc/self/maps"):
        if ".so" in line:
            print("loaded:", line.split(maxsplit=5)[-1].strip())
"""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(names: tuple[str, ...]) -> list[metadata.Distribution]:
    """The installed distributions among `names` and all that they require."""
    waiting = [Requirement(name) for name in names]
    seen: set[tuple[str, str]] = set()
    found: dict[str, metadata.Distribution] = {}
    while waiting:
        wanted = waiting.pop()
        name = canonical(wanted.name)
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        for extra in {"", *wanted.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            requirements = [Requirement(text) for text in found[name].requires or ()]
            waiting += [
                each for each in requirements if not each.marker or each.marker.evaluate({"extra": extra})
            ]
    return list(found.values())


def link_distributions(folder: Path) -> None:
    """Links the top-level files and folders of the allowed distributions into `folder`."""
    for distribution in closure(ALLOWED):
        for top in {file.parts[0] for file in distribution.files or ()}:
            if top in ("..", "__pycache__"):
                continue
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(distribution.locate_file(top)).resolve())


@pytest.fixture(scope="module")
def wheel() -> Path:
    """The wheel in dist/, made anew where a source is newer than it."""
    outside = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    subprocess.run(["make", "wheel"], cwd=ROOT, env=outside, check=True, stdin=subprocess.DEVNULL)
    (path,) = (ROOT / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    home, linked = folder / "env", folder / "linked"
    venv.create(home, with_pip=False)
    linked.mkdir()
    link_distributions(linked)
    (packages,) = home.glob("lib/python3*/site-packages")
    (packages / "linked.pth").write_text(f"{linked}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin/python")]
    subprocess.run([*pip, "install", "--quiet", "--no-index", "--no-deps", str(wheel)], check=True)
    return home


def run(environment: Path, code: str) -> str:
    """What `code` prints in the environment, with its own programs alone on the path."""
    programs = str(environment / "bin")
    assert [name for name in COMPILERS if shutil.which(name, path=programs)] == []
    variables = {"PATH": programs, "HOME": str(environment), "TMPDIR": str(environment)}
    done = subprocess.run(
        [programs + "/python", "-I", "-c", textwrap.dedent(code)],
        cwd=environment,
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_environment_is_empty(environment: Path) -> None:
    absent = ("transformers", "jax", "jaxlib", "libtpu", "maturin", "pytest")
    code = f"import importlib.util\nprint([name for name in {absent} if importlib.util.find_spec(name)])"
    assert run(environment, code).strip() == "[]"


def test_model_runs(environment: Path) -> None:
    lines = run(environment, MODEL).splitlines()
    packages = [line.split(": ")[1] for line in lines if line.startswith("package: ")]
    assert [path for path in packages if not path.startswith(str(environment))] == []
    loaded = [line.split(": ")[1] for line in lines if line.startswith("loaded: ")]
    assert any(path.startswith(str(environment)) and "_torchtpu" in path for path in loaded)
    assert [
        path for path in loaded if "llvm-" in path or "libMLIR" in path or str(ROOT / "python") in path
    ] == []
