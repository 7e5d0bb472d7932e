"""What the rules of `of_transformers` get wrong, by model type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

CLASSES: dict[str, str] = {}
"""The class to take, where the first that a rule finds will not do."""

PARTS: dict[str, str] = {"bark": "fine_acoustics", "glm_image_vqmodel": "quantize"}
"""The part of the model to run, where the whole has no forward."""

SERIES = {"prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2], "num_time_features": 1}

RESNET = {
    "model_type": "resnet",
    "embedding_size": 16,
    "hidden_sizes": [16, 16, 32, 32],
    "depths": [1, 1, 1, 1],
}
DETR = {"use_timm_backbone": False, "backbone_config": {**RESNET, "out_features": ["stage4"]}}

HGNET = {
    "stem_channels": [3, 8, 16],
    "stage_in_channels": [16, 16, 32, 32],
    "stage_mid_channels": [8, 8, 16, 16],
    "stage_out_channels": [16, 32, 32, 64],
    "hidden_sizes": [16, 32, 32, 64],
    "stage_numb_of_layers": [1, 1, 1, 1],
    "out_indices": [2, 3, 4],
}
DINO = {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "reshape_hidden_states": False}
EDGETAM_VISION = {
    "backbone_config": {
        "model_type": "timm_wrapper",
        "architecture": "test_convnext",
        "model_args": {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
    },
    "backbone_channel_list": [64, 48, 32, 24],
    "backbone_feature_sizes": [[8, 8], [4, 4], [2, 2]],
}
# Names of the tokens that stand for the codes of an image: 128 of them from 128 on.
CHAMELEON_TOKENS = {f"IMGIMG{''.join('ABCDEFGHIJ'[int(d)] for d in str(i))}Z": 128 + i for i in range(128)}
EMU3_TOKENS = {f"<|visual token {i:06}|>": 128 + i for i in range(128)}

CLAP_AUDIO = {
    "spec_size": 64,
    "window_size": 2,
    "patch_embeds_hidden_size": 16,
    "hidden_size": 128,
    "num_hidden_layers": 4,
}

TIMM_TOWER = {
    "architecture": "test_convnext",
    "model_args": {"in_chans": 3},
    "hidden_size": 64,
    "num_classes": 2,
}
GEMMA3N_TEXT = {
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "intermediate_size": [128] * 3,
    "activation_sparsity_pattern": [0.95, 0.0, 0.0],
    "num_kv_shared_layers": 1,
    "hidden_size_per_layer_input": 16,
}
GEMMA4_DRAFT = {
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
    "head_dim": 16,
    "global_head_dim": 32,
}

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
    "blt": {
        "encoder_hash_byte_group_vocab": 64,
        "encoder_config": {"hidden_size_global": 64},
        "decoder_config": {"hidden_size_global": 64},
    },
    "chameleon": {
        "vocab_size": 256,
        "vocabulary_map": {"<image>": 120, **CHAMELEON_TOKENS},
        "vq_config": {
            "base_channels": 32,
            "channel_multiplier": [1, 1, 2],
            "latent_channels": 32,
            "embed_dim": 32,
            "resolution": 64,
        },
    },
    "chmv2": {
        "post_process_channels": [16, 16, 32, 32],
        "number_output_channels": 16,
        "backbone_config": {**DINO, "reshape_hidden_states": True, "return_class_token": True},
    },
    "clap": {"audio_config": CLAP_AUDIO},
    "clap_audio_model": CLAP_AUDIO,
    "clvp": {"text_config": {"num_attention_heads": 2}, "speech_config": {"num_attention_heads": 2}},
    "clvp_encoder": {"num_attention_heads": 2},
    **{
        name: {
            "first": {"rope_parameters": {"full_attention": {"rope_theta": 10000.0, "rope_type": "default"}}}
        }
        for name in ("cohere_compass_text",)
    },
    "cvt": {"depth": [1, 2, 3]},
    **{
        name: {
            "backbone_config": HGNET,
            "encoder_in_channels": [32, 32, 64],
            "decoder_in_channels": [64, 64, 64],
        }
        for name in ("d_fine", "deimv2")
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "depth_anything": {
        "neck_hidden_sizes": [16, 16, 32, 32],
        "fusion_hidden_size": 16,
        "backbone_config": DINO,
    },
    "depth_pro": {
        "patch_size": 16,
        "fusion_hidden_size": 16,
        "intermediate_hook_ids": [1, 0],
        "intermediate_feature_dims": [16, 16],
        "scaled_images_feature_dims": [16, 16, 16],
        "merge_padding_value": 0,
        **{
            k: {"image_size": 16, "patch_size": 4, "num_hidden_layers": 2}
            for k in ("image_model_config", "patch_model_config", "fov_model_config")
        },
    },
    "diffusion_gemma": {
        "text_config": {
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 64,
            "global_head_dim": 32,
            "head_dim": 16,
        }
    },
    "dots3_note": {
        "vision_config": {"adapter_in_dim": 64, "adapter_out_dim": 64},
        "audio_config": {"adapter_input_size": 64, "adapter_out_dim": 64},
    },
    **{name: {"vision_config": EDGETAM_VISION} for name in ("edgetam", "edgetam_video")},
    "edgetam_vision_model": EDGETAM_VISION,
    "efficientloftr": {"out_features": [16, 16, 32, 64]},
    "emu3": {
        "text_config": {"vocab_size": 256},
        "vocabulary_map": {"<image>": 120, "<|extra_200|>": 121, **EMU3_TOKENS},
        "vq_config": {"base_channels": 32, "channel_multiplier": [1, 1, 2, 2], "codebook_size": 128},
    },
    "esm": {"vocab_size": 128, "pad_token_id": 1, "mask_token_id": 32},
    "falcon_h1": {"mamba_d_ssm": 128},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 16}},
    "informer": {"first": SERIES, **SERIES},
    "time_series_transformer": {"first": SERIES, **SERIES},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "ernie4_5_vl_moe": {"text_config": {"moe_k": 2, "rope_parameters": {"mrope_section": [3, 3, 2]}}},
    "fast_vlm": {"vision_config": TIMM_TOWER},
    "fastspeech2_conformer_with_hifigan": {"vocoder_config": {"model_in_dim": 32}},
    "gemma3n": {
        "text_config": GEMMA3N_TEXT,
        "vision_config": {**TIMM_TOWER, "vocab_size": 8, "vocab_offset": 128},
        "audio_config": {"vocab_size": 8, "vocab_offset": 136},
        "vision_soft_tokens_per_image": 4,
    },
    "gemma3n_text": GEMMA3N_TEXT,
    "gemma4_assistant": {
        "first": {"text_config": {"model_type": "gemma4_text", **GEMMA4_DRAFT}},
        "text_config": {**GEMMA4_DRAFT, "num_kv_shared_layers": 2},
    },
    "gemma4_unified_assistant": {
        "text_config": {"num_kv_shared_layers": 2, "head_dim": 16, "global_head_dim": 32}
    },
    "gradium_phonon_tts": {"flow_head_config": {"condition_dim": 64}},
    "granite4_vision": {
        "deepstack_layer_map": [[0, 0]],
        "spatial_target_layers": [0, 0, 0, 0],
        "downsample_rate": "1/2",
    },
    "hunyuan_vl": {"text_config": {"head_dim": 16}},
    "hunyuan_vl_text": {"head_dim": 16},
    "levit": {"image_size": 64, "patch_size": 16},
    "lightglue": {"width_confidence": -1.0},
    "lilt": {"hidden_size": 96},
    "longcat_flash": {"qk_head_dim": 32},
    "lw_detr": {"backbone_config": {"num_windows": 4}},
    "lw_detr_vit": {"num_windows": 4},
    "mask2former": {
        "backbone_config": {
            "embed_dim": 16,
            "window_size": 2,
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        }
    },
    "ministral": {"head_dim": 16},
    **{n: {"text_config": {"kv_source_layers": [0, 1, 1, 3]}} for n in ("mistral_large4",)},
    "mistral_large4_text": {"kv_source_layers": [0, 1, 1, 3]},
    "molmo2": {"vision_config": {"num_hidden_layers": 2}, "adapter_config": {"vision_feature_layer": [1, 0]}},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "muse_spark": {"audio_config": {"num_hidden_layers": 4}},
    "muse_spark_audio": {"num_hidden_layers": 4},
    "nemotron": {"num_key_value_heads": 4},
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "neucodec": {"encoder_hidden_size": 8, "downsampling_ratios": [2, 4], "quantization_dim": 64},
    "omdet-turbo": {
        "backbone_config": {
            "model_type": "swin",
            "embed_dim": 16,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 2, 4, 8],
            "window_size": 2,
            "out_indices": [2, 3, 4],
        }
    },
    "oneformer": {
        "backbone_config": {
            "embed_dim": 16,
            "window_size": 2,
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        }
    },
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


def draft(_: Any, config: Any) -> dict[str, Any]:
    """Of a model that drafts with the keys and values of another one."""
    text = config.text_config
    heads = {"sliding_attention": text.head_dim, "full_attention": 32}
    return {
        "inputs_embeds": torch.randn(2, 1, 2 * config.backbone_hidden_size),
        "position_ids": torch.tensor([[8]] * 2),
        "shared_kv_states": {
            k: (
                torch.randn(2, text.num_key_value_heads, 8, d),
                torch.randn(2, text.num_key_value_heads, 8, d),
            )
            for k, d in heads.items()
        },
    }


INPUTS: dict[str, Callable[[Any, Any], dict[str, Any]]] = {
    "audioflamingo3_encoder": lambda _, c: {
        "input_features": torch.randn(2, c.num_mel_bins, 2 * c.max_source_positions),
        "input_features_mask": torch.ones(2, 2 * c.max_source_positions, dtype=torch.long),
    },
    "autoformer": series,
    "bark": lambda _, c: {"codebook_idx": 1, "input_ids": torch.randint(0, 99, (2, 12, 8))},
    "blip_2_qformer": lambda _, c: {
        "query_embeds": torch.randn(2, 4, c.hidden_size),
        "encoder_hidden_states": torch.randn(2, 6, c.encoder_hidden_size),
    },
    "informer": series,
    "wav2vec2-bert": lambda _, c: {"input_features": torch.randn(2, 32, c.feature_projection_input_dim)},
    "clap": lambda _, c: {
        "input_ids": torch.randint(5, 99, (2, 12)),
        "input_features": torch.randn(2, 1, 128, c.audio_config.num_mel_bins),
    },
    "clap_audio_model": lambda _, c: {"input_features": torch.randn(2, 1, 128, c.num_mel_bins)},
    "decision_transformer": lambda _, c: {
        "states": torch.randn(2, 4, c.state_dim),
        "actions": torch.randn(2, 4, c.act_dim),
        "rewards": torch.randn(2, 4, 1),
        "returns_to_go": torch.randn(2, 4, 1),
        "timesteps": torch.arange(4).repeat(2, 1),
    },
    "depth_pro": lambda _, c: {"pixel_values": torch.randn(1, 3, 64, 64)},
    "dia": lambda _, c: {
        "input_ids": torch.randint(5, 99, (2, 12)),
        "decoder_input_ids": torch.randint(5, 99, (2, 8, c.decoder_config.num_channels)),
    },
    "efficientloftr": lambda _, c: {"pixel_values": torch.randn(1, 2, 3, 64, 64)},
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
        "input_features": torch.randn(2, 16, c.input_size),
        "input_features_mask": torch.ones(2, 16, dtype=torch.long),
    },
    "time_series_transformer": series,
    "timesfm": lambda _, c: {
        "past_values": torch.randn(2, 64),
        "past_values_padding": torch.zeros(2, 66, dtype=torch.long),
        "freq": torch.zeros(2, 1, dtype=torch.long),
    },
    "fastspeech2_conformer": lambda _, c: {
        "input_ids": torch.randint(5, c.vocab_size, (2, 6)),
        "spectrogram_labels": torch.randn(2, 12, c.num_mel_bins),
        "duration_labels": torch.full((2, 6), 2),
        "pitch_labels": torch.randn(2, 6, 1),
        "energy_labels": torch.randn(2, 6, 1),
    },
    "gemma3n_audio": lambda _, c: {
        "audio_mel": torch.randn(2, 64, c.input_feat_size),
        "audio_mel_mask": torch.zeros(2, 64, dtype=torch.bool),
    },
    "gemma4_assistant": draft,
    "gemma4_audio": lambda _, c: {"input_features": torch.randn(2, 64, 128)},
    "gemma4_unified_assistant": draft,
    "gemma4_vision": lambda _, c: {
        "pixel_values": torch.randn(2, 36, 3 * c.patch_size**2),
        "pixel_position_ids": torch.cartesian_prod(torch.arange(6), torch.arange(6)).repeat(2, 1, 1),
    },
    **{
        n: lambda _, c: {
            "input_features": torch.randn(2, 64, 2 * getattr(c, "encoder_config", c).num_mel_bins)
        }
        for n in ("granite_speech5_ctc", "granite_speech5_encoder")
    },
    "glm_image_vqmodel": lambda _, c: {"hidden_state": torch.randn(2, c.embed_dim, 4, 4)},
    "inkling2_vision": lambda _, c: {
        "pixel_values": torch.randn(8, 2 * c.patch_size, 2 * c.patch_size, 3),
        "image_grid_thw": torch.tensor([[1, 2, 2]] * 2),
    },
    "instructblipvideo": lambda _, c: {
        "pixel_values": torch.randn(2, 2, 3, 32, 32),
        "qformer_input_ids": torch.randint(5, 99, (2, 6)),
        "input_ids": torch.cat(
            [torch.full((2, 2 * c.num_query_tokens), c.video_token_index), torch.randint(5, 99, (2, 8))], 1
        ),
    },
    "jev": lambda _, c: {
        "input_ids": torch.randint(5, 99, (1, 12)),
        "marks": torch.tensor([[4, 9]]),
        "num_options": torch.tensor([[2, 2]]),
        "question_type_ids": torch.tensor([[0, 1]]),
    },
    "kimi_k25_vision": lambda _, c: {
        "pixel_values": torch.randn(32, 3, c.patch_size, c.patch_size),
        "grid_thw": torch.tensor([[1, 4, 4]] * 2),
    },
    "kosmos-2": lambda _, c: {
        "pixel_values": torch.randn(2, 3, 32, 32),
        "input_ids": torch.randint(5, 99, (2, c.latent_query_num + 8)),
        "image_embeds_position_mask": (torch.arange(c.latent_query_num + 8) < c.latent_query_num).repeat(
            2, 1
        ),
    },
    "kyutai_speech_to_text": lambda _, c: {"input_ids": torch.randint(5, 99, (2, 12, c.num_codebooks + 1))},
    "mimi_decoder": lambda _, c: {"latents": torch.randn(2, c.hidden_size, 4)},
    **{
        n: lambda _, c: {
            "pixel_values": torch.randn(1, 3, c.patch_size, 32 * c.patch_size),
            "target_sizes": torch.tensor([[4, 4]] * 2),
        }
        for n in ("minicpm_ocr_vision", "minicpmv4_7_vision")
    },
    "muse_glimmer_assistant": lambda _, c: {
        "noise_embeds": torch.randn(2, 4, c.hidden_size),
        "context_hidden_states": torch.randn(2, 6, c.hidden_size * len(c.target_layer_ids)),
    },
    **{
        n: lambda _, c: {
            "pixel_values": torch.randn(32, 3 * c.patch_temporal * c.patch_size**2),
            "grid_thw": torch.tensor([[1, 4, 4]] * 2),
        }
        for n in ("muse_glimmer_vision", "muse_spark_vision")
    },
    "musicgen": lambda _, c: {
        "input_ids": torch.randint(5, 99, (2, 12)),
        "decoder_input_ids": torch.randint(5, 99, (2 * c.decoder.num_codebooks, 8)),
    },
    "musicgen_melody": lambda _, c: {
        "input_ids": torch.randint(5, 99, (2, 12)),
        "input_features": torch.randn(2, 16, c.num_chroma),
        "decoder_input_ids": torch.randint(5, 99, (2 * c.decoder.num_codebooks, 8)),
    },
    "nemotron3_5_transcribe_word_timestamp": lambda _, c: {"inputs_embeds": torch.randn(2, 8, c.hidden_size)},
    "neucodec": lambda _, c: {
        "input_values": torch.randn(2, 1, 320),
        "input_features": torch.randn(2, 40, c.semantic_model_config.feature_projection_input_dim),
    },
}
"""The inputs, from the module and its configuration."""
