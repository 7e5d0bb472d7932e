"""Buckets of sizes: one executable for every size up to a bound, by `options={"buckets": {...}}`.

Here is which sizes share an executable, and how tensors are padded to its sizes and cut back. That the padding does
not reach the numbers is proven in the compiler (`compiler/driver/src/bucket`); nothing here may assume it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ._torchtpu import Executable, Program, TorchTPUError

Uppers = tuple[int, ...] | None
"""Bounds of the buckets of one size, ascending; None for the powers of two."""

Border = tuple[list[int], list[list[tuple[int, int | None]]]] | None
"""Order of dimensions in memory and, by dimension, extent and index of the valid extent of each part. None for a
tensor that is not padded."""

_FORM = (
    'option "buckets" takes {"NAME:DIM": BOUNDS}, where NAME is an argument of the compiled function as Python would '
    'write it, or {"*": BOUNDS} for every dynamic size; BOUNDS is a list of sizes or "pow2"'
)


def parse_buckets(value: Mapping[str, Any]) -> dict[str, Uppers]:
    """The option's value, checked. Raises TorchTPUError."""
    found: dict[str, Uppers] = {}
    for key, bounds in value.items():
        if key != "*" and not re.fullmatch(r".+:\d+", key):
            raise TorchTPUError(f"{_FORM}; {key!r} is no such key")
        if bounds == "pow2":
            found[key] = None
        elif (
            isinstance(bounds, (list, tuple))
            and bounds
            and all(isinstance(b, int) and not isinstance(b, bool) and b > 0 for b in bounds)
        ):
            found[key] = tuple(sorted(set(bounds)))
        else:
            raise TorchTPUError(f"{_FORM}; {key!r} has {bounds!r}")
    return found


def size_sources(gm: torch.fx.GraphModule) -> dict[str, list[str]]:
    """By symbol: the sizes of the user's arguments that it stands for, as `NAME:DIM`; for a number the name alone."""
    for node in gm.graph.nodes:
        value = node.meta.get("val") if node.op == "placeholder" else None
        sizes = value.shape if isinstance(value, torch.Tensor) else [value]
        for size in sizes:
            if isinstance(size, torch.SymInt):
                # Not public; without it sizes go by their symbols.
                sources = getattr(size.node.shape_env, "var_to_sources", {})
                return {str(symbol): [_source(s) for s in each] for symbol, each in sources.items()}
    return {}


def _source(source: Any) -> str:
    name = getattr(source, "name", "")
    text = str(name() if callable(name) else name)
    text = re.sub(r"L\['(\w+)'\]", r"\1", text)
    return re.sub(r"\.size\(\)\[(\d+)\]$", r":\1", text)


def chosen(buckets: Mapping[str, Uppers], sources: Sequence[str]) -> tuple[bool, Uppers]:
    """Whether a size that goes by these names has buckets, and which."""
    for source in sources:
        if source in buckets:
            return True, buckets[source]
    return "*" in buckets, buckets.get("*")


def bounds_of(size: int, uppers: Uppers) -> tuple[int, int] | None:
    """The bucket of a size: the largest size below it, and its own largest. None beyond the last bucket."""
    if uppers is None:
        upper = 1 << max(size - 1, 1).bit_length()
        return upper // 2, upper
    lower = 0
    for upper in uppers:
        if size <= upper:
            return lower, upper
        lower = upper
    return None


def samples(key: Sequence[int], spans: Sequence[tuple[int, int] | None]) -> list[tuple[int, ...]]:
    """Sizes at which the compiler sees what depends on which of them: those asked for, and some that differ from one
    another. PyTorch compiles sizes 0 and 1 by themselves."""

    def sample(pick: Any) -> tuple[int, ...]:
        return tuple(
            value if span is None else min(max(2, pick(i, *span)), span[1])
            for i, (value, span) in enumerate(zip(key, spans, strict=True))
        )

    found = [
        tuple(key),
        # Together, for sizes that must be equal; apart, to tell others from one another.
        sample(lambda i, low, high: high - 1),
        sample(lambda i, low, high: low + 1),
        sample(lambda i, low, high: high - 1 - i),
        sample(lambda i, low, high: low + 1 + 2 * i),
        sample(lambda i, low, high: (low + high) // 2 + i),
    ]
    return list(dict.fromkeys(found))


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A program for a range of sizes, and its executable."""

    program: Program
    executable: Executable

    def fit(self, bindings: dict[str, int], options: str) -> Fit:
        """What a call at these sizes does besides calling. Raises TorchTPUError where the program is not right for
        them."""
        limits, fillings = self.program.runtime(bindings, options)
        inputs, outputs, mutated = self.program.borders()
        return Fit(
            self.executable,
            limits,
            [(i, b) for i, b in enumerate(inputs) if b is not None],
            [(i, b) for i, b in enumerate(outputs) if b is not None],
            [i for i, b in enumerate(inputs) if b is not None and mutated[i]],
            [_tensor(*filling) for filling in fillings],
        )


@dataclasses.dataclass(frozen=True)
class Fit:
    """A bucket's executable at one set of sizes; called as the executable of these sizes would be."""

    executable: Executable
    limits: list[int]
    inputs: list[tuple[int, Border]]
    outputs: list[tuple[int, Border]]
    mutated: list[int]
    fillings: list[torch.Tensor]

    def __call__(self, tensors: list[torch.Tensor], seed: int) -> list[torch.Tensor]:
        with torch.no_grad():
            padded = list(tensors)
            for i, border in self.inputs:
                padded[i] = self.pad(tensors[i], border)
            held = [(tensors[i], padded[i], dict(self.inputs)[i]) for i in self.mutated]
            tensors.clear()
            results = self.executable([*padded, *self.fillings], seed)
            for original, written, border in held:
                original.copy_(self.cut(written, border))
            for i, border in self.outputs:
                results[i] = self.cut(results[i], border)
        return results

    def parts(self, border: Border) -> tuple[list[int], list[int], list[int], list[int]]:
        """Order of dimensions, extents of all parts, valid extents of all parts, valid extents of dimensions."""
        assert border is not None
        order, dims = border
        valid = [[e if limit is None else self.limits[limit] for e, limit in parts] for parts in dims]
        return (
            order,
            [e for parts in dims for e, _ in parts],
            [v for parts in valid for v in parts],
            [math.prod(parts) for parts in valid],
        )

    def pad(self, tensor: torch.Tensor, border: Border) -> torch.Tensor:
        """A tensor of the program's size, its valid elements those of `tensor`, in their order, the others zero."""
        order, extents, valid, _ = self.parts(border)
        assert border is not None
        whole = [math.prod(e for e, _ in parts) for parts in border[1]]
        out = torch.zeros(whole, dtype=tensor.dtype)
        into = out.view(extents)
        for dim, size in enumerate(valid):
            into = into.narrow(dim, 0, size)
        into.copy_(tensor.detach().permute(order).reshape(valid))
        return out.permute(inverse(order))

    def cut(self, tensor: torch.Tensor, border: Border) -> torch.Tensor:
        """The valid elements of a tensor of the program's size."""
        order, extents, valid, sizes = self.parts(border)
        within = tensor.permute(order).reshape(extents)
        for dim, size in enumerate(valid):
            within = within.narrow(dim, 0, size)
        return within.reshape(sizes).contiguous().permute(inverse(order))

    def refresh(self) -> None:
        self.executable.refresh()


def inverse(order: Sequence[int]) -> list[int]:
    """The permutation that undoes one."""
    return sorted(range(len(order)), key=order.__getitem__)


def _tensor(dtype: str, shape: list[int], data: bytes) -> torch.Tensor:
    if not data:
        return torch.empty(shape, dtype=getattr(torch, dtype))
    return torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype)).reshape(shape).clone()
