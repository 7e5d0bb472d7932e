"""Snapshots of emission against StableHLO's own parser and verifier, and MLIR bytecode against the text."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

mlir = pytest.importorskip("jax.interpreters.mlir")
ir = pytest.importorskip("jaxlib.mlir.ir")

ROOT = Path(__file__).resolve().parents[2]
SNAPSHOTS = sorted((ROOT / "snapshots" / "emit").glob("*.snap"))
FIXTURES = sorted((ROOT / "tests" / "ops" / "emit").glob("*.ttir"))


def text_of(snapshot: Path) -> str:
    """A snapshot without insta's header."""
    _, _, content = snapshot.read_text().split("---\n", 2)
    return content


def parse(module: str | bytes) -> Any:
    """Parses with the real dialects, nothing unregistered, and verifies."""
    with mlir.make_ir_context() as context:
        context.allow_unregistered_dialects = False
        parsed = ir.Module.parse(module)
        assert parsed.operation.verify()
        return parsed


def generic(module: Any, locations: bool = False) -> str:
    return str(module.operation.get_asm(print_generic_op_form=True, enable_debug_info=locations))


def test_there_are_snapshots() -> None:
    assert SNAPSHOTS
    assert {f.stem for f in FIXTURES} <= {s.stem for s in SNAPSHOTS}


@pytest.mark.parametrize("snapshot", SNAPSHOTS, ids=lambda path: path.stem)
def test_snapshot_verifies(snapshot: Path) -> None:
    module = parse(text_of(snapshot))
    assert generic(module).startswith('"builtin.module"')


@pytest.fixture(scope="session")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every fixture as bytecode and as text with locations, by the example program of the emitter."""
    if shutil.which("cargo") is None:
        pytest.skip("cargo is not installed")
    command = ["cargo", "build", "-q", "-p", "torchtpu-emit", "--example", "emit", "--message-format=json"]
    build = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    messages = [json.loads(line) for line in build.stdout.splitlines()]
    program = next(m["executable"] for m in messages if m.get("executable"))
    directories = {}
    for form in ("bytecode", "located"):
        directories[form] = tmp_path_factory.mktemp(form)
        subprocess.run([program, form, *map(str, FIXTURES), "--to", str(directories[form])], check=True)
    return directories


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.stem)
def test_bytecode_is_the_text(fixture: Path, emitted: dict[str, Path]) -> None:
    bytecode = parse((emitted["bytecode"] / f"{fixture.stem}.mlir").read_bytes())
    text = parse(text_of(ROOT / "snapshots" / "emit" / f"{fixture.stem}.snap"))
    assert generic(bytecode) == generic(text)
    located = parse((emitted["located"] / f"{fixture.stem}.mlir").read_text())
    assert generic(bytecode, locations=True) == generic(located, locations=True)
