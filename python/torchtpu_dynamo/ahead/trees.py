"""The shapes of arguments and results, as an artifact keeps them: JSON, read without torch.

A tree is {"leaf": i}, {"const": value}, {"float": text} for a number that JSON has not, as "nan", {"given": i} for an
argument that is returned as it is, {"number": i} for a size that is a result, as an integer,
{"list": [...]}, {"tuple": [...]}, {"named": [type, names, [...]]} or
{"dict": [[key, tree], ...]}. Leaves are tensors; whatever else PyTorch found is a constant."""

from __future__ import annotations

import dataclasses
import reprlib
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Tree = Mapping[str, Any]


def leaves(tree: Tree, path: str = "") -> Iterator[tuple[str, int]]:
    """The leaves, each by its path: `x`, `x.0`, `x.key`."""
    if "leaf" in tree:
        yield path, tree["leaf"]
    for key, child in children(tree):
        yield from leaves(child, f"{path}.{key}" if path else str(key))


def children(tree: Tree) -> Iterator[tuple[Any, Tree]]:
    if "dict" in tree:
        yield from tree["dict"]
    elif "named" in tree:
        yield from zip(tree["named"][1], tree["named"][2], strict=True)
    else:
        yield from enumerate(tree.get("list", tree.get("tuple", ())))


def build(tree: Tree, leaf: Callable[[int], Any], given: Sequence[Any] = ()) -> Any:
    """The value that a tree describes; `given` are the arguments of the call."""
    if "leaf" in tree:
        return leaf(tree["leaf"])
    if "number" in tree:
        return int(leaf(tree["number"]))
    if "given" in tree:
        return given[tree["given"]]
    if "const" in tree or "float" in tree:
        return constant(tree)
    if "dict" in tree:
        return {key: build(child, leaf, given) for key, child in tree["dict"]}
    if "named" in tree:
        name, fields, parts = tree["named"]
        return namedtuple(name, fields)(*(build(part, leaf, given) for part in parts))
    kind: type = list if "list" in tree else tuple
    return kind(build(child, leaf, given) for child in tree.get("list", tree.get("tuple", ())))


def constant(tree: Tree) -> Any:
    """The value of a tree that is one."""
    return float(tree["float"]) if "float" in tree else tree["const"]


def _said(value: Any) -> str:
    """A value in an error: of a tensor or an array what it is, its elements tell nothing."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return reprlib.repr(value)


def flatten(tree: Tree, value: Any, path: str = "") -> Iterator[tuple[int, str, Any]]:
    """The leaves of a value, by index, with their paths. Raises TypeError where it is of another shape."""
    where = f"`{path}`" if path else "the arguments"
    if "leaf" in tree:
        yield tree["leaf"], path, value
    elif "const" in tree or "float" in tree:
        known = constant(tree)
        # One nan is as good as another.
        if type(value) is not type(known) or (value != known and (value == value or known == known)):
            raise TypeError(f"{where} was {known!r} when this was compiled, and is {_said(value)}")
    elif "dict" in tree:
        if dataclasses.is_dataclass(value) and not isinstance(value, (type, Mapping)):
            value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        keys = [key for key, _ in tree["dict"]]
        if not isinstance(value, Mapping) or set(value) != set(keys):
            found = list(value) if isinstance(value, Mapping) else type(value).__name__
            raise TypeError(f"{where} has the keys {keys}, not {found}")
        for key, child in tree["dict"]:
            yield from flatten(child, value[key], f"{path}.{key}" if path else str(key))
    else:
        parts: list[tuple[Any, Tree]] = list(children(tree))
        if not isinstance(value, Sequence) or len(value) != len(parts):
            given = len(value) if isinstance(value, Sequence) else type(value).__name__
            raise TypeError(f"{where} has {len(parts)} elements, not {given}")
        for (name, child), part in zip(parts, value, strict=True):
            yield from flatten(child, part, f"{path}.{name}" if path else str(name))
