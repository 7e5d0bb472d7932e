"""Process groups: what the compiler has to know of those that collectives name."""

from __future__ import annotations

import gc
from typing import Any

import torch

Groups = list[list[int]]
"""Every rank of the world once, in the order of its group."""


def add_groups(known: dict[str, Groups], call: Any) -> None:
    """Adds the process groups that a functional collective names, by name, each with those that the other ranks join in
    its place. One without such is left out, which the compiler then reports."""
    names: list[Any] = [
        a for a in (*call.args, *call.kwargs.values()) if isinstance(a, str) and a not in known
    ]
    if not names or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    from torch.distributed import distributed_c10d as c10d

    world = torch.distributed.get_world_size()
    for name in names:
        try:
            ranks = torch.distributed.get_process_group_ranks(c10d._resolve_process_group(name))
        except Exception:  # a string that names no group
            continue
        groups = [ranks] if len(ranks) == world else of_meshes(name, world) or repeated(ranks, world)
        if groups is not None:
            known[name] = groups


def of_meshes(name: str, world: int) -> Groups | None:
    """The groups along the dimension of a DeviceMesh of the whole world to which this group belongs. Only those who use a
    mesh hold it, so it is looked for among all objects."""
    from torch.distributed.device_mesh import DeviceMesh

    # Compilers are called with tracing modes still on, and this must not be traced.
    with torch.utils._python_dispatch._disable_current_modes():
        for mesh in [m for m in gc.get_objects() if type(m) is DeviceMesh]:
            # A mesh of another number of ranks is a part of one, or has another way of counting.
            names = getattr(mesh, "_dim_group_names", ())
            if name in names and mesh.mesh.numel() == world:
                dim = names.index(name)
                groups: Groups = mesh.mesh.movedim(dim, -1).reshape(-1, mesh.size(dim)).tolist()
                in_order = getattr(mesh, "_preserve_rank_order", False)
                return groups if in_order else [sorted(group) for group in groups]
    return None


def repeated(ranks: list[int], world: int) -> Groups | None:
    """The groups that lie like this one and fill the world, where such are: their ranks begin where no other group has
    put its own."""
    first, groups, taken = min(ranks), [], set[int]()
    for start in range(world):
        if start in taken:
            continue
        group = [rank - first + start for rank in ranks]
        if max(group) >= world or not taken.isdisjoint(group):
            return None
        taken.update(group)
        groups.append(group)
    return groups if ranks in groups else None
