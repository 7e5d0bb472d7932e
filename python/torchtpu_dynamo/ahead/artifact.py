"""An artifact: what was compiled ahead, to be looked at and to be run.

The file is `compiler/artifact`, running it `compiler/driver/src/deploy`; here are its label's words and the arguments of
a call. Nothing here may import torch; a call with torch's tensors answers with such."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import plugins
from .._torchtpu import ArtifactFile, ArtifactWriter, Model, TorchTPUError, analyse, judge
from ..files import replacing
from . import arrays, trees

VERSION = 1
"""Of the label."""

_KINDS = ("inference", "forward", "backward")


def _checked(seed: int) -> int:
    if not 0 <= seed < 2**64:
        raise TorchTPUError(f"a seed is a number from 0 to 2**64 - 1, not {seed}")
    return seed


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raises OSError where an artifact could not be written in the end."""
    ArtifactWriter(os.fspath(path)).abandon()


class Artifact:
    """A compiled module: `Artifact("model.ttpu")(x)`.

    Called with what the module takes, NumPy arrays or torch tensors, it gives what the module gives; a dataclass is a
    dictionary. `seed` decides random operators. Executables in the file are native code, and are loaded only with
    `trusted=True` or where the file was signed with `key`; otherwise the program is compiled from its checked IR.
    `weights` are for an artifact without: a mapping by name, or a safetensors file; names that it does not know are left,
    unless it knows none of them. Raises TorchTPUError for a file that is not whole, is not as it was written, or is of
    another version."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        plugin: str | None = None,
        trusted: bool = False,
        key: bytes | None = None,
        weights: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    ) -> None:
        self.path = Path(path)
        self._plugin, self._trusted, self._key, self._weights = plugin, trusted, key, weights
        if self.path.is_dir():
            raise TorchTPUError(f"{self.path}: this is a folder, and no artifact\nhelp: name a file in it")
        try:
            self.file = ArtifactFile(self.path)
        except ValueError as e:
            raise TorchTPUError(str(e)) from None
        self.label: dict[str, Any] = json.loads(self.file.label())
        if self.label.get("version") != VERSION:
            raise TorchTPUError(
                f"{self.path}: the artifact's label is of version {self.label.get('version')}, "
                f"and this torchtpu-dynamo reads {VERSION}\nhelp: compile it anew, or install the version that did"
            )
        self._model: Model | None = None
        self._temporary: Any = None

    @classmethod
    def load(cls, path: str | os.PathLike[str], **options: Any) -> Artifact:
        """`Artifact(path, ...)`."""
        return cls(path, **options)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Copies the file; the copy is whole or not there."""
        target = Path(path)
        with self.path.open("rb") as source, replacing(target) as copy:
            shutil.copyfileobj(source, copy)
        return target

    @property
    def programs(self) -> tuple[str, ...]:
        """`inference`, or `forward` and `backward`; each after those for buckets of its sizes, as `inference-128`."""
        known = self.label["programs"]
        return tuple(
            name for kind in _KINDS if kind in known for name in (*known[kind].get("buckets", ()), kind)
        )

    @property
    def kinds(self) -> tuple[str, ...]:
        """`inference`, or `forward` and `backward`."""
        return tuple(kind for kind in _KINDS if kind in self.label["programs"])

    @property
    def ranks(self) -> int | None:
        """Of a program of `aot_compile_spmd`, how many ranks it is for."""
        return self.label.get("ranks")

    @property
    def topologies(self) -> tuple[str, ...]:
        """What it was compiled for."""
        return tuple(dict.fromkeys(build["topology"] for build in self.label["builds"]))

    def section(self, name: str) -> bytes:
        found = self.file.section(name)
        if found is None:
            raise TorchTPUError(f"{self.path}: there is no section {name!r}")
        return bytes(found)

    def stablehlo(self, program: str) -> str:
        """The StableHLO as it was emitted."""
        return self.section(f"{program}.stablehlo").decode()

    def ir(self, program: str) -> str:
        """The IR after the passes."""
        return self.section(f"{program}.ir").decode()

    def optimized_hlo(self, program: str, topology: str) -> bytes:
        """What the topology's plugin made of a program, an HloModuleProto."""
        return self.section(self.build(program, topology)["hlo"])

    def build(self, program: str, topology: str) -> dict[str, Any]:
        for build in self.label["builds"]:
            if build["program"] == program and build["topology"] == topology:
                return dict(build)
        raise TorchTPUError(f"{self.path}: {program} was not compiled for {topology}")

    def analysis(self, program: str) -> dict[str, Any]:
        """Cost, memory over the schedule, and operations, by our own model."""
        return dict(json.loads(analyse(self.ir(program))))

    def judged(self, program: str, topology: str) -> dict[str, Any]:
        """What the compiled program costs: the plugin's cycles by opcode and line, floors, collectives."""
        build = self.build(program, topology)
        return dict(json.loads(judge(self.section(build["hlo"]), topology, build["devices"])))

    @property
    def model(self) -> Model:
        if self._model is None:
            client = plugins.client(self._plugin, None, self.ranks)
            model = Model(self.path, client, self._trusted, self._key)
            given, taken = None, False
            for given, value in self._given_weights():  # more than ours: a whole model's, for a part of it
                entry = self._weight(given)
                if entry is not None:
                    model.set_weight(given, self._given_weight(given, value, entry["dtype"]))
                    taken = True
            if given is not None and not taken:
                ours = ", ".join(f"`{w['name']}`" for w in self.label["weights"][:4]) or "none"
                raise TorchTPUError(
                    f"{self.path}: none of the weights that are given is one of this artifact's\n"
                    f"help: `{given}` was given, and its own are {ours}; a prefix may be too much or missing"
                )
            self._model = model
        return self._model

    def _weight(self, name: str) -> dict[str, Any] | None:
        """What the label says of a weight; of one that each rank has for itself, rank 2's is `name@2`."""
        base, _, rank = name.rpartition("@")
        for w in self.label["weights"]:
            if w["name"] == (base if w.get("by_rank") and rank.isdigit() else name):
                return dict(w)
        return None

    def _given_weights(self) -> Iterable[tuple[str, Any]]:
        if self._weights is None or isinstance(self._weights, Mapping):
            return (self._weights or {}).items()
        return arrays.of_safetensors(Path(self._weights))

    def _given_weight(self, name: str, value: Any, dtype: str) -> arrays.Passed:
        if not isinstance(value, tuple):
            return self._passed(f"weight `{name}`", value, dtype)
        found: arrays.Passed = value  # of a file
        if found[0] == dtype:
            return found
        if (found[0], dtype) != ("float32", "bfloat16"):
            raise TypeError(f"weight `{name}` is {found[0]}, not {dtype}")
        return arrays.passed(arrays.to_numpy(*found), dtype)

    def prepare(self, program: str | None = None) -> str:
        """Loads or compiles a program, by default the first; says which, and why."""
        return self.model.prepare(program or self.kinds[0])

    def __call__(self, *args: Any, seed: int | None = None, **kwargs: Any) -> Any:
        if self.label["train"]:
            raise TorchTPUError("a training artifact is called as .forward(...) and .backward(...)")
        return self._run("inference", args, kwargs, seed)[0]

    def forward(self, *args: Any, seed: int | None = None, **kwargs: Any) -> tuple[Any, list[Any]]:
        """The results, and what `backward` needs of them."""
        return self._run("forward", args, kwargs, seed)

    def backward(self, saved: Sequence[Any], *cotangents: Any) -> dict[str, Any]:
        """The gradients, by the weight's name or the input's, for the derivatives of the loss by the results that have
        one, in order. One that is None or left out is zero."""
        outputs, _ = self.model.call("backward", self._derivatives(saved, cotangents), 0)
        return self._gradients(outputs, (*saved, *cotangents))

    def run_spmd(self, args_per_rank: Sequence[Sequence[Any]], seed: int | None = None) -> list[Any]:
        """All ranks of a program of `aot_compile_spmd` at once, on as many CPU devices of this process: the results of
        each for its arguments. All draw the same random numbers."""
        return [result for result, _ in self._run_ranks("inference", args_per_rank, seed)]

    def forward_spmd(
        self, args_per_rank: Sequence[Sequence[Any]], seed: int | None = None
    ) -> list[tuple[Any, list[Any]]]:
        """By rank, what `forward` gives."""
        return self._run_ranks("forward", args_per_rank, seed)

    def backward_spmd(
        self, saved_per_rank: Sequence[Sequence[Any]], cotangents_per_rank: Sequence[Sequence[Any]]
    ) -> list[dict[str, Any]]:
        """By rank, what `backward` gives: of a DTensor, the derivative by this rank's part."""
        pairs = list(zip(saved_per_rank, cotangents_per_rank, strict=True))
        answers = self.model.call_ranks("backward", [self._derivatives(*pair) for pair in pairs], 0)
        return [
            self._gradients(outputs, (*saved, *cotangents))
            for (outputs, _), (saved, cotangents) in zip(answers, pairs, strict=True)
        ]

    def _derivatives(self, saved: Sequence[Any], cotangents: Sequence[Any]) -> arrays.PassedAll:
        """What the backward takes."""
        entry = self.label["programs"]["backward"]
        if len(saved) != len(entry["saved"]):
            raise TypeError(
                f"backward takes the {len(entry['saved'])} saved tensors that forward gave, not {len(saved)}"
            )
        given = [
            self._typed(f"saved tensor {i}", v, t)
            for i, (v, t) in enumerate(zip(saved, entry["saved"], strict=True))
        ]
        wanted = entry["cotangents"]
        if len(cotangents) > len(wanted):
            raise TypeError(f"backward takes {len(wanted)} cotangents, not {len(cotangents)}")
        padded = [*cotangents, *[None] * (len(wanted) - len(cotangents))]
        passed = [
            self._typed(f"cotangent {i}", v, t) for i, (v, t) in enumerate(zip(padded, wanted, strict=True))
        ]
        return [], given, passed

    def _gradients(self, outputs: Sequence[Any], given: Sequence[Any]) -> dict[str, Any]:
        make = arrays.to_tensor if any(map(arrays.is_tensor, given)) else arrays.to_numpy
        entry = self.label["programs"]["backward"]
        return {name: make(*outputs[at]) for name, at in entry["gradients"].items()}

    def _typed(self, what: str, value: Any, spec: Mapping[str, Any] | None) -> arrays.Passed:
        """A value of this type; zeros for None, and nothing where the program does not read it."""
        if spec is None:
            return "uint8", [0], b""
        if value is None:
            return arrays.zeros(spec["dtype"], spec["shape"])
        passed = self._passed(what, value, spec["dtype"])
        if passed[1] != spec["shape"]:
            raise TypeError(f"{what} has shape {passed[1]}, not {spec['shape']}")
        return passed

    def _passed(self, what: str, value: Any, dtype: str) -> arrays.Passed:
        try:
            return arrays.passed(value, dtype)
        except TypeError as e:
            raise TypeError(f"{what} {e}") from None

    def call_flat(
        self, values: Sequence[Any], seed: int, program: str | None = None
    ) -> tuple[list[Any], list[tuple[int, Any]]]:
        """All outputs of a program, for tensors in the order of `label["inputs"]`; and those that it changes, by
        position. For several ranks use `call_ranks`."""
        answer = self.model.call(program or self.kinds[0], self._inputs(values), _checked(seed))
        return self._made(answer, values)

    def call_ranks(
        self, ranks: Sequence[Sequence[Any]], seed: int, program: str | None = None
    ) -> list[tuple[list[Any], list[tuple[int, Any]]]]:
        """The same of every rank."""
        passed = [self._inputs(values) for values in ranks]
        answers = self.model.call_ranks(program or self.kinds[0], passed, _checked(seed))
        return [self._made(answer, values) for answer, values in zip(answers, ranks, strict=True)]

    def _inputs(self, values: Sequence[Any]) -> arrays.PassedAll:
        given = []
        for spec, value in zip(self.label["inputs"], values, strict=True):
            what = f"input `{spec['name']}`"
            if value is None:
                raise TypeError(f"{what} was a tensor when this was compiled, and is None")
            if "extents" in spec:  # its sizes are the compiler's to check
                given.append(self._passed(what, value, spec["dtype"]))
            else:
                given.append(self._typed(what, value, spec))
        return given, [], []

    def _made(self, answer: Any, values: Sequence[Any]) -> tuple[list[Any], list[tuple[int, Any]]]:
        outputs, written = answer
        make = arrays.to_tensor if any(map(arrays.is_tensor, values)) else arrays.to_numpy
        return [make(*o) for o in outputs], [(at, make(*changed)) for at, changed in written]

    def _run(
        self, program: str, args: tuple[Any, ...], kwargs: dict[str, Any], seed: int | None
    ) -> tuple[Any, list[Any]]:
        if self.ranks is not None:
            raise TorchTPUError(
                f"{self.path}: the artifact is for {self.ranks} ranks, and a call is one rank's\n"
                "help: run_spmd, forward_spmd and backward_spmd take what each rank passes"
            )
        values = self.bind(args, kwargs)
        self._check_apart(program, values)
        answer = self.call_flat(values, secrets.randbits(63) if seed is None else seed, program)
        return self._results(program, values, *answer)

    def _run_ranks(
        self, program: str, args_per_rank: Sequence[Sequence[Any]], seed: int | None
    ) -> list[tuple[Any, list[Any]]]:
        if self.ranks is None:
            raise TorchTPUError(f"{self.path}: the artifact is what one rank traced\nhelp: aot_compile_spmd")
        if program not in self.kinds:
            raise TorchTPUError(f"{self.path}: the artifact has the programs {', '.join(self.kinds)}")
        ranks = [self.bind(tuple(args), {}) for args in args_per_rank]
        for values in ranks:
            self._check_apart(program, values)
        answers = self.call_ranks(ranks, secrets.randbits(63) if seed is None else seed, program)
        return [
            self._results(program, values, *answer) for values, answer in zip(ranks, answers, strict=True)
        ]

    def _check_apart(self, program: str, values: Sequence[Any]) -> None:
        """Raises TypeError where one input is written and another lies in its memory."""
        entry = self.label["programs"][program]
        # Where sizes are dynamic, what padding holds comes behind them.
        for role, spec in zip(entry["inputs"], entry["interface"]["inputs"], strict=False):
            if "input" not in role or spec["mutated_by"] is None:
                continue
            for i, other in enumerate(values):
                if i != role["input"] and arrays.overlap(values[role["input"]], other):
                    names = [self.label["inputs"][at]["name"] for at in (role["input"], i)]
                    raise TypeError(
                        f"input `{names[0]}` is changed in place, and input `{names[1]}` shares its memory: compiled for "
                        "tensors apart, the program would not see the change\nhelp: pass a copy of one of them"
                    )

    def _results(
        self, program: str, values: list[Any], outputs: list[Any], written: list[tuple[int, Any]]
    ) -> tuple[Any, list[Any]]:
        for at, changed in written:
            arrays.write_back(values[at], changed)
        saves = self.label["programs"][program].get("saves", [])
        return trees.build(self.label["results"], outputs.__getitem__, values), [outputs[at] for at in saves]

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The tensors of a call, in the order of `label["inputs"]`. Raises TypeError."""
        positional, named = self.label["arguments"], dict(self.label["keywords"]["dict"])
        names = [name for name, _ in positional["dict"]]
        given, kwargs = list(args[: len(names)]), self._without_defaults(args[len(names) :], kwargs)
        for name in names[len(given) :]:
            if name in kwargs:
                given.append(kwargs.pop(name))
        if len(given) != len(names) or set(kwargs) != set(named):
            raise self._takes()
        found: dict[int, Any] = {}
        for tree, value in (
            (positional, dict(zip(names, given, strict=True))),
            (self.label["keywords"], kwargs),
        ):
            for leaf, _, tensor in trees.flatten(tree, value):
                found[leaf] = tensor
        return [found[i] for i in range(len(found))]

    def _without_defaults(self, more: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The keywords of a call, with what is passed by position beyond the arguments; without what was a default when
        this was compiled, and is that. Raises TypeError."""
        known = self.label.get("defaults") or {"order": [], "values": {"dict": []}}
        order = known["order"][len(self.label["arguments"]["dict"]) :]
        named = dict(zip(order, more, strict=False))
        if len(more) > len(order) or named.keys() & kwargs.keys():
            raise self._takes()
        kwargs = {**kwargs, **named}
        for name, tree in known["values"]["dict"]:
            if name in kwargs:
                list(trees.flatten(tree, kwargs.pop(name), name))
        return kwargs

    def _takes(self) -> TypeError:
        names = [name for name, _ in self.label["arguments"]["dict"]]
        names += [f"{name}=" for name, _ in self.label["keywords"]["dict"]]
        return TypeError(f"the artifact takes ({', '.join(names)})")
