"""`torchtpu opt`: the passes as a tool."""

from __future__ import annotations

import pytest
import torch

import torchtpu_dynamo
from torchtpu_dynamo.cli import main


@pytest.fixture
def graph(tmp_path):
    def fn(x, y):
        return torch.softmax(x.reshape(2, 8).reshape(4, 4) @ y, -1) + torch.exp(x.t().t())

    program = torchtpu_dynamo.lower(fn, torch.ones(4, 4), torch.ones(4, 4)).programs["inference"]
    file = tmp_path / "graph.ttir"
    file.write_text(program.graph_text("before"))
    return file, program


def test_pipeline_is_that_of_the_compiler(graph, capsys):
    file, program = graph
    assert main(["opt", str(file)]) == 0
    said = capsys.readouterr()
    assert said.out == program.graph_text("after")
    rows = [line.split() for line in said.err.splitlines()]
    assert [row[0] for row in rows[1:]] == [
        "canonicalize", "one_hot_sums", "redistribute", "cse", "fold_constants", "cse", "canonicalize", "dce",
    ]  # fmt: skip
    assert int(rows[1][1]) > 0
    assert main(["opt", str(file), "--tpu"]) == 0
    assert capsys.readouterr().out == program.graph_text("tpu")


def test_chosen_passes_and_their_changes(graph, tmp_path, capsys):
    file, program = graph
    out = tmp_path / "out.ttir"
    assert main(["opt", str(file), "--passes", "canonicalize,dce", "-o", str(out)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == [
        "pass",
        "canonicalize",
        "dce",
    ]
    assert "reshape" in program.graph_text("before") and "reshape" not in out.read_text()
    assert main(["opt", str(file), "--diff", "--passes", "canonicalize"]) == 0
    changed = capsys.readouterr().out.splitlines()
    assert changed[:2] == ["--- before canonicalize", "+++ after canonicalize"]
    assert any(line.startswith("-") and " reshape " in line for line in changed)


def test_bisection_names_the_pass(tmp_path, capsys):
    file = tmp_path / "graph.ttir"
    file.write_text(
        'graph "two" {\n'
        "  %0 = parameter {role=input, index=0} : f32[4]\n"
        "  %1 = exponential %0 : f32[4]\n"
        "  %2 = exponential %0 : f32[4]\n"
        "  %3 = add %1, %2 : f32[4]\n"
        "  return %3\n}\n"
    )
    # The command fails where there is one exponential.
    assert main(["opt", str(file), "--bisect", "sh -c 'test $(grep -c exponential $0) = 2'"]) == 0
    assert capsys.readouterr().out == "cse, which is application 3 of the pipeline\n"
    assert main(["opt", str(file), "--bisect", "grep -q exponential"]) == 1


def test_bad_input(tmp_path, capsys):
    file = tmp_path / "graph.ttir"
    file.write_text('graph "g" {\n  %0 = nothing : f32[4]\n  return %0\n}\n')
    assert main(["opt", str(file)]) == 1
    assert "nothing" in capsys.readouterr().err
    assert main(["opt", str(file), "--passes", "dce"]) == 1
    assert "graph_text()" in capsys.readouterr().err
    file.write_text('graph "g" {\n  %0 = parameter {role=input, index=0} : f32[4]\n  return %0\n}\n')
    assert main(["opt", str(file), "--passes", "dec"]) == 1
    assert "there is no pass `dec`" in (said := capsys.readouterr().err) and "dce" in said
