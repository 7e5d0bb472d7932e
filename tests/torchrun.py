"""Starts the cases of `tests.ranks` in several processes, and says what became of each."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RANKS = 4
LIMIT = 550
"""Seconds for a run on a busy machine; a rank ends itself before."""


def torchrun(folder: Path, cases: Sequence[str]) -> tuple[dict[str, list[str | None]], str]:
    """By case: what each rank wrote of it, None where it did not get so far. And what was printed."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TORCHTPU_CACHE": "0",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    run = subprocess.run(
        [*command, "-m", "tests.ranks", str(folder), *cases],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT,
    )  # fmt: skip
    files = {case: [folder / f"{case}.{rank}" for rank in range(RANKS)] for case in cases}
    return {
        case: [f.read_text() if f.exists() else None for f in of] for case, of in files.items()
    }, run.stdout


def agree(folder: Path, cases: Sequence[str]) -> None:
    texts, output = torchrun(folder, cases)
    wrong = {case: of for case, of in texts.items() if of != [""] * RANKS}
    assert not wrong, "\n".join([*(text for of in wrong.values() for text in of if text), output[-4000:]])
