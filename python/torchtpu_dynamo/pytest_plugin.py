"""A pytest plugin: the fixture `hlo_snapshot`, which compares the program that a function becomes with a committed file.

    def test_model(hlo_snapshot):
        hlo_snapshot.check(model, x)                      # its StableHLO
        hlo_snapshot.check(model, x, topology="v5e:1x1")  # and what libtpu makes of it

Files lie beside the test, in `__hlo_snapshots__/MODULE/TEST.KIND.mlir`. `--hlo-snapshot-update` accepts what is new;
`--hlo-snapshot-update=torch` writes those that differ for this version of torch alone, where versions give other graphs.
Comparing is `hlo_snapshot`; nothing here may import torch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from . import hlo_snapshot as snapshots
from . import hlo_text

_USED: Any = pytest.StashKey[set[str]]()
_WRITTEN: Any = pytest.StashKey[list[str]]()
MOST = 120
"""Lines of a difference that a failure shows."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hlo_snapshot", "snapshots of emitted StableHLO")
    group.addoption(
        "--hlo-snapshot-update",
        nargs="?",
        const="all",
        choices=("all", "torch"),
        help="accept what the programs are now; =torch: for this version of torch alone",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_USED], config.stash[_WRITTEN] = set(), []


class HloSnapshot:
    """What the fixture gives."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._config = request.config
        module, name = request.node.path, re.sub(r"[^\w.-]+", "_", request.node.name).strip("_")
        self._folder = module.parent / snapshots.FOLDER / module.stem
        self._name, self._count = name, 0

    def check(
        self,
        fn: Callable[..., Any],
        *args: Any,
        topology: str | None = None,
        name: str | None = None,
        train: bool = False,
        locations: bool = False,
        band: float = 0.02,
        options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Fails where `fn(*args, **kwargs)` becomes another program than the committed one.

        With `train`, its forward and its backward are compared. With `topology`, each is compiled by libtpu too, and the
        kernels, collectives, memory and cycles of what comes of it are compared, memory and cycles within `band`; such a
        file is of one version of libtpu. With `locations` the file has the user's lines. `name` is for a second check of
        one test. Raises TorchTPUError for what cannot be lowered."""
        self._count += 1
        stem = name or (self._name if self._count == 1 else f"{self._name}.{self._count}")
        texts, programs = snapshots.lowered(fn, args, kwargs, train, options)
        problems = []
        for kind, text in texts.items():
            problems += self._text(f"{stem}.{kind}", text, locations)
        if topology is not None:
            xla = json.dumps({"xla_options": dict((options or {}).get("xla_options", {}))})
            for kind, program in programs.items():
                found = snapshots.summary(kind, program, topology, xla)
                problems += self._summary(f"{stem}.{kind}", found, band)
        if problems:
            pytest.fail("\n".join(problems), pytrace=False)

    def _text(self, stem: str, text: str, locations: bool) -> list[str]:
        own = self._folder / f"{stem}.torch-{snapshots.torch_version()}.mlir"
        path = self._folder / f"{stem}.mlir"
        text = snapshots.relative(text, self._config.rootpath)
        kept = text if locations else snapshots.without_locations(text)
        differs = not path.exists() or path.read_text() != kept
        if own.exists() or (self._update == "torch" and differs):
            path = own
        old = self._read(path, kept)
        if old is None or old == kept:
            return [] if old is not None else self._missing(path)
        if hlo_text.lines(old) == hlo_text.lines(kept) and not locations:
            return []
        where = hlo_text.changed_lines(old, text)
        shown = list(hlo_text.difference(old, text))
        more = [f"... {len(shown) - MOST} lines more"] if len(shown) > MOST else []
        return [
            f"{self._shown(path)}: the program is another one now (- committed, + now)",
            *(f"  from {place}" for place in where[:20]),
            *(f"  {change}" for change in hlo_text.count_changes(old, text)),
            *shown[:MOST],
            *more,
            "accept it with: pytest --hlo-snapshot-update",
        ]

    def _summary(self, stem: str, found: dict[str, Any], band: float) -> list[str]:
        place = found["topology"].replace(":", "-")
        path = self._folder / f"{stem}.{place}.libtpu-{snapshots.libtpu_version()}.json"
        text = json.dumps(found, indent=1, sort_keys=True) + "\n"
        old = self._read(path, text)
        if old is None:
            return self._missing(path)
        problems = snapshots.summary_problems(json.loads(old), found, band)
        if not problems:
            return []
        return [f"{self._shown(path)}: {found['topology']} runs it otherwise", *(f"  {p}" for p in problems)]

    @property
    def _update(self) -> str | None:
        chosen: str | None = self._config.getoption("--hlo-snapshot-update")
        return chosen

    def _read(self, path: Path, text: str) -> str | None:
        """The committed text, or what is accepted now; None where there is none, and none may be written."""
        self._config.stash[_USED].add(str(path))
        old = path.read_text() if path.exists() else None
        if self._update or (old is None and not os.environ.get("CI")):
            if old != text:
                snapshots.write(path, text)
                self._config.stash[_WRITTEN].append(str(path))
            return text
        return old

    def _missing(self, path: Path) -> list[str]:
        return [f"{self._shown(path)} is missing; run pytest on your machine and commit it"]

    def _shown(self, path: Path) -> str:
        return os.path.relpath(path, self._config.rootpath)


@pytest.fixture
def hlo_snapshot(request: pytest.FixtureRequest) -> HloSnapshot:
    """Compares the program that a function becomes with a committed file: `hlo_snapshot.check(fn, *args)`."""
    return HloSnapshot(request)


def pytest_sessionfinish(session: pytest.Session) -> None:
    output: Any = getattr(
        session.config, "workeroutput", None
    )  # under xdist: a worker's words to the controller
    if output is not None:
        output["hlo_snapshots_used"] = sorted(session.config.stash[_USED])
        output["hlo_snapshots_written"] = session.config.stash[_WRITTEN]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: Any) -> None:
    output = getattr(node, "workeroutput", {})
    stash = node.config.stash
    stash[_USED].update(output.get("hlo_snapshots_used", ()))
    stash[_WRITTEN] += output.get("hlo_snapshots_written", ())


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    """Says what was written, and, after a run of everything, which files no test uses."""
    written = sorted(set(config.stash[_WRITTEN]))
    for path in written:
        terminalreporter.write_line(f"hlo_snapshot: wrote {os.path.relpath(path, config.rootpath)}")
    orphans = _orphans(config) if _is_whole(config) and exitstatus == 0 else []
    for orphan in orphans:
        terminalreporter.write_line(f"hlo_snapshot: no test uses {os.path.relpath(orphan, config.rootpath)}")


def _is_whole(config: pytest.Config) -> bool:
    chosen = [arg for arg in config.args if "::" in arg]
    return not chosen and not config.option.keyword and not config.option.markexpr


def _orphans(config: pytest.Config) -> list[Path]:
    """Files that no test of this run used, where tests of their folder ran. Those of other versions of torch or libtpu are
    theirs."""
    used = {Path(path) for path in config.stash[_USED]}
    ours = f".torch-{snapshots.torch_version()}." if used else ""
    found = []
    for folder in {path.parent for path in used}:
        for path in sorted(folder.iterdir()):
            other_torch = ".torch-" in path.name and ours not in path.name
            other_libtpu = (
                ".libtpu-" in path.name and f".libtpu-{snapshots.libtpu_version()}." not in path.name
            )
            replaced = path.suffix == ".mlir" and path.with_name(f"{path.stem}{ours}mlir") in used
            if path not in used and not other_torch and not other_libtpu and not replaced:
                found.append(path)
    return found
