"""The options of `torch.compile(..., backend="tpu", options={...})`: one table, and its validation.

An option is one field of `Options`. Nothing here acts on an option.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from ._torchtpu import TorchTPUError


def _option(default: Any, doc: str) -> Any:
    metadata = {"doc": doc}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=type(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Options:
    check_bounds: bool = _option(
        False, "raise on an index out of range and on integer division by zero, as eager does"
    )
    disable_passes: list[str] = _option([], "names of passes to leave out")
    verify: bool = _option(False, "verify the IR after every pass")
    plugin: str | None = _option(
        None, "cpu, tpu, cuda or the path of a PJRT plugin; default: TORCHTPU_PLUGIN, else the best one"
    )
    zero_copy: bool | None = _option(
        None, "share memory with the plugin where it can; default: TORCHTPU_ZERO_COPY, else true"
    )
    xla_options: dict[str, Any] = _option({}, "options of XLA for this compilation, by XLA's names")

    def program_json(self, dump_dir: str | None) -> str:
        """What `Program` wants to know."""
        return json.dumps(
            {
                "check_bounds": self.check_bounds,
                "disabled_passes": self.disable_passes,
                "verify": self.verify,
                "dump_dir": dump_dir,
            }
        )

    def compile_json(self) -> str:
        """What `Program.compile` wants to know."""
        return json.dumps({"xla_options": self.xla_options})


# What isinstance checks, by field: annotations are strings and `bool | None` is no class on every Python.
_TYPES: dict[str, tuple[type, ...]] = {
    "check_bounds": (bool,),
    "disable_passes": (list, tuple),
    "verify": (bool,),
    "plugin": (str, type(None)),
    "zero_copy": (bool, type(None)),
    "xla_options": (dict,),
}


def known_options() -> str:
    """One line an option: name, type, meaning."""
    fields = dataclasses.fields(Options)
    return "\n".join(f"  {f.name} ({f.type}): {f.metadata['doc']}" for f in fields)


def parse_options(options: Mapping[str, Any] | None) -> Options:
    """Checks names and types. Raises TorchTPUError that lists the known options."""
    options = options or {}
    for name, value in options.items():
        expected = _TYPES.get(name)
        if expected is None:
            raise TorchTPUError(f"unknown option {name!r}; the known options are:\n{known_options()}")
        if not isinstance(value, expected):
            names = " or ".join("None" if t is type(None) else t.__name__ for t in expected)
            raise TorchTPUError(
                f"option {name!r} takes {names}, not {value!r}; the known options are:\n{known_options()}"
            )
    values = dict(options)
    for name in ("disable_passes",):
        if name in values:
            values[name] = [_word(name, v) for v in values[name]]
    for name, value in values.get("xla_options", {}).items():
        if not isinstance(name, str) or not isinstance(value, (bool, int, float, str)):
            raise TorchTPUError(f"xla_options maps names to bool, int, float or str; {name!r} is {value!r}")
    return Options(**values)


def _word(option: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TorchTPUError(f"option {option!r} takes a list of str, and {value!r} is none")
    return value


_MODES = {
    "reduce-overhead": "calls are already one PJRT execution; leave mode out",
    "max-autotune": 'tune XLA with options={"xla_options": {...}} instead',
    "max-autotune-no-cudagraphs": 'tune XLA with options={"xla_options": {...}} instead',
}


def check_mode(mode: str | None) -> None:
    """Raises TorchTPUError for any mode but the default one, naming what to use instead."""
    if mode in (None, "default"):
        return
    instead = _MODES.get(str(mode), 'leave it out, or use mode="default"')
    raise TorchTPUError(f'backend "tpu" has no mode {mode!r}: {instead}')
