"""The search for a program's form on a chip, and the file of what it finds."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed._functional_collectives import all_reduce
from torch.nn.functional import scaled_dot_product_attention

import torchtpu_dynamo
from torchtpu_dynamo import TorchTPUError, cli, forms, lower, lower_spmd
from torchtpu_dynamo.ahead import tuning
from torchtpu_dynamo.options import parse_options

FORM = {"scoped_vmem_kib": 16384, "tile_mib": 8, "without": ["tile_batch"]}


def mlp() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64))


def program(module=None, x=None):
    return lower(module or mlp(), torch.zeros(32, 64) if x is None else x).programs["inference"]


def attention(q, k, v):
    return scaled_dot_product_attention(q, k, v, is_causal=True)


def heads(count: int = 16, rows: int = 1024) -> torch.Tensor:
    return torch.zeros(1, count, rows, 64)


def entry(of, chip: str = "v5e", **form) -> dict:
    return {"chip": chip, "products": of.products(), "form": {**FORM, **form}}


def test_products_are_what_a_form_is_found_by():
    """Shapes of products count; names and what lies between do not."""

    class Other(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(64, 256), torch.nn.Linear(256, 64)

        def forward(self, x):
            return self.second(torch.relu(self.first(x)) + 1)

    assert program().products() == program(Other()).products()
    assert program().products() != program(x=torch.zeros(16, 64)).products()


V5E, V6E = ["early_sums", "fence_gates"], ["join_late", "ring_gradients"]
"""What no program of a chip has."""


@pytest.mark.parametrize(
    ("shape", "chip", "form"),
    [
        ((4, 12, 512, 64), "v6e", (49152, 64, V6E)),
        ((4, 12, 512, 64), "v5e", (65536, 32, V5E)),
        ((1, 16, 2048, 64), "v6e", (65536, 32, V6E)),
        ((1, 8, 4096, 64), "v6e", (65536, 32, [*V6E, "tile_batch"])),
        ((1, 8, 4096, 64), "v5e", (65536, 32, [*V5E, "tile_batch"])),
        # Scores that would not fit.
        ((1, 32, 8192, 64), "v6e", (65536, 32, V6E)),
        ((1, 1, 64, 64), "v6e", (65536, 32, V6E)),
        (
            (4, 12, 512, 64),
            "tpu7x",
            (None, 32, ["fence_gates", "flatten_rows", "join_late", "ring_gradients"]),
        ),
    ],
)
def test_forms_by_program(shape, chip, form):
    """What the table says of attention, by the size of its scores."""
    x = torch.empty(shape, dtype=torch.bfloat16)
    found = lower(attention, x, x, x).programs["inference"].for_tpu(f"{chip}:2x2")
    assert tuple(json.loads(found.form).values()) == form


@pytest.mark.parametrize(("chip", "kib"), [("v6e", 32768), ("v5e", 65536)])
def test_form_of_tensor_parallelism(chip, kib):
    def build():
        return (
            (lambda x, w: all_reduce(x @ w, "sum", dist.group.WORLD)),
            torch.ones(64, 64),
            torch.ones(64, 64),
        )

    found = lower_spmd(build, 4).programs["inference"].for_tpu(f"{chip}:2x2")
    assert json.loads(found.form)["scoped_vmem_kib"] == kib


def test_file_of_forms(tmp_path):
    path = tmp_path / "m.forms.json"
    made = program()
    default = json.loads(made.for_tpu("v5e:2x2").form)
    forms.merge(str(path), [entry(made, "v6e", tile_mib=16), entry(made)])
    forms.merge(str(path), [entry(made, tile_mib=64)])
    assert [e["form"]["tile_mib"] for e in forms.read(str(path))] == [64, 16]
    given = parse_options({"tuned": str(path)}).compile_json()
    found = made.for_tpu("v5e:2x2", given)
    assert json.loads(found.form) == {**FORM, "tile_mib": 64}
    assert json.loads(found.options)["xla_options"] == {"xla_tpu_scoped_vmem_limit_kib": 16384}
    # On a device, by its kind.
    forms.merge(str(path), [entry(made, "v5p", tile_mib=16)])
    on_device = made.for_tpu("TPU v5", parse_options({"tuned": str(path)}).compile_json())
    assert json.loads(on_device.form)["tile_mib"] == 16
    # Of another chip, or another program: the default.
    assert json.loads(made.for_tpu("v5p:2x2x1", given).form)["scoped_vmem_kib"] is None
    assert json.loads(program(x=torch.zeros(16, 64)).for_tpu("v5e:2x2", given).form) == default


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "no file of forms"),
        ("[]", "version 1"),
        ('{"version": 2, "forms": []}', "version 1"),
        ('{"version": 1, "forms": [{"chip": "v5e", "products": "x"}]}', "form"),
        (
            '{"version": 1, "forms": [{"chip": "v5e", "products": "x", "form": {"tile_mib": 8}}]}',
            "a form has",
        ),
        (
            json.dumps(
                {"version": 1, "forms": [{"chip": "v5e", "products": "x", "form": {**FORM, "tile_mib": 0}}]}
            ),
            "is 0",
        ),
        (None, "cannot read"),
    ],
)
def test_other_files_are_refused(tmp_path, text, said):
    path = tmp_path / "m.forms.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(TorchTPUError, match=said):
        torch.compile(mlp(), backend="tpu", options={"tuned": str(path)})(torch.zeros(2, 64))
    if text is not None:  # nor are they written over
        with pytest.raises(TorchTPUError, match=said):
            forms.merge(str(path), [])
        assert path.read_text() == text


def test_there_is_nothing_to_tune():
    with pytest.raises(TorchTPUError, match="searches for TPUs, and this program is for cpu"):
        torch.compile(mlp(), backend="tpu", options={"tune": 1})(torch.zeros(2, 64))
    with pytest.raises(TorchTPUError, match="no topology to search for"):
        torchtpu_dynamo.aot_compile(mlp(), (torch.zeros(2, 64),), options={"tune": 1})
    with pytest.raises(TorchTPUError, match="'tune' takes a number of seconds"):
        parse_options({"tune": -1})


def made():
    """What the command line compiles."""
    return mlp(), (torch.zeros(2, 64),)


def test_command(tmp_path, capsys):
    output = str(tmp_path / "m.ttpu")
    factory = f"{__name__}:made"
    assert cli.main(["compile", factory, "-o", output, "--tuned", str(tmp_path / "missing.json")]) == 1
    assert "cannot read the forms" in capsys.readouterr().err
    assert cli.main(["compile", factory, "-o", output, "--tune", "1"]) == 1
    assert "no topology to search for" in capsys.readouterr().err
    lost = str(tmp_path / "missing" / "m.json")
    assert (
        cli.main(["compile", factory, "-o", output, "-t", "v5e:1x1", "--tune", "600", "--tuned", lost]) == 1
    )
    assert "missing" in capsys.readouterr().err
    forms.merge(str(tmp_path / "m.json"), [entry(program(x=torch.zeros(2, 64)))])
    given = ["-t", "v5e:1x1", "--tuned", str(tmp_path / "m.json")]
    assert cli.main(["compile", factory, "-o", output, *given]) == 0
    assert cli.main(["inspect", output]) == 0
    assert "form: tiles of 8 MiB, without tile_batch" in capsys.readouterr().out


def test_search_on_a_device(monkeypatch):
    """What a TPU's client asks for: the chip by its kind, and the form in the options of the compilation."""

    def search(program, kind, topology, options, seconds):
        assert (topology, seconds) == ("v6e:1x1", 5)
        return SimpleNamespace(best=SimpleNamespace(form=FORM))

    monkeypatch.setattr(tuning, "search", search)
    client = SimpleNamespace(platform="tpu", devices=lambda: [{"kind": "TPU v6 lite"}])
    given = tuning.on_device(program(), client, parse_options({"tune": 5}))
    assert json.loads(program().for_tpu("v6e:1x1", given).form) == FORM


def test_search_takes_one_choice_after_another(monkeypatch):
    """By costs that are made up: to the least of each choice, and again where another one changed."""
    made = lower(attention, *[heads()] * 3).programs["inference"]
    asked = []

    def trial(self, form, time_limit, cancelled):
        asked.append(form)
        left = "normalize_first" in form["without"]
        cycles = (
            abs(form["tile_mib"] - (8 if left else 64)) + abs((form["scoped_vmem_kib"] or 0) - 32768) / 1024
        )
        self.tried[json.dumps(form).encode()] = None
        return SimpleNamespace(
            form=form,
            cycles=1000 + cycles - 60 * left,
            unpriced=frozenset(),
            prepared=self.program.for_tpu("v5e:1x1"),
        )

    monkeypatch.setattr(tuning._Search, "trial", trial)
    monkeypatch.setattr(tuning._Numbers, "are_kept", lambda *_: True)
    found = tuning.search(made, "inference", "v5e:1x1", parse_options(None), 60)
    assert found.default.form == {"scoped_vmem_kib": 65536, "tile_mib": 32, "without": V5E}
    assert found.best.form == {
        "scoped_vmem_kib": 32768,
        "tile_mib": 8,
        "without": [*V5E, "normalize_first"],
    }
    assert found.tried == len({json.dumps(form) for form in asked})
    # What changes numbers is not taken, and libtpu's options do not change them.
    monkeypatch.setattr(tuning._Numbers, "are_kept", lambda self, a, b: a["without"] == b["without"])
    found = tuning.search(made, "inference", "v5e:1x1", parse_options(None), 60)
    assert found.best.form == {"scoped_vmem_kib": 32768, "tile_mib": 64, "without": V5E}
    # The user's own option is no choice, and no time is no search.
    given = parse_options({"xla_options": {"xla_tpu_scoped_vmem_limit_kib": 1024}})
    assert tuning.search(made, "inference", "v5e:1x1", given, 60).best.form["scoped_vmem_kib"] == 65536
    assert tuning.search(made, "inference", "v5e:1x1", parse_options(None), 0).tried == 1


def test_numbers_are_compared():
    """Forms are run on the CPU, tiles and loops as well; a program that gives something else is found out."""
    made = lower(attention, *[heads()] * 3).programs["inference"]
    numbers = tuning._Numbers(made, parse_options(None))
    default = json.loads(made.for_tpu("v5e:1x1").form)
    other = {**default, "tile_mib": 8, "without": ["normalize_first"]}
    assert numbers.graph_of(default) != numbers.graph_of(other)
    assert numbers.are_kept(default, other)
    numbers.expected = [result + 0.01 for result in numbers.expected]
    assert not numbers.are_kept(default, other)


def test_search(tmp_path):
    """With libtpu: never worse than the default, written down, and the same program when it is made again."""
    output = tmp_path / "m.ttpu"
    x, topology = torch.zeros(256, 64), "v5e:1x1"
    told = []
    first = torchtpu_dynamo.aot_compile(
        mlp(),
        (x,),
        topology=topology,
        options={"tune": 60},
        output=output,
        tell=lambda what, _: told.append(what),
    )
    path = f"{output}.forms.json"
    (found,) = forms.read(path)
    assert found["form"] == first.build("inference", topology)["form"]
    assert found["megacycles"][1] <= found["megacycles"][0] and found["tried"] >= 2
    again = torchtpu_dynamo.aot_compile(mlp(), (x,), topology=topology, options={"tuned": path})
    cycles = [a.judged("inference", topology)["cost"]["estimated"] for a in (first, again)]
    assert cycles[0] == cycles[1]
    assert "inference for v5e:1x1" in told


def test_search_that_is_interrupted_stops_its_children(monkeypatch):
    started = time.monotonic()

    def trial(self, form, time_limit, cancelled):
        if form["scoped_vmem_kib"] == 65536:
            return SimpleNamespace(
                form=form, cycles=1.0, unpriced=frozenset(), prepared=self.program.for_tpu("v5e:1x1")
            )
        if form["scoped_vmem_kib"] == 16384:
            raise KeyboardInterrupt
        while not cancelled():
            time.sleep(0.01)
        raise TorchTPUError("stopped")

    monkeypatch.setattr(tuning._Search, "trial", trial)
    with pytest.raises(KeyboardInterrupt):
        tuning.search(program(), "inference", "v5e:1x1", parse_options(None), 600, jobs=2)
    assert time.monotonic() - started < 60
