"""What a forward saves for its backward: PyTorch's choice, but of what is repeated, as the key heads that several query
heads share, the values and not their copies."""

from __future__ import annotations

from typing import Any

import torch
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.utils.checkpoint import CheckpointPolicy

_VIEWS = frozenset(
    {
        torch.ops.aten.view.default,
        torch.ops.aten._unsafe_view.default,
        torch.ops.aten.reshape.default,
        torch.ops.aten.unsqueeze.default,
        torch.ops.aten.permute.default,
        torch.ops.aten.transpose.int,
    }
)


def partition(joint: torch.fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
    """`min_cut_rematerialization_partition`, which else saves what a large operation of the backward reads, whatever that
    is made of."""
    for node in joint.graph.nodes:
        if node.target is torch.ops.aten.clone.default and (chain := _repetition(node)):
            for copied in [*chain, *(user for user in node.users if user.target in _VIEWS)]:
                # A policy that the user gave goes first.
                copied.meta.setdefault("recompute", CheckpointPolicy.PREFER_RECOMPUTE)
                # Of the user's checkpoints each has a number; torch 2.11 reads it of every policy.
                copied.meta.setdefault("ac_graph_id", 0)
    return min_cut_rematerialization_partition(joint, *args, **kwargs)


def _repetition(clone: torch.fx.Node) -> list[torch.fx.Node]:
    """A copy and the views behind it, where one of them expands to more elements."""
    chain, node = [clone], clone.args[0]
    while isinstance(node, torch.fx.Node) and (
        node.target in _VIEWS or node.target is torch.ops.aten.expand.default
    ):
        chain.append(node)
        source = node.args[0]
        assert isinstance(source, torch.fx.Node)
        if node.target is torch.ops.aten.expand.default:
            more = node.meta["val"].numel() > source.meta["val"].numel()
            return chain if more else []
        node = source
    return []
