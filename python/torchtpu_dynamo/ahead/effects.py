"""What a call does besides giving results: to attributes of modules, and to globals and cells that functions name.

While a function is traced nothing is to happen to the user's objects: what is bound or appended would be stand-ins. A
tensor that a call binds anew becomes a weight that it writes. Of the rest the user hears, unless it is a value that is kept
for later calls: what was not there before, or None."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import reprlib
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from .._torchtpu import TorchTPUError
from ..graph import warn
from ..state import reached

Cell = tuple[torch.nn.Module, str, torch.Tensor]
"""A module's attribute that a call binds anew, and the tensor that it was."""

_HELD = (list, dict, set)
"""Whose contents are put back. Others may be anything."""

_OWN = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
"""torch's attributes of a module."""


@dataclasses.dataclass(frozen=True)
class Change:
    """Of what the user calls `path`."""

    path: str
    before: Any
    after: Any
    module: torch.nn.Module | None = None
    name: str = ""
    registered: str | None = None
    """`buffer` or `parameter`."""
    alone: bool = True
    """Whether no other attribute is the same tensor."""


class Contents:
    """A list, dictionary or set, and what it held."""

    def __init__(self, value: Any) -> None:
        self.value, self.before = value, copy.copy(value)

    @property
    def changed(self) -> bool:
        now, before = self.value, self.before
        if isinstance(now, dict):
            return list(now) != list(before) or any(now[key] is not before[key] for key in before)
        if isinstance(now, set):
            return bool(now != before)
        return len(now) != len(before) or any(a is not b for a, b in zip(now, before, strict=True))

    @property
    def lost(self) -> bool:
        """Whether something else than a new key is there."""
        now, before = self.value, self.before
        if isinstance(now, dict):
            return any(key not in now or not same(value, now[key]) for key, value in before.items())
        if isinstance(now, set):
            return self.changed
        return len(now) != len(before) or not all(map(same, before, now))

    def restore(self) -> None:
        if not self.changed:
            return
        if isinstance(self.value, list):
            self.value[:] = self.before
        else:
            self.value.clear()
            self.value.update(self.before)


class Effects:
    """What can be reached from a function, and the lists and dictionaries of its arguments, as they were."""

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _, roots = reached(fn)
        self.modules: dict[str, torch.nn.Module] = {}
        known: set[int] = set()
        for root in roots:
            for path, module in root.named_modules():
                if id(module) not in known:
                    known.add(id(module))
                    self.modules[self.path(path if root is fn else f"{type(root).__name__}.{path}")] = module
        self.attributes = {path: Contents(vars(module)) for path, module in self.modules.items()}
        self.held = {
            f"{path}.{name}" if path else name: Contents(value)
            for path, attributes in self.attributes.items()
            for name, value in attributes.before.items()
            if type(value) in _HELD
        }
        self.variables = variables([fn, *(getattr(m, "forward", None) for m in self.modules.values())])
        self.lists = [
            (name, Contents(value))
            for each in self.variables
            for name, value in each.before.items()
            if type(value) in _HELD
        ]
        inside = (*held_in(args, "args"), *held_in(kwargs, "kwargs"))
        self.arguments = [(path, Contents(value)) for path, value in inside]
        self.counts = Counter(map(id, self.tensors()))

    def path(self, wanted: str) -> str:
        """A path of its own: a function may name two modules of one class."""
        path, count = wanted.rstrip("."), 1
        while path in self.modules:
            count += 1
            path = f"{wanted.rstrip('.')} ({count})"
        return path

    def tensors(self) -> Iterator[torch.Tensor]:
        """Those that are attributes, once for each."""
        for attributes in self.attributes.values():
            own = (attributes.before.get(name) or {} for name in ("_parameters", "_buffers"))
            for value in (*attributes.before.values(), *(t for each in own for t in each.values())):
                if isinstance(value, torch.Tensor):
                    yield value

    def restore(self) -> None:
        listed = (contents for _, contents in (*self.lists, *self.arguments))
        for contents in (*self.attributes.values(), *self.held.values(), *listed):
            contents.restore()
        for each in self.variables:
            each.restore()

    def changes(self) -> Iterator[Change]:
        """What is not what it was."""
        for path, module in self.modules.items():
            prefix = f"{path}." if path else ""
            now, before = vars(module), self.attributes[path].before
            for kind in ("parameter", "buffer"):
                own = self.held.get(f"{prefix}_{kind}s")
                if own is None:  # a module of torch.jit's
                    continue
                for name, tensor in own.before.items():
                    after = own.value.get(name, now.get(name))
                    if after is not tensor and tensor is not None:
                        alone = self.counts[id(tensor)] == 1
                        yield Change(prefix + name, tensor, after, module, name, kind, alone)
            for name, value in before.items():
                after = now.get(name)
                if name in _OWN or value is None or same(value, after):
                    continue
                alone = self.counts[id(value)] == 1
                yield Change(prefix + name, value, after, module, name, alone=alone)
        for each in self.variables:
            values = each.now
            for name, value in each.before.items():
                if value is not None and not same(value, values.get(name)):
                    yield Change(name, value, values.get(name))
        for path, contents in (*self.held.items(), *self.lists):
            if path.rpartition(".")[2] not in _OWN and contents.lost:
                yield Change(path, contents.before, copy.copy(contents.value))
        for path, contents in self.arguments:
            if contents.changed:  # a new key as well, which the caller looks for
                yield Change(path, contents.before, copy.copy(contents.value))


def held_in(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The lists, dictionaries and sets inside others."""
    if type(value) in _HELD:
        yield path, value
    if type(value) is dict:
        for key, part in value.items():
            yield from held_in(part, f"{path}[{key!r}]")
    elif type(value) in (list, tuple):
        for i, part in enumerate(value):
            yield from held_in(part, f"{path}[{i}]")


@contextlib.contextmanager
def undone(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], changes: list[Change]
) -> Iterator[None]:
    """Puts back, after the block, what it did; `changes` then holds that."""
    effects = Effects(fn, args, kwargs)
    try:
        yield
        changes.extend(effects.changes())
    finally:
        effects.restore()


class Variables:
    """Globals or cells that a function names, and their values."""

    def __init__(self, where: Any, names: Iterable[str]) -> None:
        self.where, self.names = where, list(names)
        self.before = self.now

    @property
    def now(self) -> dict[str, Any]:
        if isinstance(self.where, dict):
            return {name: self.where[name] for name in self.names if name in self.where}
        found = {}
        for name, cell in zip(self.names, self.where, strict=True):
            with contextlib.suppress(ValueError):  # an empty cell
                found[name] = cell.cell_contents
        return found

    def restore(self) -> None:
        now = self.now
        for at, name in enumerate(self.names):
            if name not in self.before or now.get(name) is self.before[name]:
                continue
            if isinstance(self.where, dict):
                self.where[name] = self.before[name]
            else:
                self.where[at].cell_contents = self.before[name]


def variables(functions: Iterable[Callable[..., Any] | None]) -> list[Variables]:
    """The globals that functions name, and their own cells."""
    found: dict[int, tuple[Any, dict[str, None]]] = {}
    for fn in functions:
        fn = getattr(fn, "__func__", fn)
        if isinstance(fn, types.FunctionType):
            for where, names in (
                (fn.__globals__, fn.__code__.co_names),
                (fn.__closure__ or (), fn.__code__.co_freevars),
            ):
                found.setdefault(id(where), (where, {}))[1].update(dict.fromkeys(names))
    return [Variables(where, names) for where, names in found.values()]


def same(before: Any, after: Any) -> bool:
    """Whether two values are one, or equal numbers or texts."""
    if before is after:
        return True
    if type(before) is not type(after):
        return False
    if isinstance(before, tuple):
        return len(before) == len(after) and all(map(same, before, after))
    plain = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
    return isinstance(before, plain) and bool(before == after or before != before)


def carried(changes: Sequence[Change], value: Callable[[Any], Any]) -> list[Cell]:
    """The tensors that are to be written in place instead; `value` gives what a stand-in stands for. Raises TorchTPUError
    for a parameter or buffer that cannot be, and warns of all else that an artifact does not do."""
    cells: list[Cell] = []
    for change in changes:
        after = value(change.after)
        tensors = isinstance(change.before, torch.Tensor) and isinstance(after, torch.Tensor)
        fits = tensors and (after.shape, after.dtype) == (change.before.shape, change.before.dtype)
        keeps = change.registered != "parameter" and change.alone
        if change.module is not None and fits and keeps:
            cells.append((change.module, change.name, change.before))
        elif change.registered is not None:
            also = "" if change.alone else ", is another attribute too"
            raise TorchTPUError(
                f"{change.registered} `{change.path}` is {shown(change.before)}{also}, and a call binds {shown(after)} to "
                f"it, which an artifact cannot keep\nhelp: write it in place: self.{change.name}.copy_(...)"
            )
        elif type(change.before) in _HELD and type(change.before) is type(after):
            warn(
                f"a call changes what `{change.path}` holds, a {type(after).__name__}, and an artifact's calls do not\n"
                "help: return what is to be kept"
            )
        else:
            buffer = "make it a tensor, by register_buffer, and write it in place"
            warn(
                f"a call changes `{change.path}`, from {shown(change.before)} to {shown(after)}, and an artifact's calls "
                f"do not: each begins with {shown(change.before)}\n"
                f"help: {buffer if change.module is not None else 'return what is to be kept'}"
            )
    return cells


def shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if type(value) in _HELD:
        return f"a {type(value).__name__} of {len(value)}"
    return reprlib.repr(value)


def carrying(fn: Callable[..., Any], cells: Sequence[Cell]) -> Callable[..., Any]:
    """The function, with what it binds anew written in place. It works on copies: whoever kept the old tensor has the old
    numbers."""

    def carry(*args: Any, **kwargs: Any) -> Any:
        for module, name, tensor in cells:
            setattr(module, name, tensor.detach().clone())
        result = fn(*args, **kwargs)
        for module, name, tensor in cells:
            tensor.copy_(getattr(module, name).detach())
        return result

    return carry if cells else fn
