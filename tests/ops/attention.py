"""Scaled dot-product attention."""

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from tests.ops import bf16, case, f32, mask

Q = f32(2, 4, 5, 8)
K = f32(2, 4, 7, 8)


def hide_row(t: torch.Tensor) -> torch.Tensor:
    """Query 1 sees nothing, key 0 is seen by every other."""
    t[..., 0] = True
    t[..., 1, :] = False
    return t


CASES = [
    case("attention", sdpa, Q, K, K, train=True),
    case("causal", lambda q, k, v: sdpa(q, k, v, is_causal=True), Q, Q, Q, train=True),
    case(
        "bool_mask",
        lambda q, k, v, m: sdpa(q, k, v, m),
        Q,
        K,
        K,
        mask(5, 7, then=lambda t: t | (torch.arange(7) == 0)),
        train=True,
    ),
    case(
        "float_mask_scale",
        lambda q, k, v, m: sdpa(q, k, v, m.detach(), scale=0.3),
        Q,
        K,
        K,
        f32(2, 1, 5, 7),
        fixture=False,
    ),
    case(
        "hidden_query",
        lambda q, k, v, m: sdpa(q, k, v, m),
        Q,
        K,
        K,
        mask(5, 7, then=hide_row),
        train=True,
        fixture=False,
    ),
    case(
        "one_hidden_key",
        lambda q, k, v, m: sdpa(q, k, v, m),
        Q,
        f32(2, 4, 1, 8),
        f32(2, 4, 1, 8),
        mask(5, 1, then=hide_row),
    ),
    case(
        "large_bool_mask",
        lambda q, k, v, m: sdpa(q, k, v, m),
        f32(1, 2, 1500, 4),
        f32(1, 2, 1500, 4),
        f32(1, 2, 1500, 4),
        mask(1500, 1500, then=hide_row),
        train=True,
    ),
    case(
        "grouped_queries",
        lambda q, k, v: sdpa(q, k, v, is_causal=True, enable_gqa=True),
        Q,
        f32(2, 2, 5, 8),
        f32(2, 2, 5, 8),
        train=True,
    ),
    case(
        "bf16",
        sdpa,
        bf16(1, 2, 8, 16),
        bf16(1, 2, 8, 16),
        bf16(1, 2, 8, 16),
        train=True,
    ),
    case("three_dimensions", sdpa, f32(2, 5, 8), f32(2, 5, 8), f32(2, 5, 8), train=True, fixture=False),
    case(
        "flash",
        lambda q, k, v: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True),
        Q,
        K,
        K,
        fixture=False,
    ),
    case(
        "flash_hidden_query",
        lambda q, k, v, m: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=m),
        Q,
        K,
        K,
        f32(5, 7, then=lambda t: t.masked_fill(torch.arange(5)[:, None] == 1, float("-inf"))),
        fixture=False,
    ),
]
