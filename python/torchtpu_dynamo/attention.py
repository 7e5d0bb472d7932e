"""Attention's backward that computes the softmax again from query and key.

PyTorch's reads the logarithm of the sum that the forward keeps for it. That is a second use of the row's maximum, with
which libtpu does not fuse the forward's softmax (docs/passes.md)."""

from __future__ import annotations

import torch

Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _computed(
    grad_out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    dropout_p: float,
    is_causal: bool,
    attn_mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> Gradients:
    aten = torch.ops.aten
    given = {"attn_mask": attn_mask, "scale": scale}
    _, logsumexp = aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, **given
    )
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad_out, query, key, value, out, logsumexp, dropout_p, is_causal, **given
    )


attention_backward = torch.library.custom_op(
    "torchtpu_dynamo::attention_backward", _computed, mutates_args=()
)
"""The gradients of query, key and value. The compiler has a lowering; what eager computes is `_computed`."""

attention_backward.register_fake(_computed)


def without_logsumexp(
    grad_out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    logsumexp: torch.Tensor,
    dropout_p: float,
    is_causal: bool,
    *,
    attn_mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> Gradients:
    """PyTorch's backward as ours."""
    return attention_backward(grad_out, query, key, value, out, dropout_p, is_causal, attn_mask, scale)
