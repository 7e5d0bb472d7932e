"""The model families that must run: small configurations with random weights, nothing downloaded.

`FAMILIES` maps a name to a function that makes `(module, kwargs)`; the module takes the kwargs and returns a tensor
or something whose first tensor is the result. `tests/python/test_models.py` and the FX counts in docs use them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.nn as nn

Made = tuple[nn.Module, dict[str, Any]]


def ids(vocabulary: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, vocabulary, shape)


def gpt2() -> Made:
    import transformers as t

    config = t.GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=199, n_positions=64, use_cache=False,
                          attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)  # fmt: skip
    # Without labels: transformers logs from its loss lookup for this class, which dynamo does not trace.
    return t.GPT2LMHeadModel(config), {"input_ids": ids(199, 2, 16)}


def llama() -> Made:
    import transformers as t

    config = t.LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                           num_key_value_heads=2, vocab_size=199, max_position_embeddings=64, use_cache=False)  # fmt: skip
    x = ids(199, 2, 16)
    return t.LlamaForCausalLM(config), {"input_ids": x, "labels": x}


def bert() -> Made:
    import transformers as t

    config = t.BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
                          vocab_size=199, max_position_embeddings=64,
                          hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip
    x = ids(199, 2, 16)
    return t.BertForMaskedLM(config), {"input_ids": x, "attention_mask": torch.ones_like(x), "labels": x}


def resnet50() -> Made:
    import timm

    return timm.create_model("resnet50", num_classes=10), {"x": torch.randn(2, 3, 64, 64)}


def vit() -> Made:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10, depth=2)
    return model, {"x": torch.randn(2, 3, 32, 32)}


def mixtral() -> Made:
    import transformers as t

    config = t.MixtralConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                             num_key_value_heads=2, vocab_size=199, num_local_experts=4, num_experts_per_tok=2,
                             max_position_embeddings=64, use_cache=False)  # fmt: skip
    x = ids(199, 2, 8)
    return t.MixtralForCausalLM(config), {"input_ids": x, "labels": x}


def mamba() -> Made:
    import transformers as t

    config = t.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=8, vocab_size=199, use_cache=False)
    x = ids(199, 2, 8)
    return t.MambaForCausalLM(config), {"input_ids": x, "labels": x}


def unet() -> Made:
    import diffusers

    model = diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32, attention_head_dim=8, norm_num_groups=8,
    )  # fmt: skip
    inputs = {
        "sample": torch.randn(1, 4, 16, 16),
        "timestep": torch.tensor(3),
        "encoder_hidden_states": torch.randn(1, 7, 32),
    }
    return model, inputs


def t5() -> Made:
    import transformers as t

    config = t.T5Config(d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, vocab_size=199, dropout_rate=0.0,
                        decoder_start_token_id=0,
                        use_cache=False)  # fmt: skip
    x = ids(199, 2, 16)
    return t.T5ForConditionalGeneration(config), {"input_ids": x, "labels": ids(199, 2, 8)}


FAMILIES: dict[str, Callable[[], Made]] = {
    f.__name__: f for f in (gpt2, llama, bert, resnet50, vit, mixtral, mamba, unet, t5)
}


def first_tensor(output: Any) -> torch.Tensor:
    """The loss of a language model, else the logits or sample."""
    if isinstance(output, torch.Tensor):
        return output
    if getattr(output, "loss", None) is not None:
        return output.loss
    return output[0]


def make(name: str, dtype: torch.dtype = torch.float32) -> Made:
    """The model in `dtype`, the same at every call."""
    torch.manual_seed(0)
    module, inputs = FAMILIES[name]()
    cast = {
        k: v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in inputs.items()
    }
    return module.to(dtype), cast
