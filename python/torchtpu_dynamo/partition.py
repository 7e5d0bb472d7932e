"""What a forward saves for its backward: PyTorch's choice, but of what is repeated, as the key heads that several query
heads share, the values and not their copies; of log probabilities, what they are computed from and the sums over rows; and
within a limit of bytes, if one is given, PyTorch's choice for the largest share of it that fits."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterable
from typing import Any

import torch
import torch._functorch.config
from torch._functorch.partitioners import _size_of, min_cut_rematerialization_partition, must_recompute
from torch.fx import GraphModule, Node
from torch.utils.checkpoint import CheckpointPolicy

from .export import returns

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

_OF_ONE_ELEMENT = _VIEWS | {
    torch.ops.aten.sub.Tensor,
    torch.ops.aten.detach.default,
    torch.ops.aten._to_copy.default,
    torch.ops.prims.convert_element_type.default,
}

_STEPS = 4
"""Halvings of the share of activations that is kept: to a sixteenth."""

_LAST = (1e-6, 0.0)
"""The least shares: what must not be computed again is kept with the first, only arguments with the second."""


def partition(joint: GraphModule, *args: Any, limit: int | None = None, **kwargs: Any) -> Any:
    """`min_cut_rematerialization_partition`, which else saves what a large operation of the backward reads, whatever that
    is made of. With a `limit`, saved activations have at most so many bytes; where that cannot be, as few as can be, and
    a warning says how many."""
    for node in joint.graph.nodes:
        if node.target is torch.ops.aten.clone.default and (chain := _repetition(node)):
            _compute_again([*chain, *(user for user in node.users if user.target in _VIEWS)])
        elif node.target is torch.ops.aten._log_softmax_backward_data.default:
            _compute_again(_log_probabilities(node.args[1]))
    if limit is None:
        return min_cut_rematerialization_partition(joint, *args, **kwargs)
    return _within(limit, joint, *args, **kwargs)


def _within(limit: int, joint: GraphModule, *args: Any, num_fwd_outputs: int, **kwargs: Any) -> Any:
    """The partition of the largest share of activations, as `activation_memory_budget` means it, that is within the
    limit."""

    def parts(share: float) -> tuple[int, Any] | None:
        """Bytes that are saved and the two graphs; None where the backward would compute again what it must not."""
        # The partitioner changes the graph that it is given.
        tried = GraphModule(joint, copy.deepcopy(joint.graph))
        tried.meta.update(joint.meta)
        with torch._functorch.config.patch(activation_memory_budget=share):
            made = min_cut_rematerialization_partition(
                tried, *args, num_fwd_outputs=num_fwd_outputs, **kwargs
            )
        if share < 1 and _computed_again(*made) & _kept_always(tried):
            return None
        return saved_bytes(made[0], num_fwd_outputs), made

    whole = parts(1.0)
    assert whole is not None
    if whole[0] <= limit:
        return whole[1]
    for node in joint.graph.nodes:
        # PyTorch's choice knows but a few of the random operators, and has no price for a call of a nested graph.
        if (_draws(node) or isinstance(node.target, torch._ops.HigherOrderOperator)) and not must_recompute(
            node
        ):
            node.meta["recompute"] = CheckpointPolicy.MUST_SAVE
    best, low, high = whole, 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        found = parts(middle)
        if found is not None and found[0] <= limit:
            best, low = found, middle
        else:
            high = middle
    for share in _LAST:
        if best[0] > limit and (found := parts(share)) is not None:
            best = min(best, found, key=lambda made: made[0])
    if best[0] > limit:
        _warn(best[0], limit)
    return best[1]


def saved_bytes(forward: GraphModule, results: int) -> int:
    """Bytes of what a forward gives its backward behind its results, but for arguments and results. Of symbolic sizes,
    their hints."""
    (output,) = forward.graph.find_nodes(op="output")
    given = list(returns(output))
    free = {node for node in given[:results] if isinstance(node, Node)}
    saved = {node for node in given[results:] if isinstance(node, Node) and node.op != "placeholder"} - free
    return sum(_size_of(node) for node in saved if isinstance(node.meta.get("val"), torch.Tensor))


def _draws(node: Node) -> bool:
    """Whether an operator takes random numbers."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in target.tags


def _kept_always(joint: GraphModule) -> set[str]:
    """What must not be computed again: it draws numbers, sends, has an effect, or the user's policy says so. A share of
    0.0 does not ask."""
    must_save = CheckpointPolicy.MUST_SAVE
    return {node.name for node in joint.graph.nodes if node.meta.get("recompute") is must_save}


def _computed_again(forward: GraphModule, backward: GraphModule) -> set[str]:
    """Names of the operators that both graphs have, which a partition does not change."""
    first, second = (
        {node.name for node in graph.graph.nodes if node.op == "call_function"}
        for graph in (forward, backward)
    )
    return first & second


@functools.cache
def _warn(kept: int, limit: int) -> None:
    """The same text only once."""
    warnings.warn(
        f"a forward keeps {kept:,} bytes of activations for its backward, more than option 'activation_memory' allows "
        f"({limit:,}): what is left must not be computed again",
        stacklevel=2,
    )


def _compute_again(nodes: Iterable[Node]) -> None:
    for node in nodes:
        # A policy that the user gave goes first.
        node.meta.setdefault("recompute", CheckpointPolicy.PREFER_RECOMPUTE)
        # Of the user's checkpoints each has a number; torch 2.11 reads it of every policy.
        node.meta.setdefault("ac_graph_id", 0)


def _log_probabilities(result: Node) -> list[Node]:
    """What is between the logits and their log probabilities, but for sums over rows; nothing where the user gets these."""
    given = result
    while given.target in _VIEWS or given.target is torch.ops.aten.detach.default:
        given = given.all_input_nodes[0]
    if any(user.op == "output" for user in given.users):
        return []
    found: dict[Node, None] = {}
    work = [result]
    while work:
        node = work.pop()
        if node.target in _OF_ONE_ELEMENT and node not in found:
            found[node] = None
            work.extend(node.all_input_nodes)
    return list(found)


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
