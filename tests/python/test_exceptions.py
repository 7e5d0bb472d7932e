"""tests/exceptions.toml is the one list: no test sets a tolerance of its own, or is skipped, that it does not name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import exceptions
from tests.ops import families

HERE = Path(__file__).parent
SKIPS = ("skip", "skipif", "xfail", "importorskip")


def found(file: Path) -> Iterator[tuple[str, str]]:
    """("tolerance" or "skipped", function) of what a file asks less of; an empty function is the file itself."""
    for part in ast.parse(file.read_text()).body:
        name = part.name if isinstance(part, (ast.FunctionDef, ast.ClassDef)) else ""
        for node in ast.walk(part):
            if isinstance(node, ast.Call):
                set_here = [k.value for k in node.keywords if k.arg in ("rtol", "atol")]
                # `test_ops.py` asks the list itself.
                if file.name != "test_ops.py":
                    set_here += [k.value for k in node.keywords if k.arg is None and "tol" in ast.dump(part)]
                if any(not (isinstance(v, ast.Constant) and v.value == 0) for v in set_here):
                    yield "tolerance", name
                called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
                if called in SKIPS:
                    yield "skipped", name


@pytest.mark.parametrize("kind", ["tolerance", "skipped"])
def test_every_exception_is_listed_with_its_cause(kind: str) -> None:
    groups = exceptions.table()[kind]
    assert all(group["cause"] for group in groups)
    listed = [test for group in groups for test in group.get("tests", [])]
    files = [*HERE.glob("test_*.py"), HERE.parent / "ranks.py"]  # which test_torchrun.py runs
    there = {f"{file.name}::{name}" for file in files for k, name in found(file) if k == kind}
    assert set(listed) == there


def test_listed_cases_exist() -> None:
    cases = {f"{family}/{case.name}" for family, all_ in families().items() for case in all_}
    for group in (*exceptions.table()["tolerance"], *exceptions.table()["skipped"]):
        assert cases >= set(group.get("cases", []))


def test_listed_entries_exist() -> None:
    from torch.testing._internal.common_methods_invocations import op_db

    names = {op.name for op in op_db} | {f"{op.name}.{op.variant_test_name}" for op in op_db}
    for group in exceptions.table()["compared"]:
        assert names >= set(group["entries"]), sorted(set(group["entries"]) - names)
