"""Several processes: sharded parameters, and what ranks do together on the host. Names are loaded on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .sharding import fully_shard

__all__ = ["fully_shard"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import sharding

    return getattr(sharding, name)
