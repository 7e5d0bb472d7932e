"""diffusers: one entry a model class, by the rules below or by `overrides_diffusers`.

Constructor arguments are shrunk by their names, so that every width is `WIDTH` and every attention has `HEADS` heads;
inputs are made from the names in forward's signature."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .overrides_diffusers import INPUTS, OPTIONS
from .zoo import Made

HEADS = 2
HEAD_DIM = 16
WIDTH = HEADS * HEAD_DIM
TEXT = 6
FRAMES, HEIGHT = 2, 8
TOKENS = 16
BASES = {"LegacyModelMixin", "LegacyConfigMixin"}


@functools.cache
def all_classes() -> dict[str, Any]:
    import diffusers.models
    from diffusers.models.modeling_utils import ModelMixin

    found = {}
    for info in pkgutil.walk_packages(diffusers.models.__path__, "diffusers.models."):
        if "flax" in info.name:
            continue
        for name, value in vars(importlib.import_module(info.name)).items():
            if inspect.isclass(value) and issubclass(value, ModelMixin) and value.__module__ == info.name:
                found[name] = value
    # Those without a forward of their own are parts that another class takes in.
    return {n: c for n, c in found.items() if n not in {"ModelMixin", *BASES}}


def names() -> list[str]:
    return sorted(all_classes())


def make(name: str) -> Made:
    torch.manual_seed(0)
    module = build(name)
    torch.manual_seed(0)
    return module.float(), inputs_of(name, module)


def build(name: str, **options: Any) -> nn.Module:
    kind = all_classes()[name]
    given = OPTIONS.get(name, {})
    made: nn.Module = given(kind) if callable(given) else kind(**{**shrunk(kind), **given, **options})
    return made


def inputs_of(name: str, module: nn.Module) -> dict[str, Any]:
    more = INPUTS.get(name, {})
    inputs = arguments(module) | (more(module) if callable(more) else more)
    return {k: v for k, v in inputs.items() if v is not None}


def shrunk(kind: Any) -> dict[str, Any]:
    """What to construct the class with: its defaults, shrunk."""
    parameters = inspect.signature(kind.__init__).parameters
    levels = 0
    if "down_block_types" in parameters and "block_out_channels" in parameters:
        levels = min(2, len(parameters["down_block_types"].default))
    given = {}
    for key, parameter in parameters.items():
        default = parameter.default
        if default is inspect.Parameter.empty or default is None:
            continue
        value = smaller(key, default)
        if (
            levels
            and isinstance(default, (list, tuple))
            and len(default) > levels
            and BY_LEVEL.fullmatch(key)
        ):
            value = value[:levels] if key.startswith(("up_", "temporal_up")) else value[-levels:]
        if value != default:
            given[key] = value
    return given


BY_LEVEL = re.compile(
    r"(down|up)_block_types|block_out_channels|temporal_(down|up)sample_blocks|num_attention_heads|attention_head_dim"
)


def all_of(value: int) -> Callable[[Any], Any]:
    return lambda v: type(v)(min(x, value) for x in v) if isinstance(v, (list, tuple)) else min(v, value)


def axes(v: Any) -> Any:
    """The parts of a head's dimension that turn with each coordinate: even, and HEAD_DIM in all."""
    parts = {1: (16,), 2: (8, 8), 3: (4, 6, 6), 4: (4, 4, 4, 4)}
    return type(v)(parts[len(v)])


RULES: list[tuple[str, Callable[[Any], Any]]] = [
    (r"axes_dims?(_rope|_a)?|rope_axes_dim|rope_dim_list|rope_dim", axes),
    (r"mrope_section", lambda v: type(v)((4, 2, 2))),
    (r"(.*_)?(num_)?(key_value_)?(attention_)?heads|n_(kv_)?heads|num_kv_heads|nheads", all_of(HEADS)),
    (r"(.*_)?(head_dim|dim_heads?)|d_kv", all_of(HEAD_DIM)),
    (r"(.*_)?(num_)?(layers|blocks|depths?)|n_layers|nlayers|n_refiner_layers|layers_per_.*|.*_layers_per_block|num_.*_(layers|blocks)", all_of(1)),
    (r"(.*_)?(hidden|ffn|model|ff|text|freq|joint_attention|cross_attention|pooled_projection|caption_projection|dit|time|token|cond|repr|embed|embedding|adaln|latents|lora|style|encoder|decoder|inner|condition|projection|dec|enc|base|states|vocoder_input|features|codebook|emb|image|gated|hid|proj|size)_dim(_t5|s)?", all_of(WIDTH)),
    (r"(.*_)?(hidden|intermediate)_size|embed_dim|d_model|dim|adaln_dim|hidden_dim|d_ff|time_dim_a|in_text_dim2?|(.*_)?(caption|hidden|model|stage|base|decoder|encoder)_channels|channels|ch|"
     r"(.*_)?block_out_channels|.*_out_channels_list|conditioning_embedding_out_channels|cond_embed_dim|micro_cond_embed_dim|crossattn_proj_in_channels|encoder_hidden_states_channels|upsample_initial_channel|num_trans_channel|num_proj_channel", all_of(WIDTH)),
    (r"(.*_)?vocab_size|num_embeds_ada_norm|.*codebook_size", all_of(64)),
    (r"sample_size|resolution|(.*_)?sample_(height|width)|pos_embed_max_size", all_of(16)),
]  # fmt: skip


def smaller(key: str, value: Any) -> Any:
    flat = list(value) if isinstance(value, (list, tuple)) else [value]
    if not flat or not all(isinstance(x, int) and not isinstance(x, bool) for x in flat):
        return value
    for pattern, change in RULES:
        if re.fullmatch(pattern, key):
            return change(value)
    return value


def arguments(module: nn.Module) -> dict[str, Any]:
    """A value for each name in the signature that has no default or that the table below knows to be needed."""
    config = getattr(module, "config", {})
    signature = inspect.signature(module.forward).parameters
    get = lambda *keys: next((config[k] for k in keys if isinstance(config.get(k), int)), WIDTH)
    packed = "img_ids" in signature or "img_shapes" in signature or "video_coords" in signature
    channels = get("in_channels", "in_visual_dim", "in_dim", "io_channels", "input_channels")
    name = type(module).__name__

    def latents() -> torch.Tensor:
        if packed:
            return torch.randn(1, TOKENS, channels)
        if "3D" in name or "Video" in name or "Motion" in name or "I2V" in name:
            return torch.randn(1, channels, FRAMES, HEIGHT, HEIGHT)
        if "1D" in name or "Audio" in name or "audio" in type(module).__module__:
            return torch.randn(1, channels, TOKENS)
        return torch.randn(1, channels, HEIGHT, HEIGHT)

    def sample() -> torch.Tensor:
        if "Autoencoder" in name or "VAE" in name or "VQ" in name:
            video = any(
                w in type(module).__module__
                for w in (
                    "video",
                    "allegro",
                    "cosmos",
                    "magvit",
                    "mochi",
                    "wan",
                    "ltx",
                    "h3",
                    "qwen",
                    "vidtok",
                    "refiner",
                    "_sr",
                )
            )
            return torch.randn(1, channels, 5, 32, 32) if video else torch.randn(1, channels, 32, 32)
        return latents()

    text = get(
        "joint_attention_dim",
        "text_embed_dim",
        "text_dim",
        "cross_attention_dim",
        "caption_channels",
        "cap_feat_dim",
        "context_in_dim",
        "text_in_dim",
        "in_text_dim",
        "encoder_hidden_states_channels",
        "encoder_hidden_size",
        "text_hidden_dim",
        "dit_text_dim",
        "condition_dim",
        "cond_token_dim",
        "cross_attention_input_dim",
        "encoder_hid_dim",
    )
    if "caption_channels" in config and isinstance(config["caption_channels"], int):
        text = config["caption_channels"]
    known: dict[str, Callable[[], Any]] = {
        "hidden_states": latents,
        "sample": sample,
        "x": lambda: torch.randn(1, channels, 64, 64),
        # In [0, 1]: some models multiply by 1000 before they take the sine, and an ulp of an angle grows with it.
        "timestep": lambda: torch.tensor([0.5]),
        "timesteps": lambda: torch.tensor([0.5]),
        "r_timestep": lambda: torch.tensor([0.25]),
        "timestep_r": lambda: (
            torch.tensor([0.25]) if signature["timestep_r"].default is inspect.Parameter.empty else None
        ),
        "encoder_hidden_states": lambda: torch.randn(1, TEXT, text),
        "encoder_attention_mask": lambda: (
            torch.ones(1, TEXT, dtype=torch.bool)
            if signature["encoder_attention_mask"].default is inspect.Parameter.empty
            else None
        ),
        "encoder_hidden_states_mask": lambda: torch.ones(1, TEXT, dtype=torch.bool),
        "encoder_mask": lambda: torch.ones(1, TEXT, dtype=torch.bool),
        "pooled_projections": lambda: (
            torch.randn(1, get("pooled_projection_dim", "in_text_dim2"))
            if config.get("pooled_projection_dim") or config.get("in_text_dim2")
            else None
        ),
        "img_ids": lambda: coordinates(config),
        "txt_ids": lambda: torch.zeros(TEXT, len(config.get("axes_dims_rope", (0,) * 3))),
        "guidance": lambda: torch.tensor([3.0]) if config.get("guidance_embeds") else None,
        "img_shapes": lambda: [(1, 4, 4)],
        "controlnet_cond": lambda: (
            torch.randn(1, TOKENS, channels)
            if packed
            else torch.randn(1, get("conditioning_channels"), 64, 64)
        ),
        "class_labels": lambda: (
            torch.tensor([1]) if "norm_type" in config and "ada_norm" in str(config["norm_type"]) else None
        ),
        "original_size": lambda: torch.tensor([[64.0, 64.0]]),
        "target_size": lambda: torch.tensor([[64.0, 64.0]]),
        "crop_coords": lambda: torch.tensor([[0.0, 0.0]]),
        "num_frames": lambda: None,
    }
    return {k: v for k, make in known.items() if k in signature and (v := make()) is not None}


def coordinates(config: Any) -> torch.Tensor:
    side = int(TOKENS**0.5)
    ids = torch.zeros(side, side, len(config.get("axes_dims_rope", (0,) * 3)))
    ids[..., -2] = torch.arange(side)[:, None]
    ids[..., -1] = torch.arange(side)[None]
    return ids.reshape(TOKENS, -1)
