"""`torchtpu topologies`: what can be compiled for."""

from __future__ import annotations

import argparse
import json

from .. import report_text as words
from ..ahead import topologies


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="topologies to ask for; default: those known"
    )
    parser.add_argument("--json", action="store_true", help="all that libtpu says, as JSON")


def run(args: argparse.Namespace) -> int:
    """Lists the topologies that the installed libtpu accepts."""
    found = topologies.describe(args.names or topologies.KNOWN)
    if args.names:
        topologies.check([n for n in args.names if "error" in found[n]])
    accepted = {name: said for name, said in found.items() if "error" not in said}
    if args.json:
        print(json.dumps(accepted, indent=1))
        return 0
    rows = [("topology", "chips", "devices", "cores a device", "HBM a device", "kind")]
    for name, said in accepted.items():
        attributes = said["attributes"]
        limit = attributes.get("device_memory_bytes_limit")
        rows.append(
            (
                name,
                str(topologies.chips(name)),
                str(said["devices"]),
                attributes.get("num_cores", "?"),
                words.size(int(limit)) if limit else "?",
                said["kind"],
            )
        )
    print("\n".join(words.table(rows)))
    print(f"{len(accepted)} topologies; any other name that libtpu accepts works as well")
    return 0
