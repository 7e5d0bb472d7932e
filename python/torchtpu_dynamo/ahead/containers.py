"""The containers of arguments and results: PyTorch's trees of values as those of an artifact (`trees`).

A dataclass, registered with PyTorch or not, is a dictionary."""

from __future__ import annotations

import collections
import copy
import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch.utils import _pytree as pytree

from .._torchtpu import TorchTPUError
from . import trees
from .trees import Tree

_KEYS = (bool, int, float, str)
"""What a key may be, besides None: what JSON keeps."""


class Fields:
    """A dataclass that PyTorch knows nothing of, taken apart."""

    def __init__(self, value: Any, parts: Mapping[str, Any]) -> None:
        self.value, self.parts = value, dict(parts)

    def whole(self) -> Any:
        made = copy.copy(self.value)
        for name, part in self.parts.items():
            object.__setattr__(made, name, closed(part))  # it may be frozen
        return made


pytree.register_pytree_node(
    Fields,
    lambda fields: (list(fields.parts.values()), (fields.value, list(fields.parts))),
    lambda parts, context: Fields(context[0], zip_names(context[1], parts)),
    serialized_type_name="torchtpu_dynamo.ahead.Fields",
)


def zip_names(names: Sequence[str], parts: Any) -> dict[str, Any]:
    return dict(zip(names, parts, strict=True))


def opened(value: Any) -> Any:
    """With dataclasses taken apart, so that their parts are leaves."""

    def is_one(leaf: Any) -> bool:
        return dataclasses.is_dataclass(leaf) and not isinstance(leaf, type)

    def open_one(leaf: Any) -> Any:
        if not is_one(leaf):
            return leaf
        return Fields(leaf, {f.name: opened(getattr(leaf, f.name)) for f in dataclasses.fields(leaf)})

    # Containers of the user's are made anew only where they must be.
    return pytree.tree_map(open_one, value) if any(map(is_one, pytree.tree_leaves(value))) else value


def closed(value: Any) -> Any:
    """What `opened` took apart, put together."""

    def is_one(part: Any) -> bool:
        return isinstance(part, Fields)

    def close_one(part: Any) -> Any:
        return part.whole() if is_one(part) else part

    parts = pytree.tree_leaves(value, is_leaf=is_one)
    return pytree.tree_map(close_one, value, is_leaf=is_one) if any(map(is_one, parts)) else value


def constant(value: Any) -> Tree | None:
    """A value that is part of the program as a tree; None where an artifact cannot keep it."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"const": value}
    return None


def tree_of(spec: pytree.TreeSpec, leaves: Iterator[Tree]) -> Tree:
    """A TreeSpec as a tree, whose leaves are taken from an iterator. Raises TorchTPUError for a container that is none of
    an artifact's."""
    if spec.is_leaf():
        return dict(next(leaves))
    parts = [tree_of(child, leaves) for child in spec.children()]
    if spec.type in (list, tuple):
        return {spec.type.__name__: parts}
    if isinstance(spec.context, type) and hasattr(spec.context, "_fields"):
        return {"named": [spec.context.__name__, list(spec.context._fields), parts]}
    keys = _keys(spec)
    if keys is not None and len(keys) == len(parts):
        return {"dict": [[key, part] for key, part in zip(keys, parts, strict=True)]}
    if isinstance(spec.type, type) and issubclass(spec.type, (list, collections.deque)):
        return {"list": parts}
    if isinstance(spec.type, type) and issubclass(spec.type, tuple):
        return {"tuple": parts}
    raise TorchTPUError(
        f"an argument or result is a {getattr(spec.type, '__name__', spec.type)}, which an artifact cannot keep\n"
        "help: tensors, numbers, strings and None, in lists, tuples, dictionaries and dataclasses"
    )


def _keys(spec: pytree.TreeSpec) -> Sequence[Any] | None:
    """What the parts of a container go by, where it has names for them."""
    keys = spec.context
    if spec.type in (Fields, collections.defaultdict):
        return list(keys[1])
    if isinstance(spec.type, type) and issubclass(spec.type, dict):
        return list(keys) if isinstance(keys, (list, tuple)) else None
    # Of a registered dataclass, the names of what is there and of what is None.
    if isinstance(keys, (list, tuple)) and len(keys) == 2 and all(isinstance(k, (list, tuple)) for k in keys):
        keys = keys[0]
    return keys if isinstance(keys, (list, tuple)) else None


def check_keys(tree: Tree, path: str) -> None:
    """Raises TorchTPUError for a key that a file cannot keep."""
    for key, child in trees.children(tree):
        if key is not None and not isinstance(key, _KEYS):
            raise TorchTPUError(
                f"`{path}` has the key {key!r}, a {type(key).__name__}, which an artifact cannot keep\n"
                "help: let keys be strings or numbers"
            )
        check_keys(child, f"{path}.{key}" if path else str(key))


def parameters(fn: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(fn).parameters.values())


def parameter_names(fn: Callable[..., Any]) -> list[str]:
    """The names of a function's positional parameters."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters(fn) if p.kind in kinds]


def defaults(fn: Callable[..., Any], given: Sequence[str]) -> Tree:
    """The values of the parameters that were not given, as far as an artifact can keep them."""
    known = ((p.name, constant(p.default)) for p in parameters(fn) if p.name not in given)
    return {"dict": [[name, tree] for name, tree in known if tree is not None]}


def name_inputs(inputs: list[dict[str, Any]], arguments: Sequence[Tree]) -> None:
    """Inputs go by their paths in the arguments. Raises TorchTPUError."""
    for tree in arguments:
        check_keys(tree, "")
        for path, leaf in trees.leaves(tree):
            inputs[leaf]["name"] = path


def split(tree: Tree) -> tuple[list[Tree], list[tuple[str, Tree]]]:
    """The tree of (args, kwargs) as two lists."""
    args, kwargs = tree["tuple"]
    return list(args["tuple"]), [(key, child) for key, child in kwargs["dict"]]
