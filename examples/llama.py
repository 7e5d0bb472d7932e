"""A model of Llama-3-8B's shape, forward, bfloat16, 2,048 tokens, without its weights:

    torchtpu compile --regions examples.llama:llama -t v6e:1x1 -t v5p:1x1x1 -t tpu7x:1x1x1 -o llama.ttpu

LAYERS takes fewer than 32; `--regions` compiles the layer once."""

from __future__ import annotations

import os

import torch
import transformers


def llama(tokens: int = 2048) -> tuple[torch.nn.Module, tuple[()], dict[str, torch.Tensor]]:
    config = transformers.LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=int(os.environ.get("LAYERS", "32")),
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        rope_theta=500000.0,
        use_cache=False,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()
        return model, (), {"input_ids": torch.zeros(1, tokens, dtype=torch.int64)}
