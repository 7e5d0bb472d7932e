"""A child process that compiles one program for one topology, or describes topologies: `python -m
torchtpu_dynamo.ahead.worker FOLDER`.

Reads FOLDER/request.json, and leaves FOLDER/answer.json when it is done. A plugin that crashes, hangs or is killed takes
nobody else with it. Starts in milliseconds: nothing here may import torch."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from .._torchtpu import TorchTPUError, compile_ahead, describe_topology


def main(folder: Path) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    request = json.loads((folder / "request.json").read_text())
    try:
        answer = WORK[request["work"]](request, folder)
    except TorchTPUError as e:
        answer = {"error": str(e), "help": e.help}
    partial = folder / "answer.partial"
    partial.write_text(json.dumps(answer))
    os.replace(partial, folder / "answer.json")


def _end_with_parent() -> None:
    """Standard input ends when the parent does, whatever it dies of."""
    while os.read(0, 1):  # unbuffered: a lock of Python's must not be held when this process ends by itself
        pass
    os._exit(1)


def build(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    hlo, executable, about = compile_ahead(
        request["plugin"],
        request["topology"],
        request["name"],
        (folder / "program.mlirbc").read_bytes(),
        request["replicas"],
        request["partitions"],
        request["devices"],
        request["options"],
    )
    (folder / "module.hlo.pb").write_bytes(hlo)
    (folder / "executable.bin").write_bytes(executable)
    return dict(json.loads(about))


def describe(request: dict[str, Any], _: Path) -> dict[str, Any]:
    """What the plugin says of each name, or why it does not know it."""
    found: dict[str, Any] = {}
    for name in request["topologies"]:
        try:
            found[name] = json.loads(describe_topology(request["plugin"], name))
        except TorchTPUError as e:
            found[name] = {"error": str(e)}
    return {"topologies": found}


WORK = {"build": build, "describe": describe}

if __name__ == "__main__":
    main(Path(sys.argv[1]))
