"""What the rules of `of_transformers` get wrong, by model type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

CLASSES: dict[str, str] = {}
"""The class to take, where the first that a rule finds will not do."""

SERIES = {"prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2], "num_time_features": 1}

RESNET = {
    "model_type": "resnet",
    "embedding_size": 16,
    "hidden_sizes": [16, 16, 32, 32],
    "depths": [1, 1, 1, 1],
}
DETR = {"use_timm_backbone": False, "backbone_config": {**RESNET, "out_features": ["stage4"]}}

CONFIGS: dict[str, dict[str, Any]] = {
    **{name: {"first": DETR} for name in ("detr", "conditional_detr", "dab-detr", "table-transformer")},
    "deformable_detr": {
        "first": {**DETR, "backbone_config": {**RESNET, "out_features": ["stage2", "stage3", "stage4"]}}
    },
    "dots1": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "moe_intermediate_size": 64,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
    },
    "efficientnet": {"width_coefficient": 0.2, "depth_coefficient": 0.1, "hidden_dim": 256},
    "hunyuan_v1_moe": {"head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "grounding-dino": {"num_queries": 3},
    "mm-grounding-dino": {"num_queries": 3},
    "instructblip": {"image_token_index": 120, "num_query_tokens": 4},
    "instructblipvideo": {"video_token_index": 120, "num_query_tokens": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "gemma3": {"mm_tokens_per_image": 4},
    "shieldgemma2": {"mm_tokens_per_image": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "donut-swin": {"window_size": 2},
    "swin": {"window_size": 2},
    "swinv2": {"window_size": 2},
    "rwkv": {"num_hidden_layers": 2},
    "textnet": {"stem_out_channels": 16},
    "layoutlmv3": {"coordinate_size": 10, "shape_size": 12},
    "timm_wrapper": {"first": {"architecture": "test_vit", "model_args": {}}},
    "align": {"vision_config": {"width_coefficient": 0.2, "depth_coefficient": 0.1, "hidden_dim": 64}},
    "autoformer": {"first": SERIES, **SERIES, "label_length": 4, "moving_average": 3},
    "bit": {"num_groups": 4},
    "blip-2": {"image_token_index": 120, "num_query_tokens": 4},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "informer": {"first": SERIES, **SERIES},
    "time_series_transformer": {"first": SERIES, **SERIES},
}
"""Fields of the configuration, after shrinking; "first": what the default configuration is made with."""


def series(_: Any, config: Any) -> dict[str, Any]:
    past = config.context_length + max(config.lags_sequence)
    return {
        "past_values": torch.randn(2, past),
        "past_time_features": torch.randn(2, past, config.num_time_features),
        "past_observed_mask": torch.ones(2, past),
        "future_values": torch.randn(2, config.prediction_length),
        "future_time_features": torch.randn(2, config.prediction_length, config.num_time_features),
    }


INPUTS: dict[str, Callable[[Any, Any], dict[str, Any]]] = {
    "audioflamingo3_encoder": lambda _, c: {
        "input_features": torch.randn(2, c.num_mel_bins, 2 * c.max_source_positions),
        "input_features_mask": torch.ones(2, 2 * c.max_source_positions, dtype=torch.long),
    },
    "autoformer": series,
    "blip_2_qformer": lambda _, c: {
        "query_embeds": torch.randn(2, 4, c.hidden_size),
        "encoder_hidden_states": torch.randn(2, 6, c.encoder_hidden_size),
    },
    "informer": series,
    "wav2vec2-bert": lambda _, c: {"input_features": torch.randn(2, 32, c.feature_projection_input_dim)},
    "lxmert": lambda _, c: {
        "input_ids": torch.randint(5, 99, (2, 12)),
        "visual_feats": torch.randn(2, 4, c.visual_feat_dim),
        "visual_pos": torch.rand(2, 4, c.visual_pos_dim),
    },
    "patchtsmixer": lambda _, c: {"past_values": torch.randn(2, c.context_length, c.num_input_channels)},
    "patchtst": lambda _, c: {"past_values": torch.randn(2, c.context_length, c.num_input_channels)},
    "pix2struct": lambda _, c: {
        "flattened_patches": torch.cat(
            [
                torch.arange(1, 9).repeat(2, 2, 1).mT.float(),
                torch.randn(2, 8, c.vision_config.patch_embed_hidden_size),
            ],
            -1,
        ),
        "decoder_input_ids": torch.randint(5, 99, (2, 8)),
    },
    "oneformer": lambda _, c: {
        "pixel_values": torch.randn(2, 3, 64, 64),
        "task_inputs": torch.randint(5, 99, (2, 77)),
    },
    "instructblip": lambda _, c: {
        "pixel_values": torch.randn(2, 3, 32, 32),
        "qformer_input_ids": torch.randint(5, 99, (2, 6)),
        "input_ids": torch.cat(
            [torch.full((2, c.num_query_tokens), c.image_token_index), torch.randint(5, 99, (2, 8))], 1
        ),
    },
    "siglip2": lambda _, c: {
        "input_ids": torch.randint(5, 99, (2, 12)),
        "pixel_values": torch.randn(2, 16, 3 * c.vision_config.patch_size**2),
        "pixel_attention_mask": torch.ones(2, 16),
        "spatial_shapes": torch.tensor([[4, 4], [4, 4]]),
    },
    "siglip2_vision_model": lambda _, c: {
        "pixel_values": torch.randn(2, 16, 3 * c.patch_size**2),
        "pixel_attention_mask": torch.ones(2, 16),
        "spatial_shapes": torch.tensor([[4, 4], [4, 4]]),
    },
    "idefics": lambda _, c: {
        "input_ids": torch.randint(5, 99, (2, 12)),
        "pixel_values": torch.randn(2, 1, 3, 32, 32),
        "image_attention_mask": torch.ones(2, 12, 1, dtype=torch.long),
    },
    "lightglue": lambda _, c: {"pixel_values": torch.randn(1, 2, 3, 64, 64)},
    "fun_asr_nano_encoder": lambda _, c: {
        "input_features": torch.randn(2, 16, 560),
        "input_features_mask": torch.ones(2, 16, dtype=torch.long),
    },
    "time_series_transformer": series,
    "timesfm": lambda _, c: {
        "past_values": torch.randn(2, 64),
        "past_values_padding": torch.zeros(2, 66, dtype=torch.long),
        "freq": torch.zeros(2, 1, dtype=torch.long),
    },
}
"""The inputs, from the module and its configuration."""
