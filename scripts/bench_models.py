"""The programs of the forward benchmark, in PyTorch and in JAX: tiny Llama, GPT-2 small, ResNet-50, an MLP.

Sizes: tiny Llama 4 layers of 512, 8 heads, 4 key-value heads, 4 x 256 tokens; GPT-2 small 4 x 512 tokens; ResNet-50
batch 32 at 224; MLP 4 x (1024 -> 4096 -> LayerNorm -> GELU -> 1024, residual) on 2048 rows. Random weights; the two
forms compute the same function of their own weights, which is all that a time needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

NAMES = ("tiny_llama", "gpt2", "resnet50", "mlp")


class LlamaLayer(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head = heads, kv_heads, width // heads
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-5), nn.RMSNorm(width, eps=1e-5)
        kv = kv_heads * self.head
        self.q, self.o = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k, self.v = nn.Linear(width, kv, bias=False), nn.Linear(width, kv, bias=False)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        half = self.head // 2
        count = lambda n: torch.arange(n, dtype=torch.float32, device=x.device)
        angle = torch.outer(count(x.shape[2]), 500000.0 ** (-count(half) / half))
        a, b = x[..., :half], x[..., half:]
        y = torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)
        return y.to(x.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm1(x)
        # As many heads as there are features: tensor parallelism gives each rank some of them.
        q, k, v = (f(h).unflatten(-1, (-1, self.head)).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = self.rotate(q), self.rotate(k)
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, 1) for t in (k, v))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(a.transpose(1, 2).flatten(-2))
        return x + self.mlp(self.norm2(x))

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class TinyLlama(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8192, 512)
        self.layers = nn.Sequential(*(LlamaLayer(512, 8, 4, 1408) for _ in range(4)))
        self.norm, self.head = nn.RMSNorm(512, eps=1e-5), nn.Linear(512, 8192, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.layers(self.embed(ids))))


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        block = lambda: nn.Sequential(
            nn.Linear(1024, 4096), nn.LayerNorm(4096), nn.GELU(), nn.Linear(4096, 1024)
        )
        self.blocks = nn.ModuleList(block() for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


class GPT2(nn.Module):
    """transformers' GPT-2 small, logits only."""

    def __init__(self) -> None:
        super().__init__()
        import transformers

        self.net = transformers.GPT2LMHeadModel(transformers.GPT2Config(use_cache=False))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.net(ids).logits


class Loss(nn.Module):
    """What is behind a language model's layers in training: logits, and their loss as transformers computes it."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits = self.head(hidden).float()
        return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def torch_model(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    if name == "tiny_llama":
        return TinyLlama().eval(), (torch.randint(0, 8192, (4, 256)),)
    if name == "gpt2":
        return GPT2().eval(), (torch.randint(0, 50257, (4, 512)),)
    if name == "resnet50":
        import timm

        return timm.create_model("resnet50").eval(), (torch.randn(32, 3, 224, 224),)
    return MLP().eval(), (torch.randn(2048, 1024),)


def jax_model(name: str) -> Callable[[], Any]:
    """The jitted function with its weights, as a JAX user would write it."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    keys = iter(jax.random.split(jax.random.PRNGKey(0), 1000))
    weight = lambda *shape: jax.random.normal(next(keys), shape, jnp.float32) / math.sqrt(shape[0])
    ones, zeros = lambda n: jnp.ones(n, jnp.float32), lambda n: jnp.zeros(n, jnp.float32)

    def layer_norm(x: Any, g: Any, b: Any) -> Any:
        mean = x.mean(-1, keepdims=True)
        centred = x - mean
        return centred * lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-5) * g + b

    def rms_norm(x: Any, g: Any) -> Any:
        return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * g

    def attention(q: Any, k: Any, v: Any) -> Any:  # [batch, heads, tokens, head]
        scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(q.shape[-1])
        causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), -1), v)

    def split_heads(x: Any, heads: int) -> Any:
        return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    def merge_heads(x: Any) -> Any:
        return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)

    if name == "mlp":
        w = [
            (weight(1024, 4096), zeros(4096), ones(4096), zeros(4096), weight(4096, 1024), zeros(1024))
            for _ in range(4)
        ]

        def mlp(w: Any, x: Any) -> Any:
            for a, ab, g, gb, c, cb in w:
                x = x + jax.nn.gelu(layer_norm(x @ a + ab, g, gb), approximate=False) @ c + cb
            return x

        return bound(jax.jit(mlp), w, weight(2048, 1024))
    if name == "gpt2":
        layer = lambda: (ones(768), zeros(768), weight(768, 2304), zeros(2304), weight(768, 768), zeros(768),
                         ones(768), zeros(768), weight(768, 3072), zeros(3072), weight(3072, 768), zeros(768))  # fmt: skip
        w = (weight(50257, 768), weight(1024, 768), [layer() for _ in range(12)], ones(768), zeros(768))

        def gpt2(w: Any, ids: Any) -> Any:
            tokens, positions, layers, g, b = w
            x = tokens[ids] + positions[: ids.shape[1]]
            for g1, b1, qkv, qb, o, ob, g2, b2, up, ub, down, db in layers:
                q, k, v = (split_heads(t, 12) for t in jnp.split(layer_norm(x, g1, b1) @ qkv + qb, 3, -1))
                x = x + merge_heads(attention(q, k, v)) @ o + ob
                x = x + jax.nn.gelu(layer_norm(x, g2, b2) @ up + ub, approximate=True) @ down + db
            return layer_norm(x, g, b) @ tokens.T

        return bound(jax.jit(gpt2), w, jax.random.randint(next(keys), (4, 512), 0, 50257))
    if name == "tiny_llama":
        layer = lambda: (ones(512), weight(512, 512), weight(512, 256), weight(512, 256), weight(512, 512), ones(512),
                         weight(512, 1408), weight(512, 1408), weight(1408, 512))  # fmt: skip
        w = (weight(8192, 512), [layer() for _ in range(4)], ones(512), weight(512, 8192))

        def rotate(x: Any) -> Any:
            half = x.shape[-1] // 2
            angle = jnp.outer(jnp.arange(x.shape[2]), 500000.0 ** (-jnp.arange(half) / half))
            a, b = x[..., :half], x[..., half:]
            return jnp.concatenate(
                [a * jnp.cos(angle) - b * jnp.sin(angle), b * jnp.cos(angle) + a * jnp.sin(angle)], -1
            )

        def llama(w: Any, ids: Any) -> Any:
            embed, layers, g, head = w
            x = embed[ids]
            for g1, q, k, v, o, g2, gate, up, down in layers:
                h = rms_norm(x, g1)
                keys_, values = (jnp.repeat(split_heads(h @ m, 4), 2, 1) for m in (k, v))
                x = x + merge_heads(attention(rotate(split_heads(h @ q, 8)), rotate(keys_), values)) @ o
                h = rms_norm(x, g2)
                x = x + (jax.nn.silu(h @ gate) * (h @ up)) @ down
            return rms_norm(x, g) @ head

        return bound(jax.jit(llama), w, jax.random.randint(next(keys), (4, 256), 0, 8192))

    def norm(c: int) -> Any:
        return ones(c), zeros(c), zeros(c), ones(c)

    def batch_norm(x: Any, w: Any) -> Any:
        g, b, mean, var = w
        return (x - mean) * lax.rsqrt(var + 1e-5) * g + b

    def conv(x: Any, k: Any, stride: int = 1, pad: int = 0) -> Any:
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, k, (stride, stride), [(pad, pad)] * 2, dimension_numbers=numbers)

    kernel = lambda size, cin, cout: (
        jax.random.normal(next(keys), (size, size, cin, cout)) / math.sqrt(size * size * cin)
    )
    stages, cin = [], 64
    for count, mid in ((3, 64), (4, 128), (6, 256), (3, 512)):
        blocks = []
        for i in range(count):
            shortcut = (kernel(1, cin, 4 * mid), norm(4 * mid)) if i == 0 else None
            blocks.append(
                (
                    kernel(1, cin, mid),
                    norm(mid),
                    kernel(3, mid, mid),
                    norm(mid),
                    kernel(1, mid, 4 * mid),
                    norm(4 * mid),
                    shortcut,
                )
            )
            cin = 4 * mid
        stages.append(blocks)
    w = (kernel(7, 3, 64), norm(64), stages, weight(2048, 1000), zeros(1000))

    def resnet(w: Any, x: Any) -> Any:
        stem, stem_norm, stages, fc, fb = w
        x = jax.nn.relu(batch_norm(conv(x, stem, 2, 3), stem_norm))
        x = lax.reduce_window(
            x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
        )
        for s, blocks in enumerate(stages):
            for i, (k1, n1, k2, n2, k3, n3, shortcut) in enumerate(blocks):
                stride = 2 if i == 0 and s > 0 else 1
                y = jax.nn.relu(batch_norm(conv(x, k1), n1))
                y = jax.nn.relu(batch_norm(conv(y, k2, stride, 1), n2))
                y = batch_norm(conv(y, k3), n3)
                x = jax.nn.relu(
                    y + (x if shortcut is None else batch_norm(conv(x, shortcut[0], stride), shortcut[1]))
                )
        return x.mean((1, 2)) @ fc + fb

    return bound(jax.jit(resnet), w, jax.random.normal(next(keys), (32, 224, 224, 3)))


def bound(fn: Any, *args: Any) -> Callable[[], Any]:
    return lambda: fn(*args).block_until_ready()
