"""Process groups: what the compiler has to know of those that collectives name."""

from __future__ import annotations

from typing import Any

import torch


def groups_of(call: Any) -> dict[str, dict[str, int]]:
    """The process groups that a functional collective names, by name, as {"count", "size"} of replica groups of
    neighbours. Groups that are not all ranks of the world are left out, which the compiler then reports."""
    names: list[Any] = [a for a in (*call.args, *call.kwargs.values()) if isinstance(a, str)]
    found: dict[str, dict[str, int]] = {}
    if not names or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return found
    from torch.distributed import distributed_c10d as c10d

    for name in names:
        try:
            ranks = torch.distributed.get_process_group_ranks(c10d._resolve_process_group(name))
        except Exception:  # a string that names no group
            continue
        world = torch.distributed.get_world_size()
        if ranks == list(range(world)):
            found[name] = {"count": 1, "size": world}
    return found
