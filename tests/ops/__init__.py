"""Op cases, one module a lowering family: `CASES` is the list of what the family must get right.

Each case is used twice. `tests/python/test_ops.py` runs it compiled and eagerly and compares (gradients too where
`train` is set). `python -m tests.ops` writes its FX payload to `tests/ops/<family>/<name>.json`, from which the Rust
tests start: payload to IR, as a snapshot under `snapshots/ops/<family>/`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Case:
    """One function with its inputs."""

    name: str
    fn: Callable[..., Any]
    inputs: tuple[Any, ...]
    train: bool = False
    # Only shapes and dtypes are compared: the numbers are random.
    random: bool = False
    # Written as a payload fixture for the Rust tests; the first few of a family are enough.
    fixture: bool = True

    def make_inputs(self) -> list[Any]:
        """Fresh inputs, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        return [x(generator) if isinstance(x, Maker) else x for x in self.inputs]


@dataclass
class Maker:
    """A tensor to be made: dtype, shape, and how its values are drawn."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    low: float = -2.0
    high: float = 2.0
    then: Callable[[torch.Tensor], torch.Tensor] = field(default=lambda t: t)

    def __call__(self, generator: torch.Generator) -> torch.Tensor:
        if self.dtype == torch.bool:
            return self.then(torch.rand(self.shape, generator=generator) > 0.5)
        if self.dtype.is_complex or self.dtype.is_floating_point:
            wide = torch.float64 if not self.dtype.is_complex else torch.complex128
            values = (
                torch.rand(self.shape, generator=generator, dtype=wide) * (self.high - self.low) + self.low
            )
            return self.then(values.to(self.dtype))
        low, high = int(self.low), int(self.high) + 1
        return self.then(torch.randint(low, high, self.shape, generator=generator, dtype=self.dtype))


def tensor(dtype: torch.dtype, *shape: int, **kw: Any) -> Maker:
    return Maker(dtype, shape, **kw)


def f32(*shape: int, **kw: Any) -> Maker:
    return Maker(torch.float32, shape, **kw)


def f64(*shape: int, **kw: Any) -> Maker:
    return Maker(torch.float64, shape, **kw)


def bf16(*shape: int, **kw: Any) -> Maker:
    return Maker(torch.bfloat16, shape, **kw)


def i64(*shape: int, low: int = -9, high: int = 9, **kw: Any) -> Maker:
    return Maker(torch.int64, shape, low=low, high=high, **kw)


def i32(*shape: int, low: int = -9, high: int = 9, **kw: Any) -> Maker:
    return Maker(torch.int32, shape, low=low, high=high, **kw)


def i8(*shape: int, low: int = -100, high: int = 100, **kw: Any) -> Maker:
    return Maker(torch.int8, shape, low=low, high=high, **kw)


def u8(*shape: int, low: int = 0, high: int = 200, **kw: Any) -> Maker:
    return Maker(torch.uint8, shape, low=low, high=high, **kw)


def mask(*shape: int, **kw: Any) -> Maker:
    return Maker(torch.bool, shape, **kw)


def case(name: str, fn: Callable[..., Any], *inputs: Any, **kw: Any) -> Case:
    return Case(name, fn, inputs, **kw)


def families() -> dict[str, list[Case]]:
    """Every family's cases, by module name."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    return {n: importlib.import_module(f"tests.ops.{n}").CASES for n in names}
