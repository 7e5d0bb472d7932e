"""transformers: one entry a model_type that an Auto class maps to a model, by the rules below or by `OVERRIDES`.

The default configuration is shrunk by the names of its fields: each kind of field has one value in all models, so
that sizes which must agree between parts agree. Inputs are made from the signature of forward."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .overrides import CLASSES, CONFIGS, INPUTS, PARTS
from .zoo import Made

VOCABULARY = 128
HIDDEN = 64
HEADS = 4
HEAD_DIM = HIDDEN // HEADS
LENGTH = 12
MELS = 32
FRAMES = 64

# The class of a type, best first: a head where it is simple to feed, else the base model, else what there is.
PREFERRED = ("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM", "MASKED_LM",
             "CAUSAL_LM", "", "IMAGE_CLASSIFICATION", "BACKBONE")  # fmt: skip


def mappings() -> dict[str, dict[str, str]]:
    """{task: {model type: class name}}; the base models' task is ""."""
    from transformers.models.auto import modeling_auto

    pattern = re.compile(r"MODEL_(?:FOR_)?(?:(.*)_)?MAPPING_NAMES")
    found = {n: m for n in dir(modeling_auto) if (m := pattern.fullmatch(n))}
    return {m.group(1) or "": dict(getattr(modeling_auto, n)) for n, m in found.items()}


def names() -> list[str]:
    return sorted({name for task in mappings().values() for name in task})


def candidates(name: str) -> Iterator[dict[str, Any]]:
    """With images or sound beside the text before text alone, the language model before the base model."""
    from transformers import CONFIG_MAPPING

    fitting = [c for c in classes(name) if takes(class_of(name, c), CONFIG_MAPPING[name])]
    for kind in ("all", "swapped", "main"):
        for model in fitting or classes(name):
            yield {"model": model, "inputs": kind}


def takes(model: Any, config: Any) -> bool:
    """Whether a class is made from this kind of configuration; no for one whose libraries are not installed."""
    try:
        return bool(model.config_class is config)
    except ImportError:
        return False


def classes(name: str) -> list[str]:
    if name in CLASSES:
        return [CLASSES[name]]
    tasks = mappings()
    order = [*PREFERRED, *(t for t in tasks if t not in PREFERRED)]
    found = [tasks[t][name] for t in order if t in tasks and name in tasks[t]]
    flat = [c for x in found for c in ((x,) if isinstance(x, str) else x)]
    return list(dict.fromkeys(flat))[:4]


def make(name: str, model: str, inputs: str) -> Made:
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    config = configuration(name)
    module = class_of(name, model)(config)
    if name in PARTS:
        module = module.get_submodule(PARTS[name])
        config = getattr(module, "config", config)
    torch.manual_seed(0)
    made = INPUTS[name](module, config) if name in INPUTS else arguments(module, config, inputs)
    return module.float(), made


def class_of(name: str, model: str) -> Any:
    import transformers

    if hasattr(transformers, model):
        return getattr(transformers, model)
    configs = transformers.CONFIG_MAPPING[name].__module__
    module = __import__(configs.replace("configuration_", "modeling_"), fromlist=[model])
    return getattr(module, model)


# Configurations.


def configuration(name: str) -> Any:
    """The default configuration, shrunk; on top of it what `CONFIGS` says."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[name]
    changes = shrunk(kind(**CONFIGS.get(name, {}).get("first", {})))
    merge(changes, {k: v for k, v in CONFIGS.get(name, {}).items() if k != "first"})
    config = kind(**changes)
    for part in parts(config):
        if getattr(part, "use_cache", None):
            part.use_cache = False
        part._attn_implementation = config._attn_implementation
    return config


def merge(into: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def parts(config: Any) -> Iterator[Any]:
    """The configuration and those nested in it."""
    from transformers import PreTrainedConfig

    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from parts(value)


def shrunk(config: Any) -> dict[str, Any]:
    """What to construct the configuration's class with."""
    from transformers import PreTrainedConfig

    fields = {f.name for f in dataclasses.fields(config)} if dataclasses.is_dataclass(config) else set()
    fields |= set(inspect.signature(type(config).__init__).parameters)
    values = {k: value_of(config, k) for k in sorted(fields | set(getattr(config, "sub_configs", {})))}
    values = {k: v for k, v in values.items() if k not in FIXED and not k.startswith("_")}
    given: dict[str, Any] = {}
    layers = next(
        (values[k] for k in ("num_hidden_layers", "num_layers", "n_layer") if isinstance(values.get(k), int)),
        0,
    )
    kept = kept_layers(values, layers)
    for key, value in values.items():
        if isinstance(value, PreTrainedConfig):
            given[key] = shrunk(value)
            if value.model_type:
                given[key]["model_type"] = value.model_type
        elif kept and isinstance(value, (list, tuple)) and len(value) == layers:
            given[key] = [smaller(key, value[i]) for i in kept]
        elif kept and key in ("num_hidden_layers", "num_layers", "n_layer"):
            given[key] = len(kept)
        elif (small := smaller(key, value)) != value:
            given[key] = small
    heads = next((values[k] for k in values if HEADS_FIELD.fullmatch(k) and isinstance(values[k], int)), 0)
    for key in ("num_key_value_heads", "num_kv_heads"):
        if isinstance(values.get(key), int):
            given[key] = 1 if values[key] == 1 else HEADS if values[key] >= heads else 2
    expand = values.get("mamba_expand") or values.get("expand")
    for key in ("mamba_d_head", "mamba_head_dim", "mamba_headdim", "head_dim"):
        if isinstance(expand, int) and isinstance(values.get(key), int):
            given[key] = expand * HIDDEN // HEADS
    for key in ("rope_parameters", "rope_scaling"):
        if isinstance(values.get(key), dict):
            given[key] = rope(values[key])
    if isinstance(patch := values.get("patch_size"), int) and isinstance(values.get("image_size"), int):
        given["image_size"] = 32 if patch > 4 else 64
    return given


def value_of(config: Any, key: str) -> Any:
    """None for a field that the configuration lacks, or has once a layer only."""
    try:
        return getattr(config, key, None)
    except Exception:
        return None


def rope(parameters: dict[str, Any]) -> dict[str, Any]:
    """For heads of HEAD_DIM, of which a part turns: with time, height and width where a model asks for it."""
    small = dict(parameters)
    if "original_max_position_embeddings" in small:
        small["original_max_position_embeddings"] = 32
    half = int(HEAD_DIM * small.get("partial_rotary_factor", 1.0)) // 2
    if not any(isinstance(v, dict) for v in small.values()):
        small["mrope_section"] = [half - 2 * (half // 3), half // 3, half // 3]
    return small


def kept_layers(values: dict[str, Any], layers: int) -> list[int]:
    """One layer of each kind; none where the layers are not listed."""
    if layers < 3:
        return []
    kinds = [v for k, v in values.items() if isinstance(v, (list, tuple)) and len(v) == layers and "layer" in k
             and all(isinstance(x, (str, int)) for x in v)]  # fmt: skip
    if not kinds:
        return []
    rows = list(zip(*kinds, strict=True))
    return [rows.index(row) for row in dict.fromkeys(rows)][:4]


FIXED = {
    "num_conv_layers",
    "num_feat_extract_layers",
    "id2label",
    "label2id",
    "transformers_version",
    "chunk_size_feed_forward",
    "initializer_range",
}
HEADS_FIELD = re.compile(r"(.*_)?(num_)?(attention_)?heads|n_heads?|num_attention_heads|nhead")
DEPTH_FIELD = re.compile(
    r"(.*_)?(num_)?(hidden_|transformer_|encoder_|decoder_)?(layers|blocks)|n_layers?|(.*_)?depth|[a-z]_layers"
)

RULES: list[tuple[str, Callable[[Any], Any]]] = []


def rule(pattern: str) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    def add(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
        RULES.append((pattern, f))
        return f

    return add


def at_most(limit: int) -> Callable[[Any], Any]:
    return lambda v: (
        [min(x, limit) if isinstance(x, int) else x for x in v]
        if isinstance(v, (list, tuple))
        else min(v, limit)
    )


def doubling(first: int) -> Callable[[Any], Any]:
    """Of a list, sizes that double from stage to stage; of a number, the largest."""
    return lambda v: [first * 2**i for i in range(len(v))] if isinstance(v, (list, tuple)) else min(v, HIDDEN)


def token(v: Any) -> Any:
    """A special token's id, below the vocabulary and apart from those of the text and (nearly) from each other."""
    return [token(x) for x in v] if isinstance(v, (list, tuple)) else v if v < 4 else 100 + v % 28


for pattern, change in {
    r".*token_ids?|.*token_index|(pad|bos|eos|cls|sep|unk|mask)_(id|index|idx)|[a-z]+_(start|end|newline|pad|bos|eos|patch)_id": token,
    r"(.*_)?vocab(ulary)?_sizes?(_per_layer_input)?|codebook_size|.*_codebook_size|num_embeddings": at_most(
        VOCABULARY
    ),
    r"(num|n)_(routed_|local_)?experts|moe_num_experts|num_.*experts": at_most(4),
    r"(num_)?(experts_per_tok|experts_per_token)|top_k|moe_top_?k|num_experts_per_tok(en)?": at_most(2),
    r"n_group|topk_group|num_expert_group.*": at_most(1),
    r"(depths|blocks_per_stage|layers_per_block|num_blocks|stage_num_blocks|stage_numb_of_layers|layer_depths)": at_most(
        1
    ),
    r"(num_(attention_)?heads(_per_stage)?|num_attention_heads)_?": lambda v: (
        [2 ** min(i, 3) for i in range(len(v))] if isinstance(v, (list, tuple)) else min(v, HEADS)
    ),
    r"(linear_)?(num_)?(linear_)?(key|value)_heads|linear_num_(key|value)_heads|mamba_n_?heads|mamba_num_heads|num_query_groups": at_most(
        HEADS
    ),
    HEADS_FIELD.pattern: at_most(HEADS),
    DEPTH_FIELD.pattern: at_most(1),
    r"(.*_)?(head_dim|d_kv|kv_channels|head_size|dim_head|attention_head_dim|headdim|d_head)|qk_.*_head_dim|v_head_dim": at_most(
        HEAD_DIM
    ),
    r".*lora_rank|.*_rank": at_most(32),
    r"(hidden_sizes|embed_dims|neck_hidden_sizes|backbone_channel_list|embed_dim_per_stage|encoder_hidden_sizes|decoder_hidden_sizes)": doubling(
        16
    ),
    r"(embed_dim|hidden_size|d_model|n_embd|dim|emb_dim|hidden_dim|d_embed|model_dim|width|.*_hidden_size|.*_hidden_dim|.*_embed_dim|"
    r"embedding_size|.*_embedding_size|.*_proj_size|projection_dim|.*_projection_dim|.*_embedding_dim|output_dim|.*_output_dim|.*_width|"
    r"codebook_dim|decoder_dim|encoder_dim|.*_model_dim|hidden_channels|lru_width|.*_d_model|.*_latents_dim|d_latents|vocab_embed_dim|embedding_dim)": at_most(
        HIDDEN
    ),
    r"(.*_)?(intermediate_size|ffn_dim|mlp_dim|d_ff|d_inner|n_inner|feed_?forward(_size|_dim)?|dim_feedforward|dim_ff|dff|ffn_size|inner_dim|hidden_features|ffn_hidden_size|expert_dim|ff_dim)": at_most(
        128
    ),
    r"(.*_)?max_(.*_)?position(s|_embeddings)|n_positions|n_ctx|context_length|block_size|max_seq_len.*|seq_length|max_sequence_length|max_length": at_most(
        64
    ),
    r"max_source_positions": at_most(FRAMES // 2),
    r"num_mel_bins|n_mels|mel_dim|num_mel_channels|.*_mel_bins": at_most(MELS),
    r"sliding_window|attention_window|window_left|attention_chunk_size|local_attention|attention_window_size|.*_window_len": at_most(
        8
    ),
    r"chunk_size|mamba_chunk_size|mamba_expand_chunk": at_most(16),
    r"num_queries|num_object_queries|num_detection_tokens|num_denoising|num_query_tokens|num_latents|num_proposals|.*_num_proposals|decoder_num_queries": at_most(
        10
    ),
    r"conv_dim|tdnn_dim": at_most(32),
    r"num_codebooks|num_quantizers|n_codebooks|n_q|num_code_groups": at_most(2),
    r"num_frames|frames_per_clip": at_most(4),
    r"num_labels|num_classes": at_most(10),
    r"(mamba_)?n_?groups": at_most(2),
    r"output_channels": at_most(HIDDEN),
    r"num_filters": at_most(8),
    r"num_pos_feats": at_most(HIDDEN // 2),
    r"vector_quantization_hidden_dimension": at_most(HIDDEN),
    r"feature_projection_input_dim": at_most(160),
    r"upsample_initial_channel": at_most(128),
    r"rotary_dim": at_most(HEAD_DIM),
    r"upsample_groups": at_most(HIDDEN),
    r"mask_time_length|mask_feature_length": at_most(2),
    r"mask_time_prob|mask_feature_prob": lambda v: 0.0,
    r"context_size": at_most(16),
    r"sinkhorn_iterations": at_most(3),
    r"num_conv_pos_embeddings": at_most(16),
    r"num_conv_pos_embedding_groups": at_most(4),
    r"mamba_d_state|state_size|ssm_state_size|d_state": at_most(16),
    r"patch_size": lambda v: v if isinstance(v, (list, tuple)) else min(v, 8),
    r"image_size|img_size|input_size|crop_size|pretrain_image_size": lambda v: (
        [64] * len(v) if isinstance(v, (list, tuple)) else min(v, 64)
    ),
    r"(.*_)?(vision|text|image|audio|fusion|auxiliary|pixel|fpn|mask|feature|projection)_(channels|size|feature_size)|.*_features_dim": at_most(
        HIDDEN
    ),
    r".*dropout.*|.*drop_path.*|.*layerdrop.*|.*drop_rate.*": lambda v: 0.0 if isinstance(v, float) else v,
}.items():
    rule(pattern)(change)


def smaller(key: str, value: Any) -> Any:
    """A field's value by the first rule whose pattern is its name; fields that no rule knows stay."""
    if isinstance(value, bool) or not isinstance(value, (int, float, list, tuple)):
        return value
    if isinstance(value, (list, tuple)) and not all(
        isinstance(v, int) and not isinstance(v, bool) for v in value
    ):
        return value
    for pattern, change in RULES:
        if re.fullmatch(pattern, key):
            return (
                value if isinstance(value, float) and not re.search("drop|prob", pattern) else change(value)
            )
    return value


# Inputs.


def find(config: Any, *keys: str, default: Any = None) -> Any:
    """The first of the fields that the configuration or one nested in it has."""
    for key in keys:
        for part in parts(config):
            if (value := value_of(part, key)) is not None:
                return value
    return default


def side(value: Any) -> int:
    return (
        side(value[0])
        if isinstance(value, (list, tuple))
        else int(value["height"])
        if isinstance(value, dict)
        else int(value)
    )


def text(length: int = LENGTH, high: int = 99) -> torch.Tensor:
    return torch.randint(5, high, (2, length))


def image(config: Any) -> torch.Tensor:
    size = side(find(config, "image_size", "img_size", "input_size", default=64))
    channels = find(config, "num_channels", "in_channels", "in_chans", "num_image_channels", default=3)
    return torch.randn(2, channels if channels in (1, 3, 4) else 3, size, size)


def video(config: Any) -> torch.Tensor:
    frames = find(config, "num_frames", "frames_per_clip", default=4)
    return torch.stack([image(config) for _ in range(frames)], 1)


def arguments(module: torch.nn.Module, config: Any, kind: str) -> dict[str, Any]:
    """`all`: whatever of text, images and sound forward takes; `swapped`: with mels before frames in sound.

    `main`: the model's main input alone."""
    signature = inspect.signature(module.forward).parameters
    main = module.main_input_name
    made: dict[str, Any] = {}
    wants = lambda key: (
        key in signature
        and (
            kind != "main"
            or key == main
            or (
                signature[key].default is inspect.Parameter.empty
                and signature[key].kind is not inspect.Parameter.VAR_KEYWORD
            )
        )
    )
    high = min(99, find(config, "vocab_size", default=99))
    if "input_ids" in signature and (wants("input_ids") or main not in signature):
        made["input_ids"] = text(high=high)
    if grid := next((k for k in ("image_grid_thw", "grid_thw", "image_grid_hws") if k in signature), None):
        return with_patches(module, config, grid, kind)
    if wants("pixel_values"):
        made["pixel_values"] = video(config) if is_video(module, config) else image(config)
    if "image_sizes" in signature and "pixel_values" in made:
        made["image_sizes"] = torch.tensor([made["pixel_values"].shape[-2:]] * 2)
    if wants("pixel_values_videos"):
        made["pixel_values_videos"] = video(config)
    if wants("input_features"):
        made["input_features"] = sound(config).transpose(1, 2) if kind == "swapped" else sound(config)
    if "input_features_mask" in signature and "input_features" in made:
        axis = 2 if kind == "swapped" else 1
        made["input_features_mask"] = torch.ones(2, made["input_features"].shape[axis], dtype=torch.long)
    if wants("input_values") and not made.keys() & {"input_features"}:
        made["input_values"] = waves(config)
    if "bbox" in signature:
        corners = torch.randint(0, 30, (2, LENGTH, 2))
        made["bbox"] = torch.cat([corners, corners + torch.randint(1, 30, (2, LENGTH, 2))], -1)
    if "decoder_input_ids" in signature and (config.is_encoder_decoder or wants("decoder_input_ids")):
        made["decoder_input_ids"] = text(8, high)
    if "pixel_values" in made and "input_ids" in made:
        place_images(module, config, made)
    if "labels" in signature and type(module).__name__.endswith(("ForCausalLM", "ForMaskedLM")):
        made["labels"] = made["input_ids"] if "input_ids" in made else text(high=high)
    return made


def with_patches(module: Any, config: Any, grid: str, kind: str) -> dict[str, Any]:
    """Inputs of models that take an image as a list of patches and how many of them there are each way."""
    signature = inspect.signature(module.forward).parameters
    sizes = torch.tensor([[1, 4, 4]] * 2)
    depth = find(config, "temporal_patch_size", default=1)
    channels = find(config, "in_channels", "num_channels", "in_chans", default=3)
    patches = torch.randn(32, channels * depth * side(find(config, "patch_size", default=8)) ** 2)
    name = next((k for k in ("pixel_values", "hidden_states") if k in signature), "pixel_values")
    if "input_ids" not in signature:
        return {name: patches, grid: sizes}
    ids = text(high=min(99, find(config, "vocab_size", default=99)))
    place = find(config, "image_token_id", "image_token_index")
    if kind != "all" or place is None:
        return {"input_ids": ids}
    merged = 32 // find(config, "spatial_merge_size", default=1) ** 2
    start = find(config, "vision_start_token_id", default=4)
    images = torch.tensor([start] + [place] * (merged // 2)).expand(2, -1)
    made = {"input_ids": torch.cat([ids[:, :4], images, ids[:, 4:]], 1), "pixel_values": patches, grid: sizes}
    if "mm_token_type_ids" in signature:
        made["mm_token_type_ids"] = (made["input_ids"] == place).long()
    return made


def is_video(module: Any, config: Any) -> bool:
    return (
        bool(getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", None))
        or "Video" in type(module).__name__
    )


def sound(config: Any) -> torch.Tensor:
    mels = find(
        config,
        "num_mel_bins",
        "input_feat_per_channel",
        "feature_size",
        "n_mels",
        "input_dim",
        "feature_projection_input_dim",
        "input_channels",
        default=80,
    )
    if positions := find(config, "max_source_positions"):
        return torch.randn(2, mels, 2 * positions)
    return torch.randn(2, FRAMES, mels)


def waves(config: Any) -> torch.Tensor:
    if mels := getattr(config, "num_mel_bins", None):
        return torch.randn(2, find(config, "max_length", default=FRAMES), mels)
    return (
        torch.randn(2, 1, 1920)
        if find(config, "audio_channels", "hop_length", "upsampling_ratios")
        else torch.randn(2, 8000)
    )


def place_images(module: Any, config: Any, made: dict[str, Any]) -> None:
    """As many placeholder tokens as the model makes of an image, between the text's tokens."""
    place = find(config, "image_token_id", "image_token_index", "boi_token_id")
    if place is None or not hasattr(module, "get_image_features"):
        return
    with torch.no_grad():
        given = {k: v for k, v in made.items() if k in ("pixel_values", "image_sizes")}
        features = module.eval().get_image_features(**given)
    features = getattr(features, "pooler_output", features)
    total = (
        sum(f.numel() // f.shape[-1] for f in features)
        if isinstance(features, (list, tuple))
        else features.numel() // features.shape[-1]
    )
    ids = made["input_ids"]
    made["input_ids"] = torch.cat([ids[:, :4], torch.full((2, total // 2), place), ids[:, 4:]], 1)
