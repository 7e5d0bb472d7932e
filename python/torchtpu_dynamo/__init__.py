"""A `torch.compile` backend for TPUs (and, through the same compiler, CPUs): `torch.compile(model,
backend="tpu")`.

Only names live here, and they are loaded on first use: importing this package must cost next to nothing
beyond torch. Nothing here may import torch's compiler, start a plugin, or change a default of torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._torchtpu import Executable, Program, TorchTPUError
    from .ahead.artifact import Artifact
    from .ahead.build import aot_compile, aot_compile_spmd
    from .api import Lowered, lower
    from .comparison import Comparison, compare
    from .counters import Stats, reset_stats, stats
    from .custom_ops import register_lowering
    from .explanation import Explanation, explain
    from .plugins import devices, refresh
    from .spmd import LoweredSpmd, lower_spmd

__version__ = "0.1.0"

_HOME = {
    "Artifact": ".ahead.artifact",
    "Comparison": ".comparison",
    "Executable": "._torchtpu",
    "Explanation": ".explanation",
    "Lowered": ".api",
    "LoweredSpmd": ".spmd",
    "Program": "._torchtpu",
    "Stats": ".counters",
    "TorchTPUError": "._torchtpu",
    "aot_compile": ".ahead.build",
    "aot_compile_spmd": ".ahead.build",
    "compare": ".comparison",
    "devices": ".plugins",
    "explain": ".explanation",
    "lower": ".api",
    "lower_spmd": ".spmd",
    "refresh": ".plugins",
    "register_lowering": ".custom_ops",
    "reset_stats": ".counters",
    "stats": ".counters",
}

__all__ = [
    "Artifact",
    "Comparison",
    "Executable",
    "Explanation",
    "Lowered",
    "LoweredSpmd",
    "Program",
    "Stats",
    "TorchTPUError",
    "__version__",
    "aot_compile",
    "aot_compile_spmd",
    "compare",
    "devices",
    "explain",
    "lower",
    "lower_spmd",
    "refresh",
    "register_lowering",
    "reset_stats",
    "stats",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home, __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
