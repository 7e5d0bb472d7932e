"""Signing keys: 32 bytes, in a file as they are or as 64 hexadecimal digits."""

from __future__ import annotations

import binascii
import os
from pathlib import Path

from .._torchtpu import TorchTPUError


def key_of(path: str | os.PathLike[str] | None) -> bytes | None:
    """The key in a file. Raises TorchTPUError where there is none."""
    if path is None:
        return None
    data = Path(path).read_bytes()
    try:
        key = data if len(data) == 32 else binascii.unhexlify(data.strip())
    except binascii.Error:
        key = b""
    if len(key) != 32:
        raise TorchTPUError(
            f"{path}: a key is 32 bytes or 64 hexadecimal digits\nhelp: openssl rand -hex 32 > {path}"
        )
    return key
