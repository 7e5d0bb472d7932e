"""The model and the inputs of each entry, by library.

A library's module has `names()`, what the installed version offers (for freezing the list),
`make(name, **settled)`, where `settled` is what the frozen list says of the entry, and where there is a choice
`candidates(name)`, what could be settled, best first."""

from __future__ import annotations

import functools
import importlib
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import nn

LIBRARIES = ("timm", "diffusers", "transformers")
LIST = Path(__file__).with_name("list.json")
Made = tuple[nn.Module, dict[str, Any]]


@functools.cache
def frozen() -> dict[str, Any]:
    """{"versions": {library: version}, library: {entry: what is settled for it}}."""
    found: dict[str, Any] = json.loads(LIST.read_text())
    return found


def names(library: str) -> list[str]:
    return list(frozen()[library])


def make(library: str, name: str) -> Made:
    """The model, on CPU in float32, and the keyword arguments of its forward. The same at each call."""
    of = importlib.import_module(f"tests.architectures.of_{library}")
    return settle(of.make(name, **settings(library, name)))


def settings(library: str, name: str) -> dict[str, Any]:
    return frozen()[library][name] or first_that_runs(library, name)


@functools.cache
def first_that_runs(library: str, name: str) -> dict[str, Any]:
    """The first of the entry's candidates that eager PyTorch runs, forward and training."""
    of = importlib.import_module(f"tests.architectures.of_{library}")
    candidates = list(of.candidates(name)) if hasattr(of, "candidates") else [{}]
    for candidate in candidates[: len(candidates) if len(candidates) > 1 else 0]:
        try:
            module, inputs = settle(of.make(name, **candidate))
            for training in (False, True):
                with torch.set_grad_enabled(training):
                    module.train(training)(**inputs)
        except Exception:
            continue
        return dict(candidate)
    # None, or there is no choice: the caller gets the first one's error.
    return dict(candidates[0])


def settle(made: Made) -> Made:
    """Takes randomness out of a model, and gives every parameter an effect."""
    module, inputs = made
    for part in module.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
        for name, value in list(vars(part).items()):
            if "drop" in name and isinstance(value, float):
                setattr(part, name, 0.0)
            if isinstance(value, (nn.RNNBase, nn.MultiheadAttention)):
                value.dropout = 0.0
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                # What weight_norm computes before each forward; a deep copy refuses it.
                setattr(part, name, value.detach())
    # Zero is what many gates, residual branches and biases start from: then nothing behind them reaches the output.
    # Other parameters are left as the allocator gave them, for a checkpoint to fill.
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            if (
                p.numel()
                and p.is_floating_point()
                and not (p.isfinite().all() and 1e-4 < p.abs().max() < 1e3)
            ):
                p.copy_(torch.randn(p.shape, generator=generator) * 0.02)
    return module, inputs
