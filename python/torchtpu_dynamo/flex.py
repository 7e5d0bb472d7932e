"""Flex attention as the dense computation that it stands for.

The operator takes its score and mask functions as graphs. PyTorch has the mathematics in eager form; traced with the
node's own sizes it becomes a graph like any other, which the exporter writes in the operator's place. Block sizes and
kernel options say how a GPU kernel should go about it, and mean nothing here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from . import decompositions

_DENSE = {
    "flex_attention": "math_attention",
    "flex_attention_backward": "sdpa_dense_backward",
}


def is_flex(node: Node) -> bool:
    return isinstance(node.target, torch._ops.HigherOrderOperator) and str(node.target) in _DENSE


def dense(node: Node, attribute: Callable[[str], Any]) -> tuple[GraphModule, list[Node]]:
    """The graph of what `node` computes, and the nodes that are its operands. `attribute` finds what a get_attr
    node names."""
    # By its full name: the package has a function of the module's name.
    source = importlib.import_module("torch._higher_order_ops.flex_attention")
    function = getattr(source, _DENSE[str(node.target)])
    leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
    given: list[Any] = []
    operands: list[Node] = []
    for leaf in leaves:
        value = leaf.meta.get("val") if isinstance(leaf, Node) else leaf
        if isinstance(leaf, Node) and leaf.op == "get_attr":
            owned = attribute(str(leaf.target))
            if isinstance(owned, GraphModule):
                value = owned
        if isinstance(leaf, Node) and isinstance(value, torch.Tensor):
            operands.append(leaf)
        given.append(value)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Node) and leaf in operands]
    operands = [leaves[i] for i in places]

    def run(*tensors: torch.Tensor) -> list[torch.Tensor | None]:
        filled = list(given)
        for i, tensor in zip(places, tensors, strict=True):
            filled[i] = tensor
        args, kwargs = pytree.tree_unflatten(filled, spec)
        return list(pytree.tree_leaves(function(*args, **kwargs), is_leaf=lambda x: x is None))

    fakes = [n.meta["val"] for n in operands]
    mode = next(f.fake_mode for f in fakes if isinstance(f, torch._subclasses.FakeTensor))
    with mode, torch.no_grad():
        functional = torch.func.functionalize(run, remove="mutations_and_views")
        return make_fx(functional, decomposition_table=decompositions.table())(*fakes), operands
