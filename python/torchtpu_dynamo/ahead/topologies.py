"""Devices that are described and not there: names, descriptions, and compilations for them, each in a child process.

libtpu needs no TPU for this, but its environment says so before it starts; a crash, a hang or a kill of the child
becomes a TorchTPUError with the reason. Nothing here may import torch."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import plugins
from .._torchtpu import TorchTPUError

ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a lock file lets one process at a time in
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_SKIP_MDS_QUERY": "1",  # else it asks the network who it is
    "TPU_WORKER_HOSTNAMES": "localhost",
}
TIME_LIMIT = 3600.0
"""Seconds for one compilation."""

MOST_CHIPS = 65_536
"""Seven times the largest pod that there is."""

POLL = 0.2
"""Seconds between two looks at a compilation."""

_SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    "1x1x1",
    "2x2x1",
    "2x2x2",
    "2x2x4",
    "2x4x4",
    "4x4x4",
    "4x4x8",
    "4x8x8",
    "8x8x8",
    "8x8x16",
    "8x16x16",
    "16x16x16",
)
KNOWN = (
    *(f"{name}:{size}" for name in ("v2", "v3") for size in ("2x2", "4x4", "4x8", "8x8", "8x16", "16x16")),
    *(f"v4:{size}" for size in _CUBES),
    *(f"v5e:{size}" for size in _SQUARES),
    *(f"v5p:{size}" for size in (*_CUBES, "16x16x24", "16x20x28")),
    *(f"v6e:{size}" for size in _SQUARES),
    *(f"tpu7x:{size}" for size in (*_CUBES, "16x16x24", "16x24x24")),
)
"""Names to try and to suggest. Any other that libtpu knows works as well."""


@dataclasses.dataclass(frozen=True)
class Build:
    """A program for a topology."""

    topology: str
    hlo: bytes
    """The optimized module, an HloModuleProto."""
    executable: bytes
    memory: Mapping[str, int]
    """Bytes of one device, by category."""
    plugin: Mapping[str, str]
    stages: Mapping[str, float]
    """Seconds."""


def chips(name: str) -> int | str:
    """How many chips a topology's name says."""
    sizes = name.partition(":")[2].split("x")
    return math.prod(map(int, sizes)) if all(size.isdigit() for size in sizes) else "?"


def library() -> str:
    """The path of libtpu. Raises TorchTPUError where it is not installed."""
    path = os.environ.get("TORCHTPU_LIBTPU") or plugins.libtpu_path()
    if path is None:
        raise TorchTPUError("libtpu is not installed\nhelp: pip install 'torchtpu-dynamo[tpu]'")
    return path


def describe(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By name what libtpu says of a topology: devices, kind, attributes; or {"error": why}."""
    plugin = library()
    impossible = {name: {"error": why} for name in names if (why := _impossible(name))}
    answer, _ = _run(
        {"work": "describe", "plugin": plugin, "topologies": [n for n in names if n not in impossible]},
        {},
        300.0,
        "describing topologies",
    )
    return {name: impossible.get(name) or answer["topologies"][name] for name in names}


def _impossible(name: str) -> str | None:
    """Why libtpu is not asked: it dies of a topology without chips, and lists the chips of the largest one by one."""
    found = chips(name)
    if isinstance(found, str) or 0 < found <= MOST_CHIPS:
        return None
    return "it has no chips" if found == 0 else f"it has more than {MOST_CHIPS:,} chips"


def check(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """As `describe`. Raises TorchTPUError for a name that libtpu does not know, with the nearest that it does."""
    found = describe(names)
    for name, said in found.items():
        if "error" in said:
            near = difflib.get_close_matches(name, KNOWN, n=3, cutoff=0.5)
            accepted = [n for n, d in describe(near).items() if "error" not in d] if near else []
            hint = f"did you mean {' or '.join(accepted)}? " if accepted else ""
            known = _impossible(name)
            why = f"there is no topology {name!r}: {known}" if known else f"libtpu knows no topology {name!r}"
            raise TorchTPUError(f"{why}\nhelp: {hint}`torchtpu topologies` lists what it accepts")
    return found


def build(
    program: bytes,
    topology: str,
    *,
    name: str,
    options_json: str = "",
    replicas: int = 1,
    partitions: int = 1,
    devices: Sequence[int] | None = None,
    time_limit: float = TIME_LIMIT,
    cancelled: Callable[[], bool] = lambda: False,
) -> Build:
    """Compiles StableHLO (MLIR bytecode or text) with libtpu: by replica and partition for these `devices`, by id, or for
    the first ones in order. Raises TorchTPUError, also once `cancelled` says so."""
    request = {
        "work": "build",
        "plugin": library(),
        "topology": topology,
        "name": name,
        "replicas": replicas,
        "partitions": partitions,
        "devices": None if devices is None else list(devices),
        "options": options_json,
    }
    answer, files = _run(
        request, {"program.mlirbc": program}, time_limit, f"compiling {name!r} for {topology}", cancelled
    )
    return Build(
        topology,
        files["module.hlo.pb"],
        files["executable.bin"],
        answer["memory"],
        answer["plugin"],
        answer["stages"],
    )


def _run(
    request: dict[str, Any],
    files: Mapping[str, bytes],
    time_limit: float,
    what: str,
    cancelled: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The child's answer, and the files that it left."""
    folder = Path(tempfile.mkdtemp(prefix="torchtpu-ahead-"))
    try:
        for file, content in files.items():
            (folder / file).write_bytes(content)
        (folder / "request.json").write_text(json.dumps(request))
        path = os.pathsep.join(
            [str(Path(__file__).resolve().parent.parent.parent), os.environ.get("PYTHONPATH", "")]
        )
        child = subprocess.Popen(
            [sys.executable, "-m", "torchtpu_dynamo.ahead.worker", str(folder)],
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path.rstrip(os.pathsep)},
            stdin=subprocess.PIPE,  # which ends when this process does
            stdout=subprocess.DEVNULL,
            stderr=(folder / "stderr").open("wb"),
            start_new_session=True,
        )
        started = time.monotonic()
        try:
            while child.poll() is None:
                if cancelled():
                    raise TorchTPUError(f"{what} was stopped, as it is not needed any more")
                if time.monotonic() - started > time_limit:
                    raise TorchTPUError(
                        f"{what} took longer than {time_limit:g} s, and was stopped\n"
                        "help: give it more time, or a smaller program"
                    )
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(POLL)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        answer = folder / "answer.json"
        if child.returncode != 0 or not answer.exists():
            raise TorchTPUError(
                _failure(child.returncode, folder / "stderr", what, time.monotonic() - started)
            )
        said = json.loads(answer.read_text())
        if "error" in said:
            error = TorchTPUError(said["error"])
            error.help = said.get("help")
            raise error
        left = {
            f.name: f.read_bytes()
            for f in folder.iterdir()
            if f.name not in {*files, "request.json", "stderr", "answer.json"}
        }
        return said, left
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _failure(status: int, stderr: Path, what: str, seconds: float) -> str:
    """Why a child ended without an answer."""
    said = [line for line in stderr.read_text(errors="replace").splitlines() if line.strip()]
    shown = said if len(said) <= 10 else [*said[:5], f"... {len(said) - 10} lines", *said[-5:]]
    tail = "".join(f"\n  | {line[:300]}" for line in shown)
    if status == -signal.SIGKILL:
        ended, hint = (
            "was killed, most likely for want of memory",
            "compile fewer programs at once (`--jobs 1`)",
        )
    else:
        ended = f"died of {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        hint = "another version of libtpu, or other XLA options, may do"
    return f"{what}: libtpu {ended} after {seconds:.0f} s{tail}\nhelp: {hint}"
