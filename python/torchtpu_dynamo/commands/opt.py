"""`torchtpu opt`: passes over textual IR."""

from __future__ import annotations

import argparse
import difflib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from .. import report_text as words
from .._torchtpu import TorchTPUError, bisect, optimize
from ..files import replacing


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", help="IR as `Program.graph_text()` and TORCHTPU_DUMP have it; - is standard input"
    )
    parser.add_argument(
        "--passes", type=lambda v: v.split(","), default=[], metavar="A,B", help="default: the pipeline"
    )
    parser.add_argument("--tpu", action="store_true", help="then those for TPUs")
    parser.add_argument("--diff", action="store_true", help="what each pass changes, instead of the result")
    parser.add_argument(
        "--bisect", metavar="COMMAND", help="name the pass behind which `COMMAND FILE` fails on the graph"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="default: standard output")


def run(args: argparse.Namespace) -> int:
    """Runs passes on a graph, and says what each did.

    `--bisect` runs a command on the graph behind passes of the pipeline, about log2 of their number times."""
    text = _text(args.file)
    if args.bisect is not None:
        return _bisect(text, args.bisect)
    result, report = optimize(text, args.passes, args.tpu)
    applied = json.loads(report)
    if args.diff:
        result = "".join(_diffs(text, applied))
    if args.output is None:
        sys.stdout.write(result)
    else:
        with replacing(args.output) as file:
            file.write(result.encode())
    rows = [("pass", "rewrites", "nodes", "seconds")]
    for one in applied:
        before, after = one["nodes"]
        rows.append((one["pass"], str(one["rewrites"]), f"{before} -> {after}", f"{one['seconds']:.6f}"))
    print("\n".join(words.table(rows)), file=sys.stderr)
    return 0


def _text(file: str) -> str:
    """Raises TorchTPUError."""
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text()
    except UnicodeDecodeError:
        raise TorchTPUError(
            f"{file}: this is no text\nhelp: an artifact's IR is what `Artifact(file).ir('inference')` gives"
        ) from None


def _diffs(before: str, applied: list[dict[str, str | None]]) -> list[str]:
    found: list[str] = []
    for one in applied:
        if (after := one["after"]) is not None:
            names = f"before {one['pass']}", f"after {one['pass']}"
            found += difflib.unified_diff(before.splitlines(True), after.splitlines(True), *names)
            before = after
    return found


def _bisect(text: str, command: str) -> int:
    def check(graph: str) -> bool:
        with tempfile.NamedTemporaryFile("w", suffix=".ttir") as file:
            file.write(graph)
            file.flush()
            return subprocess.run(f"{command} {file.name}", shell=True).returncode == 0

    culprit = bisect(text, check)
    if culprit is None:
        print("the command fails on the graph as it is, or behind no pass")
        return 1
    print(f"{culprit[0]}, which is application {culprit[1]} of the pipeline")
    return 0
