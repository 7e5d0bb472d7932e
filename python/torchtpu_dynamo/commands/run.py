"""`torchtpu run`: an artifact on arrays, without torch."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np

from .._torchtpu import TorchTPUError
from ..ahead import trees
from ..ahead.artifact import Artifact
from ..ahead.keys import key_of
from ..files import replacing


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", help="a file of `torchtpu compile`")
    parser.add_argument("--inputs", required=True, metavar="IN.npz", help="arrays by the names of the inputs")
    parser.add_argument("--outputs", required=True, metavar="OUT.npz", help="where the results go")
    parser.add_argument("--weights", metavar="FILE.safetensors", help="for an artifact that holds none")
    parser.add_argument(
        "--plugin", help="cpu, tpu, cuda or the path of a PJRT plugin; default: TORCHTPU_PLUGIN"
    )
    parser.add_argument("--seed", type=int, default=0, help="of random operators (default: 0)")
    parser.add_argument(
        "--trust", action="store_true", help="load native code from the artifact, whoever wrote it"
    )
    parser.add_argument("--key", metavar="FILE", help="load native code from artifacts signed with this key")


def run(args: argparse.Namespace) -> int:
    """Runs an artifact on the arrays of an .npz file.

    bfloat16 is float32 in the files, and float8 is uint8, its bits. An artifact for several ranks runs on as many devices
    of the CPU, and its arrays have a first dimension that is the rank."""
    start = time.perf_counter()
    artifact = Artifact(
        args.artifact, plugin=args.plugin, trusted=args.trust, key=key_of(args.key), weights=args.weights
    )
    try:
        with np.load(args.inputs, allow_pickle=False) as opened:
            given = {name: opened[name] for name in opened.files}
    except ValueError as e:
        raise TorchTPUError(f"{args.inputs}: {e}") from None
    names = input_names(artifact)
    if set(given) != set(names):
        missing, foreign = sorted(set(names) - set(given)), sorted(set(given) - set(names))
        raise TorchTPUError(
            f"{args.inputs} has the arrays {sorted(given)}, and the artifact takes {names}"
            + (f": {', '.join(missing)} missing" if missing else "")
            + (f", {', '.join(foreign)} unknown" if foreign else "")
        )
    with replacing(args.outputs) as file:  # which must be there before anything is computed
        try:
            found = named(artifact, names, given, args.seed)
        except TypeError as e:
            raise TorchTPUError(str(e)) from None
        np.savez(file, **found)
    how = "; ".join(f"{name}: {origin}" for name, origin in artifact.model.origins())
    print(f"{how}; {time.perf_counter() - start:.3f} s in all", file=sys.stderr)
    return 0


def named(artifact: Artifact, names: list[str], given: dict[str, Any], seed: int) -> dict[str, Any]:
    """What a call gives and changes, by name; of several ranks, one behind the other."""

    def of_one(result: list[Any], changed: list[tuple[int, Any]]) -> dict[str, Any]:
        return {**outputs(artifact, result), **{f"changed.{names[i]}": a for i, a in changed}}

    if artifact.ranks is None:
        return of_one(*artifact.call_flat([given[name] for name in names], seed))
    for name, array in given.items():
        if array.ndim == 0 or len(array) != artifact.ranks:
            raise TorchTPUError(
                f"{name} has the shape {list(array.shape)}, and its first dimension is the rank, of {artifact.ranks}"
            )
    ranks = [[given[name][rank] for name in names] for rank in range(artifact.ranks)]
    each = [of_one(*answer) for answer in artifact.call_ranks(ranks, seed)]
    return {name: np.stack([one[name] for one in each]) for name in each[0]}


def input_names(artifact: Artifact) -> list[str]:
    """The inputs' names in files: their paths in the arguments."""
    found: dict[int, str] = {}
    for tree in (artifact.label["arguments"], artifact.label["keywords"]):
        found.update({leaf: path for path, leaf in trees.leaves(tree)})
    return [found[i] for i in range(len(found))]


def outputs(artifact: Artifact, results: list[Any]) -> dict[str, Any]:
    """By path: `output`, `output.0`, `output.logits`."""
    return {
        f"output.{path}" if path else "output": results[leaf]
        for path, leaf in trees.leaves(artifact.label["results"])
    }
