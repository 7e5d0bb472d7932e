"""The file of forms that searches found: `options={"tuned": "model.tuned.json"}`.

A form is what was chosen for one program on one chip generation: which passes for TPUs run, the size of attention's tiles,
libtpu's scoped vector memory. It is found again by a digest of the program's products and their shapes, so that an edit
between them, another name or another line changes nothing. The file is small, sorted, and made to be committed. Nothing
here may import torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from ._torchtpu import TorchTPUError
from .files import replacing

VERSION = 1

_FORM = {"scoped_vmem_kib": (int, type(None)), "tile_mib": (int,), "without": (list,)}


def read(path: str) -> list[dict[str, Any]]:
    """The entries of a file. Raises TorchTPUError where it is not one."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        return [_checked(entry) for entry in _forms(found)]
    except OSError as e:
        raise TorchTPUError(
            f"cannot read the forms of {path}: {e.strerror}\nhelp: `torchtpu compile --tune SECONDS` makes one"
        ) from None
    except (ValueError, TypeError, KeyError) as e:
        raise TorchTPUError(
            f"{path} is no file of forms: {e}\nhelp: `torchtpu compile --tune SECONDS` makes one"
        ) from None


def merge(path: str, entries: Iterable[Mapping[str, Any]]) -> None:
    """Writes these into a file, instead of what it has for the same programs and chips. Raises OSError."""
    kept = {_key(entry): entry for entry in read(path)} if os.path.exists(path) else {}
    kept.update({_key(entry): dict(entry) for entry in entries})
    with replacing(path) as file:
        whole = {"version": VERSION, "forms": [kept[key] for key in sorted(kept)]}
        file.write(json.dumps(whole, indent=1).encode() + b"\n")


def wanted(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the compiler is told of them."""
    return [{key: entry[key] for key in ("chip", "products", "form")} for entry in entries]


def _key(entry: Mapping[str, Any]) -> tuple[str, str]:
    return entry["chip"], entry["products"]


def _forms(found: Any) -> list[Any]:
    if not isinstance(found, dict) or found.get("version") != VERSION or not isinstance(found["forms"], list):
        raise ValueError(f"it is not of version {VERSION}")
    return list(found["forms"])


def _checked(entry: Any) -> dict[str, Any]:
    form = entry["form"]
    if not isinstance(entry["chip"], str) or not isinstance(entry["products"], str):
        raise ValueError("`chip` and `products` are texts")
    if not isinstance(form, dict) or form.keys() != _FORM.keys():
        raise ValueError(f"a form has {', '.join(_FORM)}")
    for name, types in _FORM.items():
        value = form[name]
        fits = isinstance(value, types) and not isinstance(value, bool)
        if not fits or (isinstance(value, int) and not 0 < value < 1 << 20):
            raise ValueError(f"{name} is {value!r}")
    return dict(entry)
