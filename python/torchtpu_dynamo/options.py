"""The options of `torch.compile(..., backend="tpu", options={...})`: one table, and its validation.

An option is one field of `Options`. Nothing here acts on an option.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from . import forms
from ._torchtpu import TorchTPUError, pass_levels
from .buckets import parse_buckets


@dataclasses.dataclass(frozen=True)
class Options:
    """The options with their defaults; each annotation is the type and what the option is for."""

    buckets: Annotated[
        dict[str, Any],
        'sizes that share an executable: {"x:1": [64, 256], "*": "pow2"}, by argument and dimension or for all',
    ] = dataclasses.field(default_factory=dict)
    check_bounds: Annotated[
        bool, "raise on indices out of range and integer division by zero, as eager does"
    ] = False
    opt_level: Annotated[
        int,
        "0: no pass of ours, 1: those that know of no target, 2: those for TPUs as well, 3: as 2, for passes to come that "
        "take long",
    ] = 2
    disable_passes: Annotated[list[str], "names of passes to leave out"] = dataclasses.field(
        default_factory=list
    )
    tpu_passes: Annotated[
        bool, "run the passes for TPUs, but for tile_batch, on other targets too: to compare their numbers"
    ] = False
    verify: Annotated[bool, "verify the IR after every pass"] = False
    plugin: Annotated[str | None, "cpu, tpu, cuda or a PJRT plugin's path; default: TORCHTPU_PLUGIN"] = None
    zero_copy: Annotated[
        bool | None, "share memory with the plugin; default: TORCHTPU_ZERO_COPY, else yes"
    ] = None
    fallback: Annotated[
        Literal["error", "eager"], "what an unsupported operator is: an error, or run by PyTorch on the host"
    ] = "error"
    max_data_dependent_size: Annotated[
        int | None,
        "largest size that data may decide, as of nonzero; torch._check(n <= 64) states one size's",
    ] = None
    activation_memory: Annotated[
        int | None,
        "bytes of activations that a forward may keep for its backward, which computes the rest again; default: no limit",
    ] = None
    collective_timeout: Annotated[
        int | float, "seconds that a collective between processes waits for a rank before it is an error"
    ] = 60
    cache: Annotated[
        bool | None, "keep executables on disk for later processes; default: TORCHTPU_CACHE, else yes"
    ] = None
    tuned: Annotated[
        str | None, "a file of forms that searches found, which are used for programs of the same shapes"
    ] = None
    tune: Annotated[
        int | float,
        "seconds to search for a faster form of each program for a TPU, judged by libtpu's schedule",
    ] = 0
    xla_options: Annotated[dict[str, Any], "options of XLA for this compilation, by XLA's names"] = (
        dataclasses.field(default_factory=dict)
    )

    @property
    def left_out(self) -> list[str]:
        """The passes that do not run."""
        above = (name for name, level in pass_levels().items() if level > self.opt_level)
        return list(dict.fromkeys((*self.disable_passes, *above)))

    def program_json(self, dump_dir: str | None) -> str:
        """What `Program` wants to know."""
        return json.dumps(
            {
                "check_bounds": self.check_bounds,
                "disabled_passes": self.left_out,
                "verify": self.verify,
                "dump_dir": dump_dir,
            }
        )

    def forms(self) -> list[dict[str, Any]]:
        """What searches found before; a file that a search is yet to write is empty."""
        if self.tuned is None or (self.tune and not os.path.exists(self.tuned)):
            return []
        return forms.read(self.tuned)

    def compile_json(self, **more: Any) -> str:
        """What `Program.compile` wants to know. Raises TorchTPUError where the file of forms cannot be read."""
        return json.dumps(
            {
                "xla_options": self.xla_options,
                "disabled_passes": self.left_out,
                "tpu_passes": self.tpu_passes,
                "tuned": forms.wanted(self.forms()),
                "tune": self.tune,
                **more,
            }
        )


@functools.cache
def _table() -> dict[str, tuple[tuple[type, ...], str, str]]:
    """By name: the classes of its values, its type as written, its doc."""
    table = {}
    for name, hint in get_type_hints(Options, include_extras=True).items():
        annotation, doc = get_args(hint)
        members = get_args(annotation) if get_origin(annotation) is types.UnionType else [annotation]
        classes = tuple(str if get_origin(m) is Literal else get_origin(m) or m for m in members)
        written = (
            annotation.__name__
            if isinstance(annotation, type) and not get_args(annotation)
            else str(annotation)
        )
        table[name] = (classes, written.replace("typing.", ""), doc)
    return table


def known_options() -> str:
    """One line an option: name, type, meaning."""
    return "\n".join(f"  {name} ({written}): {doc}" for name, (_, written, doc) in _table().items())


def parse_options(options: Mapping[str, Any] | None) -> Options:
    """Checks names and types. Raises TorchTPUError that lists the known options."""
    options = options or {}
    for name, value in options.items():
        if name not in _table():
            raise TorchTPUError(f"unknown option {name!r}; the known options are:\n{known_options()}")
        classes, written, _ = _table()[name]
        choices = _choices(name)
        # True is an int to Python, and no size.
        typed = isinstance(value, classes) and (not isinstance(value, bool) or bool in classes)
        fits = typed and (name == "buckets" or _elements_fit(value))
        if not fits or (choices and value not in choices):
            raise TorchTPUError(f"option {name!r} takes {written}, not {value!r}; {_table()[name][2]}")
    level = options.get("opt_level", 2)
    if level not in range(4):
        raise TorchTPUError(f"option 'opt_level' takes 0 to 3, not {options['opt_level']}")
    if not options.get("collective_timeout", 1) > 0:
        raise TorchTPUError("option 'collective_timeout' takes a number of seconds above 0")
    if (options.get("max_data_dependent_size") or 0) < 0:
        raise TorchTPUError(
            f"option 'max_data_dependent_size' takes a size, 0 or more, not {options['max_data_dependent_size']}"
        )
    if (options.get("activation_memory") or 0) < 0:
        raise TorchTPUError(
            f"option 'activation_memory' takes bytes, 0 or more, not {options['activation_memory']}"
        )
    if not options.get("tune", 0) >= 0:
        raise TorchTPUError("option 'tune' takes a number of seconds, 0 for none")
    parse_buckets(options.get("buckets", {}))
    parsed = Options(**options)
    parsed.forms()
    return parsed


def _choices(name: str) -> tuple[Any, ...]:
    annotation = get_args(get_type_hints(Options, include_extras=True)[name])[0]
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _elements_fit(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(v, str) for v in value)
    if isinstance(value, dict):
        return all(isinstance(k, str) and isinstance(v, (bool, int, float, str)) for k, v in value.items())
    return True


_MODES = {
    "reduce-overhead": "calls are already one PJRT execution; leave mode out",
    "max-autotune": 'ask for a search with options={"tune": SECONDS} instead',
    "max-autotune-no-cudagraphs": 'ask for a search with options={"tune": SECONDS} instead',
}


def check_mode(mode: str | None) -> None:
    """Raises TorchTPUError for any mode but the default one, naming what to use instead."""
    if mode in (None, "default"):
        return
    instead = _MODES.get(str(mode), 'leave it out, or use mode="default"')
    raise TorchTPUError(f'backend "tpu" has no mode {mode!r}: {instead}')
