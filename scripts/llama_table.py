"""What compiling a model of Llama-3-8B's shape ahead takes, by layers, with and without regions: a table of docs/ahead.md.

    python scripts/llama_table.py --layers 4 8 16 32 --topology v6e:1x1
    python scripts/llama_table.py --layers 32 --topology v5e:1x1 v5p:1x1x1 tpu7x:1x1x1 --regions yes

Seconds are those of the run's own stages; memory is the largest resident size of our process, and of libtpu's at
most: a child's begins with that of its parent."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAD = (
    "topology",
    "layers",
    "regions",
    "capture",
    "compiler",
    "ours",
    "libtpu",
    "its memory",
    "estimated",
    "peak HBM",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--topology", nargs="+", default=["v6e:1x1"])
    parser.add_argument("--regions", nargs="+", default=["yes", "no"], choices=["yes", "no"])
    args = parser.parse_args()
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD), flush=True)
    for topology in args.topology:
        for layers in args.layers:
            for regions in args.regions:
                row = [
                    topology,
                    layers,
                    regions,
                    *measured(topology, layers, regions),
                ]
                print("| " + " | ".join(map(str, row)) + " |", flush=True)


def measured(topology: str, layers: int, regions: str) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "llama.ttpu"
        code = [sys.executable, __file__, "--one", topology, regions, str(out)]
        env = {
            **os.environ,
            "LAYERS": str(layers),
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(code, env=env, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            wrong = [line for line in done.stderr.splitlines() if "TorchTPUError" in line]
            return [wrong[-1] if wrong else done.stderr[-200:]]
        return list(json.loads(done.stdout.splitlines()[-1]))


def one(topology: str, regions: str, out: str) -> None:
    """One compilation, in a process whose peak memory is its own."""
    from examples.llama import llama

    import torchtpu_dynamo

    artifact = torchtpu_dynamo.aot_compile(*llama(), topology=topology, regions=regions == "yes", output=out)
    stages = artifact.label["stages"]
    build = artifact.build("inference", topology)
    judged = artifact.judged("inference", topology)
    size = {
        who: resource.getrusage(which).ru_maxrss * 1024 / 1e9
        for who, which in (("ours", resource.RUSAGE_SELF), ("libtpu", resource.RUSAGE_CHILDREN))
    }
    print(
        json.dumps(
            [
                f"{stages['capture']:.1f} s",
                f"{stages['compiler']:.2f} s",
                f"{size['ours']:.2f} GB",
                f"{stages[f'inference for {topology}']:.0f} s",
                f"{size['libtpu']:.1f} GB",
                f"{judged['cost']['estimated'] / 1e6:.1f} M cycles",
                f"{build['memory']['peak'] / 1e9:.1f} GB",
            ]
        )
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:])
    else:
        main()
