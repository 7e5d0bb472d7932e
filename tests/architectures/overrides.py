"""What the rules of `of_transformers` get wrong, by model type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

CLASSES: dict[str, str] = {}
"""The class to take, where the first that a rule finds will not do."""

PARTS: dict[str, str] = {
    "bark": "fine_acoustics",
    "glm_image_vqmodel": "quantize",
    "qwen2_5_omni": "thinker",
    "qwen3_omni_moe": "thinker",
}
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
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
DETECTOR = {
    "backbone_config": {**HGNET, "out_features": ["stage2", "stage3", "stage4"]},
    "encoder_in_channels": [32, 32, 64],
    "decoder_in_channels": [64, 64, 64],
}
RT_DETR = {
    **DETECTOR,
    "backbone_config": {"embedding_size": 16, "hidden_sizes": [16, 32, 32, 64], "out_indices": [2, 3, 4]},
}
LCNET3 = {
    "scale": 0.25,
    "out_features": ["stage2", "stage3", "stage4", "stage5"],
    "block_configs": [
        [[3, 16, 32, 1, False]],
        [[3, 32, 64, 2, False]],
        [[3, 64, 64, 2, False]],
        [[5, 64, 128, 2, True]],
        [[5, 128, 128, 2, True]],
    ],
}
LCNET4 = {
    "stem_channels": [3, 8, 16],
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
    "block_configs": [
        [[3, 16, 16, 1, True]],
        [[3, 16, 16, 2, False]],
        [[3, 16, 32, 2, False]],
        [[3, 32, 32, 2, True]],
    ],
}
SAM2_HIERA = {"hidden_size": 16, "blocks_per_stage": [1, 2, 1, 1], "global_attention_blocks": [2]}
SAM2_VISION = {
    "backbone_config": SAM2_HIERA,
    "backbone_channel_list": [128, 64, 32, 16],
    "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
}
PE_VIDEO = {
    "vision_config": {
        "architecture": "test_vit",
        "num_classes": 32,
        "model_args": {"img_size": 64, "global_pool": "map"},
    }
}
QSA = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
}
SHORT_CODEC = {"downsampling_ratios": [2, 4], "depths": [1, 1, 1]}
DINO = {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "reshape_hidden_states": False}
EDGETAM_VISION = {
    "backbone_config": {
        "model_type": "timm_wrapper",
        "architecture": "test_convnext",
        "num_classes": 2,
        "model_args": {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
    },
    "backbone_channel_list": [64, 48, 32, 24],
    "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
}
# Names of the tokens that stand for the codes of an image: 128 of them from 128 on.
CHAMELEON_TOKENS = {f"IMGIMG{''.join('ABCDEFGHIJ'[int(d)] for d in str(i))}Z": 128 + i for i in range(128)}
EMU3_TOKENS = {f"<|visual token {i:06}|>": 128 + i for i in range(128)}

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

INTRACLASS = {
    "neck_out_channels": 32,
    "scale_factor_list": [1, 2, 4, 8],
    "kernel_list": [3, 2, 2],
    "intraclass_block_config": {
        "reduce_channel": [1, 1, 0],
        "return_channel": [1, 1, 0],
        **{
            f"{kind}_{ratio}ratio": [[h, w], [1, 1], [h // 2, w // 2]]
            for ratio, n in (("long", 7), ("mid", 5), ("short", 3))
            for kind, h, w in (
                ("vertical_long_to_small_conv", n, 1),
                ("horizontal_small_to_long_conv", 1, n),
                ("symmetric_conv_long", n, n),
            )
        },
    },
}

# The widths of the layers with a sliding window are apart from those of the others.
DOTS3_TEXT = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 32,
    "swa_kv_lora_rank": 32,
    "swa_head_dim": 32,
    "swa_qk_nope_head_dim": 16,
    "swa_v_head_dim": 16,
}

ROPE_BY_LAYER = {"rope_parameters": {"full_attention": {"rope_theta": 10000.0, "rope_type": "default"}}}

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
    "shieldgemma2": {"mm_tokens_per_image": 4, "yes_token_index": 100, "no_token_index": 101},
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
    "informer": {"first": SERIES, **SERIES},
    "time_series_transformer": {"first": SERIES, **SERIES},
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
    "clap": {
        "audio_config": {
            "spec_size": 64,
            "window_size": 2,
            "patch_embeds_hidden_size": 16,
            "hidden_size": 128,
            "num_hidden_layers": 4,
        }
    },
    "clvp": {"text_config": {"num_attention_heads": 2}, "speech_config": {"num_attention_heads": 2}},
    "cohere_compass": {"first": {"text_config": ROPE_BY_LAYER}},
    "cohere_compass_text": {"first": ROPE_BY_LAYER},
    "cvt": {"depth": [1, 2, 3]},
    "d_fine": DETECTOR,
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_ocr2": {
        "vision_config": {"sam_config": {"downsample_channels": [32, 64]}},
        "text_config": {
            "num_hidden_layers": 2,
            "mlp_layer_types": ["dense", "sparse"],
            "num_experts_per_tok": 2,
        },
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deimv2": DETECTOR,
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
        "text_config": DOTS3_TEXT,
        "vision_config": {"adapter_in_dim": 64, "adapter_out_dim": 64},
        "audio_config": {"adapter_input_size": 64, "adapter_out_dim": 64},
    },
    "dots3_note_text": DOTS3_TEXT,
    "edgetam": {
        "vision_config": EDGETAM_VISION,
        "prompt_encoder_config": {"image_size": 64, "patch_size": 16},
    },
    "edgetam_vision_model": EDGETAM_VISION,
    "efficientloftr": {"out_features": [16, 16, 32, 64], "num_attention_heads": 8},
    "emu3": {
        "text_config": {"vocab_size": 256},
        "vocabulary_map": {"<image>": 120, "<|extra_200|>": 121, **EMU3_TOKENS},
        "vq_config": {"base_channels": 32, "channel_multiplier": [1, 1, 2, 2], "codebook_size": 128},
    },
    "ernie4_5_vl_moe": {"text_config": {"moe_k": 2, "rope_parameters": {"mrope_section": [3, 3, 2]}}},
    "esm": {"vocab_size": 128, "pad_token_id": 1, "mask_token_id": 32},
    "falcon_h1": {"mamba_d_ssm": 128},
    "fast_vlm": {"vision_config": TIMM_TOWER},
    "fastspeech2_conformer_with_hifigan": {"vocoder_config": {"model_in_dim": 32}},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 16}},
    "gemma3n": {
        "text_config": {**GEMMA3N_TEXT, "vocab_size": 144},
        "vision_config": {**TIMM_TOWER, "vocab_size": 8, "vocab_offset": 128},
        "audio_config": {"vocab_size": 8, "vocab_offset": 136},
        "vision_soft_tokens_per_image": 4,
        "audio_soft_tokens_per_image": 4,
    },
    "gemma3n_text": GEMMA3N_TEXT,
    "gradium_phonon_tts": {"flow_head_config": {"condition_dim": 64}},
    "granite4_vision": {
        "deepstack_layer_map": [[0, 0]],
        "spatial_target_layers": [0, 0, 0, 0],
        "downsample_rate": "1/2",
        "image_grid_pinpoints": [[32, 32]],
        "qformer_config": {"num_hidden_layers": 1},
    },
    "hunyuan_vl": {"text_config": {"head_dim": 16}},
    "hunyuan_vl_text": {"head_dim": 16},
    "levit": {"image_size": 64, "patch_size": 16},
    "lightglue": {"depth_confidence": -1.0, "width_confidence": -1.0},
    "lilt": {"hidden_size": 96},
    "longcat_flash": {"qk_head_dim": 32},
    "lw_detr": {"backbone_config": {"num_windows": 4}, "projector_scale_factors": [1.0]},
    "lw_detr_vit": {"num_windows": 4},
    "mask2former": {
        "backbone_config": {
            "embed_dim": 16,
            "window_size": 2,
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        }
    },
    "ministral": {"head_dim": 16},
    "mistral_large4": {"text_config": {"kv_source_layers": [0, 1, 1, 3]}},
    "mistral_large4_text": {"kv_source_layers": [0, 1, 1, 3]},
    "molmo2": {"vision_config": {"num_hidden_layers": 2}, "adapter_config": {"vision_feature_layer": [1, 0]}},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "muse_spark": {"out_hidden_size": 256, "audio_config": {"num_hidden_layers": 4}},
    "muse_spark_audio": {"num_hidden_layers": 4},
    "nemotron": {"num_key_value_heads": 4},
    "nemotron_h_omni": {"image_token_id": 120, "vision_config": {"video_temporal_patch_size": 2}},
    "neucodec": {"encoder_hidden_size": 8, "downsampling_ratios": [2, 4], "quantization_dim": 128},
    "omdet-turbo": {
        "apply_layernorm_after_vision_backbone": False,
        "encoder_in_channels": [32, 64, 128],
        "vision_features_channels": [32, 32, 32],
        "text_projection_in_dim": 64,
        "text_projection_out_dim": 64,
        "encoder_hidden_dim": 32,
        "decoder_hidden_dim": 32,
        "backbone_config": {
            "model_type": "swin",
            "embed_dim": 16,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 2, 4, 8],
            "window_size": 2,
            "out_indices": [2, 3, 4],
        },
    },
    "oneformer": {
        "mask_dim": 32,
        "decoder_layers": 2,
        "backbone_config": {
            "embed_dim": 16,
            "window_size": 2,
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
    },
    "pe_audio_video": {"audio_video_config": {"video_config": PE_VIDEO}},
    "pe_audio_video_encoder": {"video_config": PE_VIDEO},
    "pe_video": {"video_config": PE_VIDEO},
    "pe_video_encoder": PE_VIDEO,
    "perception_lm": {
        "vision_config": {
            "architecture": "test_vit",
            "num_classes": 2,
            "model_args": {"img_size": 64, "embed_dim": 64, "global_pool": ""},
        }
    },
    "pi0": {"chunk_size": 4},
    "pocket_tts": {"flow_head_config": {"condition_dim": 64}},
    "pp_doclayout_v2": {**DETECTOR, "class_thresholds": [0.5] * 25, "class_order": list(range(25))},
    "pp_doclayout_v3": {**DETECTOR, "backbone_config": HGNET, "x4_feat_dim": 16},
    "pp_doclayout_v4": DETECTOR,
    "pp_formulanet": {
        "vision_config": {
            "post_conv_in_channels": 64,
            "post_conv_mid_channels": 64,
            "post_conv_out_channels": 64,
        }
    },
    "pp_ocrv5_mobile_det": {
        "backbone_config": LCNET3,
        "layer_list_out_channels": [8, 8, 16, 16],
        "neck_out_channels": 16,
    },
    "pp_ocrv5_mobile_rec": {"backbone_config": LCNET3},
    "pp_ocrv5_server_det": {"backbone_config": HGNET, **INTRACLASS},
    "pp_ocrv5_server_rec": {"backbone_config": HGNET},
    "pp_ocrv6_medium_det": {"backbone_config": LCNET4, **INTRACLASS},
    "pp_ocrv6_small_det": {
        "backbone_config": LCNET4,
        "layer_list_out_channels": [16, 16, 32, 32],
        "neck_out_channels": 16,
    },
    "prompt_depth_anything": {
        "neck_hidden_sizes": [16, 16, 32, 32],
        "fusion_hidden_size": 16,
        "backbone_config": DINO,
    },
    "pvt": {"num_encoder_blocks": 4},
    "qwen3_omni_moe": {
        "talker_config": {"spatial_merge_size": 2, "text_config": {"shared_expert_intermediate_size": 64}}
    },
    "qwen4_exp": {"text_config": QSA},
    "qwen4_exp_text": QSA,
    "reformer": {
        "axial_pos_embds_dim": [32, 32],
        "axial_pos_shape": [4, 4],
        "attn_layers": ["local", "lsh"],
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "num_buckets": 2,
        "hash_seed": 0,
    },
    "rt_detr": RT_DETR,
    "rt_detr_v2": RT_DETR,
    "sam2": {"vision_config": SAM2_VISION, "prompt_encoder_config": {"image_size": 64, "patch_size": 16}},
    "sam2_hiera_det_model": SAM2_HIERA,
    "sam2_vision_model": SAM2_VISION,
    "sam3_tracker": {"vision_config": {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}},
    "sapiens2": {"num_key_value_heads_per_layer": [4, 2]},
    "seggpt": {"num_hidden_layers": 4, "intermediate_hidden_state_indices": [0, 1, 2, 3], "merge_index": 0},
    "slanet": {
        "backbone_config": {"scale": 0.25, "out_features": ["stage2", "stage3", "stage4", "stage5"]},
        "max_text_length": 4,
    },
    "slanext": {"post_conv_in_channels": 64, "post_conv_out_channels": 64, "max_text_length": 4},
    "step3p7": {"text_config": {"sliding_window": 8}},
    "superglue": {
        "keypoint_encoder_sizes": [16, 32],
        "gnn_layers_types": ["self", "cross"],
        "keypoint_detector_config": {"descriptor_decoder_dim": 64},
    },
    "t5gemma2_encoder": {"mm_tokens_per_image": 4, "text_config": {"dropout_rate": 0.0}},
    "timm_backbone": {"backbone": "test_convnext"},
    "tipsv2_dpt": {
        "neck_hidden_sizes": [16, 16, 32, 32],
        "fusion_hidden_size": 16,
        "backbone_config": {**DINO, "apply_layernorm": True},
    },
    "tvp": {"max_img_size": 64, "visual_prompt_size": 8, "backbone_config": {"out_features": ["stage4"]}},
    "upernet": {
        "hidden_size": 16,
        "auxiliary_in_channels": 32,
        "backbone_config": {**RESNET, "out_features": ["stage1", "stage2", "stage3", "stage4"]},
    },
    "uvdoc": {"backbone_config": {"out_features": [f"stage{i}" for i in range(1, 7)]}},
    **dict.fromkeys(
        (
            "vibevoice_acoustic_tokenizer",
            "vibevoice_acoustic_tokenizer_decoder",
            "vibevoice_acoustic_tokenizer_encoder",
        ),
        SHORT_CODEC,
    ),
    "vitmatte": {
        "fusion_hidden_sizes": [32, 16, 16, 16],
        "convstream_hidden_sizes": [8, 16, 16],
        "backbone_config": {
            "num_channels": 4,
            "patch_size": 16,
            "image_size": 64,
            "out_features": ["stage1"],
        },
    },
    "xcodec": {"codebook_dim": 128, "acoustic_model_config": {"hidden_size": 64, "encoder_hidden_size": 8}},
    "xcodec2": {"encoder_hidden_size": 8, "downsampling_ratios": [2, 4], "quantization_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
    "zoedepth": {
        "neck_hidden_sizes": [16, 16, 32, 32],
        "fusion_hidden_size": 16,
        "bottleneck_features": 16,
        "backbone_config": {**DINO, "use_relative_position_bias": True},
    },
}
"""Fields of the configuration, after shrinking; "first": what the default configuration is made with."""


def around(*tokens: int) -> torch.Tensor:
    """Text with these tokens in it, which stand for an image or for sound."""
    special = torch.tensor(tokens, dtype=torch.long).expand(2, -1)
    return torch.cat([torch.randint(5, 99, (2, 4)), special, torch.randint(5, 99, (2, 6))], 1)


def series(_: Any, config: Any) -> dict[str, Any]:
    past = config.context_length + max(config.lags_sequence)
    return {
        "past_values": torch.randn(2, past),
        "past_time_features": torch.randn(2, past, config.num_time_features),
        "past_observed_mask": torch.ones(2, past),
        "future_values": torch.randn(2, config.prediction_length),
        "future_time_features": torch.randn(2, config.prediction_length, config.num_time_features),
    }


def speech_labels(_: Any, config: Any) -> dict[str, Any]:
    return {
        "input_ids": torch.randint(5, config.vocab_size, (2, 6)),
        "spectrogram_labels": torch.randn(2, 12, config.num_mel_bins),
        "duration_labels": torch.full((2, 6), 2),
        "pitch_labels": torch.randn(2, 6, 1),
        "energy_labels": torch.randn(2, 6, 1),
    }


def speech(_: Any, __: Any) -> dict[str, Any]:
    return {"input_values": torch.randn(2, 4000), "decoder_input_ids": torch.randint(5, 80, (2, 8))}


def codec(_: Any, config: Any) -> dict[str, Any]:
    return {
        "input_values": torch.randn(2, 1, 320),
        "input_features": torch.randn(2, 40, config.semantic_model_config.feature_projection_input_dim),
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
        "input_features": torch.randn(2, 16, c.input_size),
        "input_features_mask": torch.ones(2, 16, dtype=torch.long),
    },
    "time_series_transformer": series,
    "timesfm": lambda _, c: {
        "past_values": torch.randn(2, 64),
        "past_values_padding": torch.zeros(2, 64, dtype=torch.long),
        "freq": torch.zeros(2, 1, dtype=torch.long),
    },
    "bark": lambda _, c: {"codebook_idx": 1, "input_ids": torch.randint(0, 99, (2, 12, 8))},
    "clap": lambda _, c: {
        "input_ids": torch.randint(5, 99, (2, 12)),
        "input_features": torch.randn(2, 1, 128, c.audio_config.num_mel_bins),
    },
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
    "emu3": lambda _, c: {
        "input_ids": around(*[120] * 72),
        "pixel_values": torch.randn(2, 3, 64, 64),
        "image_sizes": torch.tensor([[64, 64]] * 2),
    },
    "fastspeech2_conformer": speech_labels,
    "fastspeech2_conformer_with_hifigan": lambda m, c: speech_labels(m, c.model_config),
    "fun_asr_nano": lambda _, c: {
        "input_ids": around(*[c.audio_token_id] * 16),
        "input_features": torch.randn(2, 16, c.audio_config.input_size),
        "input_features_mask": torch.ones(2, 16, dtype=torch.long),
    },
    "gemma3n": lambda _, c: {
        "input_ids": around(*[c.image_token_id] * 4, *[c.audio_token_id] * 4),
        "pixel_values": torch.randn(2, 3, 64, 64),
        "input_features": torch.randn(2, 64, c.audio_config.input_feat_size),
        "input_features_mask": torch.ones(2, 64, dtype=torch.bool),
    },
    "gemma3n_audio": lambda _, c: {
        "audio_mel": torch.randn(2, 64, c.input_feat_size),
        "audio_mel_mask": torch.zeros(2, 64, dtype=torch.bool),
    },
    "gemma4_audio": lambda _, c: {"input_features": torch.randn(2, 64, 128)},
    "gemma4_vision": lambda _, c: {
        "pixel_values": torch.randn(2, 36, 3 * c.patch_size**2),
        "pixel_position_ids": torch.cartesian_prod(torch.arange(6), torch.arange(6)).repeat(2, 1, 1),
    },
    "glm_image_vqmodel": lambda _, c: {"hidden_state": torch.randn(2, c.embed_dim, 4, 4)},
    "granite4_vision": lambda _, c: {
        "input_ids": around(*[c.image_token_index] * 10),
        "pixel_values": torch.randn(2, 2, 3, 32, 32),
        "image_sizes": torch.tensor([[32, 32]] * 2),
    },
    **{
        n: lambda _, c: {
            "input_features": torch.randn(2, 64, 4 * getattr(c, "encoder_config", c).num_mel_bins)
        }
        for n in ("granite_speech5_ctc", "granite_speech5_encoder")
    },
    "hunyuan_vl": lambda _, c: {
        "input_ids": around(*[c.image_token_id] * 8),
        "pixel_values": torch.randn(32, 3 * c.vision_config.patch_size**2),
        "mm_token_type_ids": torch.tensor([[0] * 4 + [1] * 8 + [0] * 6] * 2),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * 2),
    },
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
    "molmo2": lambda _, c: {
        "input_ids": torch.cat(
            [
                torch.randint(5, 99, (2, 4)),
                torch.full((2, 4), c.image_patch_id),
                torch.randint(5, 99, (2, 4)),
            ],
            1,
        ),
        "mm_token_type_ids": torch.tensor([[0] * 4 + [1] * 4 + [0] * 4] * 2),
        "pixel_values": torch.randn(2, 64, 3 * 8**2),
        "image_token_pooling": torch.arange(128)[::4][:32].reshape(8, 4),
        "image_grids": torch.tensor([[2, 2, 0, 0]] * 2),
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
    "muse_spark": lambda _, c: {
        "input_ids": around(*[c.image_token_id] * 4, *[c.audio_token_id] * 2),
        "pixel_values": torch.randn(32, 3 * c.vision_config.patch_temporal * c.vision_config.patch_size**2),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * 2),
        "input_values": torch.randn(2, 3840),
    },
    "muse_spark_audio": lambda _, c: {"input_values": torch.randn(2, 3840)},
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
    "nemotron_h_omni": lambda _, c: {
        "input_ids": around(*[c.image_token_id] * 4),
        "pixel_values": torch.randn(32, 3 * c.vision_config.patch_size**2),
        "image_grid_hw": torch.tensor([[4, 4]] * 2),
    },
    "neucodec": codec,
    "omdet-turbo": lambda _, c: {
        "pixel_values": torch.randn(2, 3, 64, 64),
        "classes_input_ids": torch.randint(5, 99, (3, 6)),
        "classes_attention_mask": torch.ones(3, 6, dtype=torch.long),
        "tasks_input_ids": torch.randint(5, 99, (2, 6)),
        "tasks_attention_mask": torch.ones(2, 6, dtype=torch.long),
        "classes_structure": torch.tensor([2, 1]),
    },
    "perceiver": lambda _, c: {"input_ids": torch.randint(5, 99, (2, c.max_position_embeddings))},
    "perception_lm": lambda _, c: {
        "input_ids": around(*[c.image_token_id] * 16),
        "pixel_values": torch.randn(2, 1, 3, 64, 64),
    },
    "pi0": lambda _, c: {
        "state": torch.randn(2, c.max_state_dim),
        "noise": torch.randn(2, c.chunk_size, c.max_action_dim),
        "timestep": torch.rand(2),
        "input_ids": torch.cat(
            [torch.full((2, 16), c.vlm_config.image_token_id), torch.randint(5, 99, (2, 8))], 1
        ),
        "attention_mask": torch.ones(2, 24, dtype=torch.long),
        "pixel_values": torch.randn(2, 1, 3, 32, 32),
        "pixel_attention_mask": torch.ones(2, 1, dtype=torch.bool),
    },
    "pocket_tts_audio_tokenizer_decoder": lambda _, c: {"latents": torch.randn(2, c.hidden_size, 4)},
    **{
        n: lambda _, c: {"pixel_values": torch.randn(2, 3, 96, 128)}
        for n in ("pp_ocrv5_mobile_rec", "pp_ocrv5_server_rec")
    },
    "qwen3_asr_encoder": lambda _, c: {
        "input_features": torch.randn(2, c.num_mel_bins, 100),
        "input_features_mask": torch.ones(2, 100, dtype=torch.long),
    },
    "reformer": lambda _, c: {"input_ids": torch.randint(5, 99, (2, 16))},
    "seggpt": lambda _, c: {
        k: torch.randn(2, 3, 32, 64) for k in ("pixel_values", "prompt_pixel_values", "prompt_masks")
    },
    "shieldgemma2": lambda _, c: {
        "input_ids": torch.cat([torch.full((2, 4), c.image_token_index), torch.randint(5, 99, (2, 8))], 1),
        "token_type_ids": torch.tensor([[1] * 4 + [0] * 8] * 2),
        "pixel_values": torch.randn(2, 3, 32, 32),
    },
    "speech-encoder-decoder": speech,
    "speecht5": speech,
    "superglue": lambda _, c: {"pixel_values": torch.randn(1, 2, 3, 64, 64)},
    "t5gemma2_encoder": lambda _, c: {
        "input_ids": around(*[c.image_token_index] * 4),
        "pixel_values": torch.randn(2, 3, 32, 32),
    },
    "timesfm2_5": lambda _, c: {"past_values": torch.randn(2, 64)},
    "tvp": lambda _, c: {
        "input_ids": torch.randint(5, 99, (1, 12)),
        "pixel_values": torch.randn(1, 4, 3, 64, 64),
    },
    "vibevoice_acoustic_tokenizer_decoder": lambda _, c: {"hidden_states": torch.randn(2, c.hidden_size, 8)},
    "vibevoice_acoustic_tokenizer_encoder": lambda _, c: {"hidden_states": torch.randn(2, c.channels, 64)},
    "video_llama_3_vision": lambda _, c: {
        "pixel_values": torch.randn(32, 3 * c.patch_size**2),
        "grid_thw": torch.tensor([[1, 4, 4]] * 2),
        "merge_sizes": torch.tensor([2, 2]),
    },
    "vitmatte": lambda _, c: {"pixel_values": torch.randn(2, 4, 64, 64)},
    "voxtral_realtime": lambda _, c: {
        "input_ids": torch.randint(5, 99, (2, 8)),
        "input_features": torch.randn(2, c.audio_config.num_mel_bins, 64),
    },
    "voxtral_realtime_text": lambda _, c: {
        "input_ids": torch.randint(5, 99, (2, 12)),
        "t_cond": torch.randn(1, 1, c.hidden_size),
    },
    "xclip": lambda _, c: {
        "input_ids": torch.randint(5, 99, (2, 12)),
        "pixel_values": torch.randn(2, c.vision_config.num_frames, 3, 32, 32),
    },
    "xcodec": lambda _, c: {"input_values": torch.randn(2, 1, 3200)},
    "xcodec2": codec,
}
"""The inputs, from the module and its configuration."""
