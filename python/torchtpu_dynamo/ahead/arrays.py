"""Tensors across the border of an artifact: NumPy's arrays, torch's tensors, and bytes with a dtype and a shape.

NumPy has no bfloat16 and no float8: bfloat16 goes out as float32, which holds every value of it, and comes in from
float32, rounded to nearest even; float8 is bits, uint8. torch is used where the caller passes tensors, and never
imported."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .._torchtpu import TorchTPUError

Passed = tuple[str, list[int], bytes]
PassedAll = tuple[list[Passed], list[Passed], list[Passed]]
"""Inputs, saved tensors and cotangents of a call."""
"""Dtype as torch names it, shape, elements row by row."""

_NUMPY = {
    "bool": "bool",
    **{name: name for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
    **{name: name for name in ("float16", "float32", "float64", "complex64", "complex128")},
}


_SAFETENSORS = {
    "BOOL": "bool",
    **{f"{kind[0].upper()}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}

_BYTES = {"bool": 1, "bfloat16": 2, "float16": 2, "complex64": 8, "complex128": 16}


def itemsize(dtype: str) -> int:
    """Bytes of an element, by torch's name of the dtype."""
    bits = int("".join(filter(str.isdigit, dtype.partition("_")[0])) or 8)
    return _BYTES.get(dtype, bits // 8)


def zeros(dtype: str, shape: list[int]) -> Passed:
    return dtype, shape, bytes(math.prod(shape) * itemsize(dtype))


def of_safetensors(path: Path) -> Iterator[tuple[str, Passed]]:
    """The tensors of a safetensors file by name, of every dtype, read one by one. Raises TorchTPUError."""
    data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
    try:
        begin = 8 + int.from_bytes(data[:8].tobytes(), "little")
        header: dict[str, Any] = json.loads(data[8:begin].tobytes())
        header.pop("__metadata__", None)
        places = {name: (s["dtype"], list(s["shape"]), *s["data_offsets"]) for name, s in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise TorchTPUError(f"{path}: this is no safetensors file") from None
    for name, (theirs, shape, first, last) in places.items():
        dtype = _SAFETENSORS.get(theirs)
        if dtype is None:
            raise TorchTPUError(f"{path}: weight `{name}` is {theirs}, which an artifact has not")
        found = data[begin + first : begin + last].tobytes()
        if len(found) != math.prod(shape) * itemsize(dtype):
            raise TorchTPUError(f"{path}: the file ends in weight `{name}`")
        yield name, (dtype, shape, found)


def is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def passed(value: Any, dtype: str) -> Passed:
    """A value as an input of this dtype. Raises TypeError for another dtype, and for what is no array."""
    if is_tensor(value):
        found = str(value.dtype).removeprefix("torch.")
        if value.device.type == "meta" or type(value).__name__ == "FakeTensor":
            raise TypeError("has no values: it is a meta or fake tensor")
        if found != dtype:
            raise TypeError(f"is {found}, not {dtype}")
        plain = (
            value.detach()
            .resolve_conj()
            .resolve_neg()
            .cpu()
            .contiguous()
            .reshape(-1)
            .view(sys.modules["torch"].uint8)
        )
        return dtype, list(value.shape), plain.numpy().tobytes()
    try:
        array = np.asarray(value)
    except ValueError:
        raise TypeError("is no array: its rows are not equally long") from None
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    found = array.dtype.name
    if dtype == "bfloat16" and found == "float32":
        bits = np.ascontiguousarray(array).view(np.uint32).astype(np.uint64)
        rounded = ((bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)).astype(
            np.uint16
        )
        array = np.where(np.isnan(array), np.uint16(0x7FC0), rounded)
    elif dtype.startswith("float8") and found == "uint8":
        pass
    elif not isinstance(value, np.ndarray) and _holds(array, dtype):
        array = array.astype(_NUMPY[dtype])
    elif array.dtype.kind not in "biufc":
        raise TypeError(f"is of the type {type(value).__name__}, and should be an array of {dtype}")
    elif found != dtype:
        wanted = "float32, to be rounded to bfloat16" if dtype == "bfloat16" else dtype
        raise TypeError(f"is {found}, not {wanted}")
    return dtype, list(np.shape(value)), np.ascontiguousarray(array).tobytes()


def _holds(number: np.ndarray[Any, Any], dtype: str) -> bool:
    """Whether a 0-d array's number is one of this dtype, as PyTorch sees it: floats may be rounded, integers may not."""
    if number.ndim != 0 or number.dtype.kind not in "biufc" or dtype not in _NUMPY:
        return False
    target = np.dtype(_NUMPY[dtype])
    if target.kind in "iu":
        return number.dtype.kind in "biu" and np.iinfo(target).min <= int(number) <= np.iinfo(target).max
    return np.can_cast(number.dtype, target, "same_kind")


def to_numpy(dtype: str, shape: list[int], data: bytes) -> np.ndarray[Any, Any]:
    if dtype == "bfloat16":
        bits = np.frombuffer(data, np.uint16).astype(np.uint32) << np.uint32(16)
        return bits.view(np.float32).reshape(shape)
    kind = _NUMPY.get(dtype, "uint8")
    return np.frombuffer(bytearray(data), kind).reshape(shape)


def to_tensor(dtype: str, shape: list[int], data: bytes) -> Any:
    torch = sys.modules["torch"]
    if not data:
        return torch.empty(shape, dtype=getattr(torch, dtype))
    return torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype)).reshape(shape)


def overlap(one: Any, other: Any) -> bool:
    """Whether writing one writes the other."""
    if one is other:
        return True
    first, second = _memory(one), _memory(other)
    # Where it is too hard to tell, they may.
    return first is not None and second is not None and bool(np.may_share_memory(first, second, _WORK))


_WORK: Any = 10_000
"""How many candidates for a common element are tried."""


class _Memory:
    """A tensor's memory, as NumPy reads of it where that is."""

    def __init__(self, tensor: Any) -> None:
        size = tensor.element_size()
        self.__array_interface__ = {
            "version": 3,
            "typestr": f"|V{size}",
            "data": (tensor.data_ptr(), True),
            "shape": tuple(tensor.shape),
            "strides": tuple(stride * size for stride in tensor.stride()),
        }


def _memory(value: Any) -> np.ndarray[Any, Any] | None:
    """Where a value lies, as far as that can be told."""
    if isinstance(value, np.ndarray):
        return value
    if not is_tensor(value) or value.device.type != "cpu" or str(value.layout) != "torch.strided":
        return None
    return np.asarray(_Memory(value)) if value.numel() else None


def write_back(value: Any, changed: Any) -> None:
    """Writes what a program has changed into the caller's own tensor or array."""
    if is_tensor(value):
        with sys.modules["torch"].no_grad():
            value.copy_(changed)
    elif isinstance(value, np.ndarray):
        value[...] = changed
