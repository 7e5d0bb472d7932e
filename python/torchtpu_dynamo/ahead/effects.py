"""What a call does besides giving results: to the attributes of modules, and to the lists of a function.

While a function is traced nothing is to happen to the user's objects: what is bound or appended would be stand-ins. A
tensor that a call binds anew becomes a weight that it writes. Of the rest the user hears, unless it is a value that is kept
for later calls: what was not there before, or None."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import reprlib
import types
from collections.abc import Callable, Iterator, Sequence
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
        if isinstance(self.value, dict):
            return any(key not in self.value or self.value[key] is not v for key, v in self.before.items())
        return self.changed

    def restore(self) -> None:
        if not self.changed:
            return
        if isinstance(self.value, list):
            self.value[:] = self.before
        else:
            self.value.clear()
            self.value.update(self.before)


class Effects:
    """What can be reached from a function, as it was."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        _, roots = reached(fn)
        self.modules: dict[str, torch.nn.Module] = {}
        known: set[int] = set()
        for root in roots:
            for path, module in root.named_modules():
                if id(module) not in known:
                    known.add(id(module))
                    prefix = [] if root is fn else [type(root).__name__]
                    self.modules[".".join([*prefix, *filter(None, [path])])] = module
        self.attributes = {path: Contents(vars(module)) for path, module in self.modules.items()}
        self.held = {
            f"{path}.{name}" if path else name: Contents(value)
            for path, attributes in self.attributes.items()
            for name, value in attributes.before.items()
            if type(value) in _HELD
        }
        self.lists = {name: Contents(value) for name, value in variables(fn).items() if type(value) in _HELD}

    def restore(self) -> None:
        for contents in (*self.attributes.values(), *self.held.values(), *self.lists.values()):
            contents.restore()

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
                        yield Change(prefix + name, tensor, after, module, name, kind)
            for name, value in before.items():
                after = now.get(name)
                if name in _OWN or value is None or same(value, after):
                    continue
                yield Change(prefix + name, value, after, module, name)
        for path, contents in (*self.held.items(), *self.lists.items()):
            if path.rpartition(".")[2] not in _OWN and contents.lost:
                yield Change(path, contents.before, copy.copy(contents.value))


@contextlib.contextmanager
def undone(fn: Callable[..., Any], changes: list[Change]) -> Iterator[None]:
    """Puts back, after the block, what it did; `changes` then holds that."""
    effects = Effects(fn)
    try:
        yield
        changes.extend(effects.changes())
    finally:
        effects.restore()


def variables(fn: Callable[..., Any]) -> dict[str, Any]:
    """What a function's own cells and the globals that it names hold."""
    if not isinstance(fn, types.FunctionType):
        return {}
    names = fn.__code__.co_names
    found = {name: fn.__globals__[name] for name in names if name in fn.__globals__}
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # an empty cell
            found[name] = cell.cell_contents
    return found


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
        if fits and change.registered != "parameter" and change.module is not None:
            cells.append((change.module, change.name, change.before))
        elif change.registered is not None:
            raise TorchTPUError(
                f"{change.registered} `{change.path}` is {shown(change.before)}, and a call binds {shown(after)} to it, "
                f"which an artifact cannot keep\nhelp: write it in place: self.{change.name}.copy_(...)"
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
