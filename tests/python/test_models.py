"""Nine model families against eager: forward, gradients, and the state after three optimizer steps."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from tests.models import FAMILIES, first_tensor, make

# bf16 rounds after every operation and eager rounds at other places than a fused program does: the bound is on the
# largest element, in units of bf16's own precision (2^-8) times the depth of the network.
BF16 = 6e-2


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Equal within `tolerance`, relative to the largest element."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    scale = expected.float().abs().max().clamp(min=1e-3).item()
    torch.testing.assert_close(actual.float(), expected.float(), rtol=tolerance, atol=tolerance * scale)


def compiled(module: torch.nn.Module) -> Any:
    torch._dynamo.reset()
    return torch.compile(module, backend="torchtpu_dynamo", fullgraph=True, dynamic=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_forward(name: str, dtype: torch.dtype) -> None:
    module, inputs = make(name, dtype)
    module.eval()
    with torch.no_grad():
        expected = first_tensor(module(**inputs))
        actual = first_tensor(compiled(module)(**inputs))
    close(actual, expected, 1e-4 if dtype == torch.float32 else BF16)


@pytest.mark.parametrize("name", FAMILIES)
def test_training(name: str) -> None:
    module, inputs = make(name)
    twin = copy.deepcopy(module)
    module.train()
    twin.train()
    fast = compiled(twin)
    # SGD, not Adam: Adam divides a gradient by its own size, so that the rounding error of a tiny gradient becomes a
    # whole step and the comparison one of noise. AdamW is compared in examples/demo.py, by the loss.
    eager_optimizer = torch.optim.SGD(module.parameters(), lr=1e-2, momentum=0.9)
    optimizer = torch.optim.SGD(twin.parameters(), lr=1e-2, momentum=0.9)
    for step in range(3):
        losses = []
        for net, opt in ((module, eager_optimizer), (fast, optimizer)):
            opt.zero_grad()
            loss = first_tensor(net(**inputs)).float().pow(2).mean()
            loss.backward()
            losses.append(loss.detach())
        close(losses[1], losses[0], 1e-3)
        if step == 0:
            compare_gradients(module, twin)
        eager_optimizer.step()
        optimizer.step()
    for n, expected in module.state_dict().items():
        actual = twin.state_dict()[n]
        if expected.is_floating_point():
            close(actual, expected, 1e-3)
        else:
            assert torch.equal(actual, expected), n


def compare_gradients(module: torch.nn.Module, twin: torch.nn.Module) -> None:
    """Every gradient, relative to the largest of the model: deep in a network small ones are sums that cancel."""
    expected = {n: p.grad for n, p in module.named_parameters()}
    scale = max(g.abs().max().item() for g in expected.values() if g is not None)
    for n, p in twin.named_parameters():
        assert (p.grad is None) == (expected[n] is None), n
        if p.grad is not None:
            message = functools.partial("{}: {}".format, n)
            torch.testing.assert_close(p.grad, expected[n], rtol=1e-3, atol=1e-4 * scale, msg=message)


def test_llama_static_cache() -> None:
    """Prefill and decode with a key-value cache of fixed size, which the graph updates in place."""
    import transformers as t

    module, inputs = make("llama")
    module.eval()
    tokens = inputs["input_ids"]

    def generate(net: Any) -> list[torch.Tensor]:
        cache = t.StaticCache(config=module.config, max_cache_len=24)
        logits = []
        with torch.no_grad():
            position = torch.arange(tokens.shape[1])
            out = net(input_ids=tokens, past_key_values=cache, cache_position=position, use_cache=True)
            logits.append(out.logits[:, -1].clone())
            for step in range(3):
                token = logits[-1].argmax(-1, keepdim=True)
                position = torch.tensor([tokens.shape[1] + step])
                out = net(input_ids=token, past_key_values=cache, cache_position=position, use_cache=True)
                logits.append(out.logits[:, -1].clone())
        return logits

    expected = generate(module)
    torch._dynamo.reset()
    actual = generate(torch.compile(module, backend="torchtpu_dynamo"))
    for a, e in zip(actual, expected, strict=True):
        close(a, e, 1e-4)
