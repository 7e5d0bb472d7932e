"""Models to compile ahead, with random weights: `torchtpu compile examples.models:gpt2 -t v5e:2x2 -o gpt2.ttpu`.

Each function returns a module and the arguments of a call."""

from __future__ import annotations

import torch
import transformers


def gpt2(batch: int = 1, tokens: int = 512) -> tuple[torch.nn.Module, tuple[()], dict[str, torch.Tensor]]:
    """GPT-2 small, 124 million parameters, float32."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(use_cache=False)
    model = transformers.GPT2LMHeadModel(config).eval()
    return model, (), {"input_ids": torch.randint(0, config.vocab_size, (batch, tokens))}


def resnet50(batch: int = 8) -> tuple[torch.nn.Module, tuple[torch.Tensor]]:
    """ResNet-50 for ImageNet, 26 million parameters, float32."""
    torch.manual_seed(0)
    model = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000)).eval()
    return model, (torch.randn(batch, 3, 224, 224),)
