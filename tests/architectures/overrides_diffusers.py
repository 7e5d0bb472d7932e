"""What the rules of `of_diffusers` get wrong, by class."""

from __future__ import annotations

from typing import Any

import torch

GENERATOR = torch.Generator().manual_seed(0)


def r(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR)


WIDTH, TEXT, TOKENS = 32, 6, 16


def pair(name: str, count: int = 2, **options: Any) -> Any:
    """A model of `count` of the class `name`."""

    def build(kind: Any) -> Any:
        from . import of_diffusers

        return kind([of_diffusers.build(name, **options) for _ in range(count)])

    return build


def twice(name: str, *doubled: str) -> Any:
    """The inputs of the class `name`, some of them twice, for a model of two of it."""

    def inputs(_: Any) -> dict[str, Any]:
        from . import of_diffusers

        made = of_diffusers.inputs_of(name, of_diffusers.build(name))
        return {**made, **{k: [made[k], made[k]] for k in doubled}, "conditioning_scale": [1.0, 0.5]}

    return inputs


def latents_5d(channels: int) -> dict[str, Any]:
    """Frames before channels, as CogVideoX and its kin have them."""
    return {"hidden_states": r(1, 2, channels, 8, 8)}


def video(channels: int, frames: int = 2) -> torch.Tensor:
    return r(1, channels, frames, 8, 8)


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.bool)


def tiled(kind: Any) -> Any:
    """Allegro's autoencoder, which encodes in tiles only."""
    from . import of_diffusers

    options = {
        "temporal_downsample_blocks": (True, True),
        "temporal_upsample_blocks": (True, True),
        "norm_num_groups": 8,
    }
    made = kind(**{**of_diffusers.shrunk(kind), **options})
    made.enable_tiling()
    made.kernel, made.stride = (8, 16, 16), (4, 8, 8)
    made.tile_overlap_t, made.tile_overlap_h, made.tile_overlap_w = 4, 8, 8
    return made


def with_transformer(kind: Any) -> Any:
    """A control net that takes its embedders from the transformer it controls."""
    from . import of_diffusers

    options = {"control_layers_places": [0], "control_refiner_layers_places": [0], "control_in_dim": 8}
    made = kind(**{**of_diffusers.shrunk(kind), **options})
    made.gradient_checkpointing = False  # its forward asks for it and its constructor does not set it
    return kind.from_transformer(made, of_diffusers.build("ZImageTransformer2DModel"))


def kv_cache(module: Any) -> Any:
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    return WanAnimate2KVCache(module.config.num_layers)


OPTIONS: dict[str, Any] = {
    "AutoencoderKLAllegro": tiled,
    "AutoencoderKLHunyuanImage": {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "sample_size": 32,
        "block_out_channels": (32, 64), "layers_per_block": 1, "spatial_compression_ratio": 2},
    "AutoencoderKLHunyuanImageRefiner": {"latent_channels": 4, "block_out_channels": (32, 32, 64), "spatial_compression_ratio": 4, "temporal_compression_ratio": 2},
    "AutoencoderKLHunyuanVideo15": {"latent_channels": 4, "block_out_channels": (32, 32, 64), "spatial_compression_ratio": 4, "temporal_compression_ratio": 2},
    "AutoencoderKLKVAEAudio": {"encoder_dim": 8, "encoder_rates": [2, 4], "latent_dim": 32, "codebook_dim": 8, "decoder_dim": 32, "decoder_rates": [4, 2]},
    "AutoencoderKLKVAEVideo": {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "z_channels": 4, "temporal_compress_times": 2},
    "AutoencoderKLLTX2Video": {"latent_channels": 8, "block_out_channels": (16, 32), "decoder_block_out_channels": (16, 32), "layers_per_block": (1, 1, 1), "decoder_layers_per_block": (1, 1, 1),
        "down_block_types": ("LTX2VideoDownBlock3D",) * 2, "spatio_temporal_scaling": (True, True), "decoder_spatio_temporal_scaling": (True, True), "decoder_inject_noise": (False,) * 3,
        "downsample_type": ("spatial", "temporal"), "upsample_type": ("spatial", "temporal"), "upsample_residual": (True, True), "upsample_factor": (2, 2), "patch_size": 2},
    "AutoencoderKLMiniMaxH3Audio": {"encoder_dim": 8, "encoder_rates": (2, 4), "latent_dim": 32, "latent_channels": 8, "num_attention_heads": 2, "decoder_dim": 32, "decoder_rates": (4, 2), "decoder_kernel_sizes": (8, 4)},
    "AutoencoderKLMochi": {"encoder_block_out_channels": (32, 32), "decoder_block_out_channels": (32, 32), "latent_channels": 4, "layers_per_block": (1, 1, 1), "temporal_expansions": (1,), "spatial_expansions": (2,), "add_attention_block": (False, True, False), "latents_mean": None, "latents_std": None},
    "BriaFibo2Transformer2DModel": {"cap_feat_dim": 64, "injection_layer_ids": (0,), "min_num_gist_tokens": 2, "max_num_gist_tokens": 4, "gist_step": 1, "gist_min_text_len": 2, "gist_max_text_len": 8, "axes_lens": (64, 32, 32)},
    "BriaFiboTransformer2DModel": {"text_encoder_dim": 16},
    "ControlNetUnionModel": {"addition_time_embed_dim": 8},
    "DreamLiteTransformer2DModel": {"in_channels": WIDTH},
    "EasyAnimateTransformer3DModel": {"in_channels": 4, "out_channels": 4, "patch_size": 2, "mmdit_layers": 1},
    "HunyuanDiT2DControlNetModel": {"in_channels": 4, "patch_size": 2, "hidden_size": WIDTH, "transformer_num_layers": 4, "sample_size": 8, "text_len": TEXT, "text_len_t5": TEXT, "cross_attention_dim_t5": 48},
    "HunyuanDiT2DModel": {"in_channels": 4, "patch_size": 2, "hidden_size": WIDTH, "num_layers": 2, "sample_size": 8, "text_len": TEXT, "text_len_t5": TEXT, "cross_attention_dim_t5": 48},
    "HunyuanDiT2DMultiControlNetModel": pair("HunyuanDiT2DControlNetModel"),
    "HunyuanVideo15Transformer3DModel": {"in_channels": 9, "out_channels": 4, "text_embed_2_dim": WIDTH, "image_embed_dim": WIDTH},
    "HunyuanVideoFramepackTransformer3DModel": {"has_clean_x_embedder": True, "has_image_proj": True, "image_proj_dim": WIDTH},
    "Kandinsky3UNet": {"groups": 4, "time_embedding_dim": WIDTH, "block_out_channels": (32, 64), "layers_per_block": 2, "attention_head_dim": 16},
    "Kandinsky6SRLatentUpscalerBank": {"in_channels": 8, "stage_channels": (64, 32, 16)},
    "LTX2VideoDiffusionDecoderModel": {"latent_channels": 8, "patch_size": 2, "decoder_head_dim": 16, "decoder_stage_channels": (64, 32, 32), "decoder_stage_depths": (1, 1, 1), "decoder_stage_kernels": ((3, 3, 3), (3, 3, 3)), "decoder_upsample_strides": ((1, 2, 2), (2, 1, 1)), "decoder_upsample_channel_reductions": (2, 1), "decoder_stage5_kernel": (3, 3, 3)},
    "LatteTransformer3DModel": {"in_channels": 4, "out_channels": 4, "patch_size": 2, "sample_size": 8, "video_length": 2, "cross_attention_dim": WIDTH, "caption_channels": WIDTH, "norm_type": "ada_norm_single", "num_embeds_ada_norm": 64},
    "LuminaNextDiT2DModel": {"hidden_size": WIDTH, "num_attention_heads": 2, "num_kv_heads": 2, "cross_attention_dim": WIDTH, "sample_size": 8},
    "MMAudioVocoder": {"num_mels": 16, "upsample_initial_channel": 32, "upsample_rates": (4, 2), "upsample_kernel_sizes": (8, 4)},
    "MultiAdapter": lambda kind: kind([__import__("diffusers").T2IAdapter(channels=[16, 16], num_res_blocks=1, downscale_factor=4) for _ in range(2)]),
    "MultiControlNetModel": pair("ControlNetModel"),
    "MultiControlNetUnionModel": pair("ControlNetUnionModel"),
    "NucleusMoEImageTransformer2DModel": {"num_experts": 4, "num_layers": 5, "moe_intermediate_dim": 32, "capacity_factors": [2.0] * 5},
    "PRXTransformer2DModel": {"num_heads": 2, "axes_dim": [8, 8]},
    "QwenImage21Transformer2DModel": {"context_in_dim": WIDTH},
    "SD3ControlNetModel": {"pos_embed_max_size": 16, "caption_projection_dim": WIDTH},
    "SD3MultiControlNetModel": pair("SD3ControlNetModel"),
    "StableAudioDiTModel": {"cross_attention_input_dim": WIDTH, "global_states_input_dim": WIDTH, "num_key_value_attention_heads": 1},
    "Transformer2DModel": {"in_channels": WIDTH},
    "TransformerTemporalModel": {"in_channels": WIDTH},
    "UNetSpatioTemporalConditionModel": {"num_attention_heads": (2, 2), "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 24},
    "WanAnimateTransformer3DModel": {"motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16}, "motion_encoder_size": 16, "motion_style_dim": 8, "motion_dim": 4, "motion_encoder_dim": 16, "face_encoder_hidden_dim": 16, "face_encoder_num_heads": 2, "inject_face_latents_blocks": 1, "image_dim": None, "in_channels": 12, "latent_channels": 4, "out_channels": 4},
    "WanVACETransformer3DModel": {"vace_layers": [0], "vace_in_channels": 16},
    "ZImageControlNetModel": with_transformer,
    "AnimaTextConditioner": {"source_dim": WIDTH, "min_sequence_length": 8},
    "AutoencoderOobleck": {"encoder_hidden_size": 16, "channel_multiples": [1, 2], "downsampling_ratios": [2, 4], "decoder_channels": 16, "decoder_input_channels": 8},
    "AutoencoderRAE": {"encoder_hidden_size": 384, "encoder_patch_size": 14, "encoder_num_hidden_layers": 1, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 64, "patch_size": 4, "encoder_input_size": 28, "image_size": 8},
    "CogVideoXTransformer3DModel": {"sample_width": 8, "sample_height": 8, "sample_frames": 5, "max_text_seq_length": TEXT},
    "ConsisIDTransformer3DModel": {"sample_width": 8, "sample_height": 8, "sample_frames": 5, "max_text_seq_length": TEXT},
    "Cosmos3AVAEAudioTokenizer": {"vocoder_input_dim": 64, "dec_dim": 8, "enc_dim": 16, "enc_intermediate_dim": 32, "enc_num_layers": 1, "enc_latent_dim": 128},
    "ErnieImageTransformer2DModel": {"text_in_dim": WIDTH},
    "FluxMultiControlNetModel": pair("FluxControlNetModel", num_mode=4),
    "HiDreamImageTransformer2DModel": {"in_channels": 4, "out_channels": 4, "patch_size": 2, "caption_channels": (WIDTH, WIDTH), "llama_layers": (0, 1), "text_emb_dim": WIDTH, "axes_dims_rope": (4, 6, 6), "max_resolution": (16, 16)},
    "MiniMaxMusic3Transformer1DModel": {"rotary_dim": 16},
    "MiniMaxH3Transformer3DModel": {"rope_freq_dim": 2},
    "OmniGenTransformer2DModel": {"pad_token_id": 0, "max_position_embeddings": 64, "original_max_position_embeddings": 64, "intermediate_size": 64, "rope_scaling": {"short_factor": [1.0] * 8, "long_factor": [1.0] * 8, "type": "su"}},
    "PriorTransformer": {"num_embeddings": TEXT},
    "QwenImageMultiControlNetModel": pair("QwenImageControlNetModel", count=1),
    "UNetControlNetXSModel": {"block_out_channels": (32, 64), "norm_num_groups": 8, "num_attention_heads": 2, "ctrl_block_out_channels": (8, 16), "ctrl_num_attention_heads": 2, "ctrl_max_norm_num_groups": 4, "ctrl_conditioning_embedding_out_channels": (16, 16, 16, 16)},
    "AutoencoderKLMiniMaxH3": {"clip_length": 5, "token_drop": 1},
    "Cosmos3OmniTransformer": {"rope_axes_dim": (4, 2, 2), "latent_channel": 4, "patch_latent_dim": 16},
    "RFD4ProteinaAutoencoder": {"atom37_mask": [[True] * 37] * 16, "allowed_residue_types": [[True] * 16] * 7, "n_residue_types": 16},
    "RFD4ProteinaTransformer": {"nlayers": 2, "tri_mult_c": 16, "feats_seq": ("xt_bb_ca", "xt_local_latents", "token_type"), "feats_cond_seq": ("time_emb_bb_ca", "time_emb_local_latents"), "feats_pair_repr": ("xt_bb_ca_pair_dists",)},
    "WanAnimate2Transformer3DModel": {"dim": WIDTH, "text_len": 8},
    "UVit2DModel": {"micro_cond_encode_dim": 8, "micro_cond_embed_dim": 40, "block_num_heads": 2, "in_channels": WIDTH, "block_out_channels": WIDTH},
    "UNetMotionModel": {"num_attention_heads": 2, "motion_num_attention_heads": 2, "motion_max_seq_length": 32},
}  # fmt: skip
"""Constructor arguments on top of the shrunk ones, or a function that makes the model from the class."""

HUNYUAN_DIT = {
    "encoder_hidden_states": None, "timestep": torch.tensor([0.5]),
    "hidden_states": r(1, 4, 8, 8),
    "text_embedding_mask": torch.ones(1, TEXT), "text_embedding_mask_t5": torch.ones(1, TEXT),
    "encoder_hidden_states_t5": r(1, TEXT, 48), "image_meta_size": torch.tensor([[64.0, 64, 64, 64, 0, 0]]),
    "style": torch.tensor([0]), "image_rotary_emb": (r(16, 16), r(16, 16)),
}  # fmt: skip
HUNYUAN_DIT["encoder_hidden_states"] = r(1, TEXT, WIDTH)
UNION = {"control_type": torch.tensor([[1.0, 0, 0, 0, 0, 0]]), "control_type_idx": [0]}

INPUTS: dict[str, Any] = {
    "AceStepTransformer1DModel": {"hidden_states": r(1, 16, 64), "context_latents": r(1, 16, 128)},
    "AnimaTextConditioner": {"source_hidden_states": r(1, TEXT, WIDTH), "target_input_ids": torch.arange(TEXT)[None]},
    "AnyFlowFARTransformer3DModel": {**latents_5d(16), "timestep": torch.full((1, 2), 0.5), "r_timestep": torch.full((1, 2), 0.25), "chunk_partition": [1, 1]},
    "AnyFlowTransformer3DModel": {**latents_5d(16), "timestep": torch.full((1, 2), 0.5), "r_timestep": torch.full((1, 2), 0.25)},
    "AutoencoderKLLTX2Audio": {"sample": r(1, 2, 16, 64)},
    "AutoencoderKLAllegro": {"sample": r(1, 3, 8, 16, 24)},
    "AutoencoderKLMiniMaxH3": {"sample": r(1, 3, 10, 32, 32)},
    "AutoencoderKLMochi": {"sample": r(1, 3, 7, 16, 16)},
    "AutoencoderKLKVAEAudio": {"sample": r(1, 1, 256)},
    "AutoencoderKLMiniMaxH3Audio": {"sample": r(1, 1, 256)},
    "AutoencoderKLQwenImage21": {"sample": r(1, 4, 1, 32, 32)},
    "AutoencoderSAME": {"sample": r(1, 2, 8192)},
    "BriaFiboTransformer2DModel": {"text_encoder_layers": [r(1, TEXT, 16)] * 2},
    "CogVideoXTransformer3DModel": latents_5d(16),
    "ConsisIDTransformer3DModel": latents_5d(16),
    "ConsistencyDecoderVAE": {"sample": r(1, 3, 32, 32)},
    "ControlNetUnionModel": {"controlnet_cond": [r(1, 3, 64, 64)], **UNION},
    "Cosmos3AVAEAudioTokenizer": {"sample": r(1, 2, 3840)},
    "Cosmos3OmniTransformer": {
        "input_ids": torch.arange(6), "text_indexes": torch.arange(6), "position_ids": torch.arange(66).reshape(3, 22) % 7, "und_len": 6, "sequence_length": 22,
        "vision_tokens": [r(1, 4, 1, 8, 8)], "vision_token_shapes": [(1, 4, 4)], "vision_sequence_indexes": torch.arange(6, 22), "vision_mse_loss_indexes": torch.arange(6, 22),
        "vision_timesteps": torch.full((16,), 0.5), "vision_noisy_frame_indexes": [torch.tensor([0])]},
    "CosmosControlNetModel": {"controls_latents": video(16), "latents": video(16), "condition_mask": torch.zeros(1, 1, 2, 8, 8), "padding_mask": torch.zeros(1, 1, 8, 8)},
    "CosmosTransformer3DModel": {"padding_mask": torch.zeros(1, 1, 8, 8)},
    "DreamLiteTransformer2DModel": {"hidden_states": r(1, WIDTH, 8, 8), "encoder_hidden_states": None},
    "EasyAnimateTransformer3DModel": {"hidden_states": video(4)},
    "ErnieImageTransformer2DModel": {"text_bth": r(1, TEXT, WIDTH), "text_lens": torch.tensor([TEXT])},
    "GlmImageTransformer2DModel": {"prior_token_id": torch.arange(16)[None], "prior_token_drop": torch.zeros(1, 16, dtype=torch.bool)},
    "HunyuanDiT2DControlNetModel": {**HUNYUAN_DIT, "controlnet_cond": r(1, 4, 8, 8)},
    "HunyuanDiT2DModel": HUNYUAN_DIT,
    "HunyuanDiT2DMultiControlNetModel": twice("HunyuanDiT2DControlNetModel", "controlnet_cond"),
    "HunyuanVideo15Transformer3DModel": {"hidden_states": video(9), "encoder_hidden_states_2": r(1, TEXT, WIDTH), "encoder_attention_mask_2": ones(1, TEXT), "image_embeds": r(1, 4, WIDTH)},
    "I2VGenXLUNet": {"fps": torch.tensor([8]), "image_latents": video(4), "image_embeddings": r(1, 1, WIDTH)},
    "Ideogram4Transformer2DModel": {"hidden_states": r(1, TOKENS, 128), "encoder_hidden_states": r(1, TOKENS, WIDTH), "position_ids": torch.arange(TOKENS)[None, :, None].expand(1, TOKENS, 3).contiguous(), "segment_ids": torch.zeros(1, TOKENS, dtype=torch.long), "indicator": torch.tensor([[3] * 6 + [2] * 10])},
    "JoyImageEditPlusTransformer3DModel": {"hidden_states": r(1, 16, 16, 1, 2, 2), "shape_list": [[(1, 4, 4)]]},
    "Kandinsky5Transformer3DModel": {"hidden_states": r(1, 2, 8, 8, 4), "visual_rope_pos": [torch.arange(2), torch.arange(4), torch.arange(4)], "text_rope_pos": torch.arange(TEXT)},
    "Kandinsky6SRTransformer3DModel": {"hidden_states": r(1, 2, 8, 8, 129)},
    "Kandinsky6Transformer3DModel": {"hidden_states": r(1, 2, 8, 8, 33)},
    "Kandinsky6SRLatentUpscalerBank": {"latents": r(1, 8, 2, 8, 8), "scale": 2},
    "Krea2Transformer2DModel": {"hidden_states": r(1, TOKENS, 64), "encoder_hidden_states": r(1, TEXT, 1, WIDTH), "position_ids": torch.zeros(TEXT + TOKENS, 3)},
    "LTX2VideoDiffusionDecoderModel": {"z": r(1, 8, 2, 4, 4)},
    "LTX2VideoTransformer3DModel": {"audio_hidden_states": r(1, 8, 128), "audio_encoder_hidden_states": r(1, TEXT, WIDTH), "num_frames": 1, "height": 4, "width": 4, "audio_num_frames": 8},
    "LTXVideoTransformer3DModel": {"num_frames": 1, "height": 4, "width": 4},
    "LatteTransformer3DModel": {"hidden_states": video(4)},
    "LongCatAudioDiTTransformer": {"hidden_states": r(1, TOKENS, 64), "attention_mask": ones(1, TOKENS), "latent_cond": r(1, TOKENS, 64)},
    "LongCatAudioDiTVae": {"sample": r(1, 1, 4096)},
    "MMAudioVAE": {"sample": r(1, 8192)},
    "MMAudioVocoder": {"mel": r(1, 16, 16)},
    "MiniMaxH3Transformer3DModel": {"hidden_states": r(1, 8, 96), "audio_hidden_states": r(1, 4, 32), "encoder_hidden_states": r(1, 6, WIDTH), "timestep": torch.tensor([0.5]), "timestep_indices": torch.zeros(18, dtype=torch.long), "token_tags": torch.tensor([1] * 6 + [0] * 8 + [2] * 4), "position_ids": torch.arange(54).reshape(18, 3) % 7, "video_indices": torch.arange(6, 14), "audio_indices": torch.arange(14, 18), "text_indices": torch.arange(6)},
    "MiniMaxMusic3ConditionEncoder": {"hidden_states": r(1, 8, 32)},
    "MiniMaxMusic3RVQDepthDecoder": {"inputs_embeds": r(1, 8, WIDTH)},
    "MiniMaxMusic3Transformer1DModel": {"encoder_hidden_states": r(1, 16, WIDTH)},
    "MiniMaxMusic3Vocoder": {"latents": r(1, 128, 8)},
    "MultiAdapter": {"xs": r(2, 1, 3, 32, 32), "x": None},
    "MultiControlNetModel": lambda m: {**twice("ControlNetModel", "controlnet_cond")(m), "return_dict": False},
    "NucleusMoEImageTransformer2DModel": {},
    "OmniGenTransformer2DModel": {"hidden_states": r(1, 4, 8, 8), "input_ids": torch.arange(TEXT)[None], "input_img_latents": [], "input_image_sizes": {}, "attention_mask": ones(1, TEXT + 1 + 16, TEXT + 1 + 16).long(), "position_ids": torch.arange(TEXT + 17)[None]},
    "RFD4ProteinaAutoencoder": {
        "z_latent": r(1, 8, WIDTH), "ca_coors_nm": r(1, 8, 3), "padding_mask": ones(1, 8), "token_type": torch.zeros(1, 8, dtype=torch.long),
        "conditioning": {"is_in_context_conditioning": torch.zeros(1, 8), "supports_local_latent": torch.ones(1, 8)}},
    "RFD4ProteinaTransformer": {
        "bb_ca": r(1, 8, 3), "local_latents": r(1, 8, WIDTH), "bb_ca_time": torch.tensor([0.5]), "local_latents_time": torch.tensor([0.5]), "padding_mask": ones(1, 8),
        "token_type": torch.zeros(1, 8, dtype=torch.long), "conditioning": {"is_in_context_conditioning": torch.zeros(1, 8), "supports_local_latent": torch.ones(1, 8)}},
    "SD3ControlNetModel": {"controlnet_cond": r(1, 16, 8, 8)},
    "SD3MultiControlNetModel": twice("SD3ControlNetModel", "controlnet_cond"),
    "SanaControlNetModel": {"controlnet_cond": r(1, 32, 8, 8)},
    "SanaWMLTX2RefinerTransformer3DModel": {"hidden_states": r(1, TOKENS, 128), "video_rotary_emb": (r(1, TOKENS, WIDTH), r(1, TOKENS, WIDTH))},
    "SanaWMTransformer3DModel": {"mask": torch.ones(1, TEXT), "timestep": torch.full((1, 1, 2), 0.5)},
    "SparseControlNetModel": {"sample": video(4), "encoder_hidden_states": r(2, TEXT, WIDTH), "controlnet_cond": r(1, 4, 2, 8, 8), "conditioning_mask": torch.ones(1, 1, 2, 8, 8)},
    "StableAudioDiTModel": {"global_hidden_states": r(1, 1, WIDTH), "rotary_embedding": (r(TOKENS + 1, 8), r(TOKENS + 1, 8))},
    "StableCascadeUNet": {"timestep_ratio": torch.tensor([0.5]), "clip_text_pooled": r(1, 1, 1280)},
    "T5FilmDecoder": {"encodings_and_masks": [(r(1, 8, WIDTH), torch.ones(1, 8))], "decoder_input_tokens": r(1, 256, 128), "decoder_noise_time": torch.tensor([0.5])},
    "Transformer2DModel": {"hidden_states": r(1, WIDTH, 8, 8), "encoder_hidden_states": None, "timestep": None},
    "TransformerTemporalModel": {"hidden_states": r(2, WIDTH, 4, 4), "num_frames": 2, "encoder_hidden_states": None, "timestep": None},
    "UNet1DModel": {"sample": r(1, 2, 256)},
    "UNetControlNetXSModel": {"sample": r(1, 4, 8, 8), "controlnet_cond": r(1, 3, 64, 64)},
    "UNetMotionModel": {"encoder_hidden_states": r(2, TEXT, WIDTH)},
    "UNetSpatioTemporalConditionModel": {"sample": r(1, 2, 8, 8, 8), "added_time_ids": torch.tensor([[6.0, 127, 0.02]])},
    "UVit2DModel": {"input_ids": torch.arange(64).reshape(1, 8, 8), "pooled_text_emb": r(1, WIDTH), "micro_conds": r(1, 5)},
    "WanAnimateTransformer3DModel": {"hidden_states": r(1, 12, 5, 8, 8), "pose_hidden_states": r(1, 4, 4, 8, 8), "face_pixel_values": r(1, 3, 13, 16, 16)},
    "WanAnimate2Transformer3DModel": lambda m: {
        "hidden_states": [r(16, 2, 8, 8)], "condition_latents": [r(20, 2, 8, 8)], "encoder_hidden_states": [r(TEXT, m.config.text_dim)], "seq_len": 32,
        "kv_cache": kv_cache(m), "kv_cache_mode": "extract", "encoder_hidden_states_image": r(1, 4, 1280), "offset_grid_sizes": torch.tensor([[2, 4, 4]])},
    "WanVACETransformer3DModel": {"control_hidden_states": r(1, 16, 2, 8, 8), "control_hidden_states_scale": torch.ones(1)},
    "ZImageControlNetModel": {"x": [r(16, 1, 8, 8)], "t": torch.tensor([0.5]), "cap_feats": [r(TEXT, 2560)], "control_context": [r(8, 1, 8, 8)]},
    "ZImageTransformer2DModel": {"x": [r(16, 1, 8, 8)], "t": torch.tensor([0.5]), "cap_feats": [r(TEXT, 2560)]},
    "AutoencoderOobleck": {"sample": r(1, 2, 256)},
    "AutoencoderRAE": {"sample": r(1, 3, 28, 28)},
    "BriaFibo2Transformer2DModel": {"hidden_states": r(1, 32, 8, 8), "encoder_hidden_states": r(1, 2, TEXT, 64)},
    "FluxMultiControlNetModel": lambda m: {**twice("FluxControlNetModel", "controlnet_cond")(m), "controlnet_mode": [torch.tensor([0]), torch.tensor([1])], "return_dict": False},
    "HiDreamImageTransformer2DModel": {"hidden_states": r(1, 4, 8, 8), "encoder_hidden_states_t5": r(1, TEXT, WIDTH), "encoder_hidden_states_llama3": r(2, 1, TEXT, WIDTH), "pooled_embeds": r(1, WIDTH), "img_ids": None},
    "HunyuanVideoFramepackTransformer3DModel": {"image_embeds": r(1, 4, WIDTH), "indices_latents": torch.arange(2), "latents_clean": video(16, 1), "indices_latents_clean": torch.arange(1), "latents_history_2x": video(16), "indices_latents_history_2x": torch.arange(2), "latents_history_4x": video(16, 4), "indices_latents_history_4x": torch.arange(4)},
    "Kandinsky3UNet": {"encoder_attention_mask": ones(1, TEXT)},
    "PriorTransformer": {"hidden_states": r(1, WIDTH), "proj_embedding": r(1, WIDTH), "encoder_hidden_states": r(1, TEXT, WIDTH), "attention_mask": ones(1, TEXT)},
    "QwenImage21Transformer2DModel": {"encoder_hidden_states": r(1, 6, WIDTH), "encoder_hidden_states_mask": ones(1, 6), "img_mask": torch.tensor([[False] * 6 + [True] * 4]), "img_shapes": [[(1, 4, 4)]]},
    "QwenImageMultiControlNetModel": lambda m: {**twice("QwenImageControlNetModel")(m), "controlnet_cond": [r(1, TOKENS, 64)], "conditioning_scale": [1.0]},
    "StableAudio3DiTModel": {"hidden_states": r(1, 256, TOKENS), "global_hidden_states": r(1, WIDTH), "local_add_cond": r(1, 32, TOKENS)},
    "MultiControlNetUnionModel": lambda m: {**twice("ControlNetUnionModel", "controlnet_cond", "control_type", "control_type_idx")(m), "controlnet_cond": [r(1, 1, 3, 64, 64)] * 2, "return_dict": False},
    "LuminaNextDiT2DModel": {"hidden_states": r(1, 4, 8, 8), "image_rotary_emb": torch.polar(torch.ones(4, 4, 8), r(4, 4, 8)), "cross_attention_kwargs": {}},
}  # fmt: skip
"""Arguments of forward on top of those made from its signature (None: leave it out), or a function of the model."""
