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
        found = [[ranks]] if len(ranks) == world else of_meshes(name, ranks, world)
        if not found and (others := repeated(ranks, world)) is not None:
            found = [others]
        if len(found) == 1:
            known[name] = found[0]


def of_meshes(name: str, ranks: list[int], world: int) -> list[Groups]:
    """The groups along the dimension of a DeviceMesh of the whole world to which this group belongs. Only those who use a
    mesh hold it, so it is looked for among all objects: one of process groups that were destroyed can have the same names,
    and where it puts this group's ranks together as well, others can be elsewhere."""
    from torch.distributed.device_mesh import DeviceMesh

    found: list[Groups] = []
    # Compilers are called with tracing modes still on, and this must not be traced.
    with torch.utils._python_dispatch._disable_current_modes():
        for mesh in [m for m in gc.get_objects() if type(m) is DeviceMesh]:
            # A mesh of another number of ranks is a part of one, or has another way of counting.
            names = getattr(mesh, "_dim_group_names", ())
            if name not in names or mesh.mesh.numel() != world:
                continue
            dim = names.index(name)
            groups: Groups = mesh.mesh.movedim(dim, -1).reshape(-1, mesh.size(dim)).tolist()
            if not getattr(mesh, "_preserve_rank_order", False):
                groups = [sorted(group) for group in groups]
            if sorted(ranks) in map(sorted, groups) and groups not in found:
                found.append(groups)
    return found


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
