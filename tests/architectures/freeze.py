"""Writes the frozen list from the installed libraries: `python -m tests.architectures.freeze LIBRARY ... [--settle]`.

Without --settle an entry has no settings, and whoever makes it takes the first of its candidates that eager PyTorch
runs; with it that search is done here once. Entries that are listed with settings keep them."""

from __future__ import annotations

import argparse
import importlib
import json
from importlib import metadata
from typing import Any

import torch

from . import zoo


def write(found: dict[str, Any]) -> None:
    lines = [f'"versions": {json.dumps(found["versions"])}']
    for library in zoo.LIBRARIES:
        rows = ",\n".join(f"  {json.dumps(n)}: {json.dumps(s)}" for n, s in found.get(library, {}).items())
        lines.append(f"{json.dumps(library)}: {{\n{rows}\n}}")
    zoo.LIST.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=zoo.LIBRARIES, nargs="+")
    parser.add_argument("--settle", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(zoo.LIST.read_text()) if zoo.LIST.exists() else {"versions": {}}
    for library in args.library:
        of = importlib.import_module(f"tests.architectures.of_{library}")
        found["versions"][library] = metadata.version(library)
        known = found.get(library, {})
        found[library] = {
            name: known.get(name) or (zoo.first_that_runs(library, name) if args.settle else {})
            for name in of.names()
        }
    write(found)


if __name__ == "__main__":
    main()
