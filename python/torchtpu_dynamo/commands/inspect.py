"""`torchtpu inspect`: what an artifact holds, needs and costs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..ahead import inspection, inspection_html, inspection_text
from ..ahead.artifact import Artifact
from ..files import replacing


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", help="a file of `torchtpu compile`")
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    parser.add_argument("--html", metavar="FILE", help="write a page with pictures, a single file")
    parser.add_argument(
        "--hlo",
        metavar="DIR",
        help="write each program's StableHLO, and per topology the optimized module as an HloModuleProto",
    )


def run(args: argparse.Namespace) -> int:
    """Shows signature, sizes, memory, cycles and versions of an artifact."""
    artifact = Artifact(args.artifact)
    if args.hlo:
        for path in write_hlo(artifact, Path(args.hlo)):
            print(path)
    if args.hlo and not (args.json or args.html):
        return 0
    found = inspection.inspected(artifact)
    if args.html:
        with replacing(args.html) as file:
            file.write(inspection_html.page(found).encode())
        print(args.html)
    elif args.json:
        print(json.dumps(_plain(found), indent=1))
    else:
        print(inspection_text.text(found))
    return 0


def write_hlo(artifact: Artifact, folder: Path) -> list[Path]:
    """NAME.stablehlo.mlir, and NAME.v5e-2x2.hlo.pb; NAME is inference, forward or backward."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for program in artifact.programs:
        written.append(folder / f"{program}.stablehlo.mlir")
        written[-1].write_text(artifact.stablehlo(program))
    for build in artifact.label["builds"]:
        if "hlo" in build:
            written.append(folder / f"{build['program']}.{build['topology'].replace(':', '-')}.hlo.pb")
            written[-1].write_bytes(artifact.section(build["hlo"]))
    return written


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    """Without what only the page draws: every operation, and bytes at every step."""
    programs = {k: {n: v for n, v in p.items() if n != "analysis"} for k, p in found["programs"].items()}
    return {**found, "programs": programs}
