"""Layers of transformers' models and timm's for images, with our passes and without: `make judge-variants` prints it.

    python scripts/judge_variants.py llama3_8b_2048 bert_base --chip v5e v6e
    python scripts/judge_variants.py gpt2_xl --disable tile_batch --alone   # which pass is it?

Millions of cycles of one chip as scripts/judge.py counts them, bfloat16. "Without" is the same traced program at
`opt_level` 0, which runs no pass of ours; lowering, the form of the results and the XLA options are the same. Nothing is
executed and no weight is allocated. Ends with 1 where a variant is worse with the passes by more than 2%."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts import judging

HEAD = ("variant", "chip", "with", "without", "gain", "libtpu, with", "without")

FREE = ("Bitcast", "X64Split", "AllocateBuffer", "copy", "tpu_custom_call")
"""Without an estimate, and of no time: a loop's counter is copied. The last has a floor."""

WORSE = 0.02
"""By how much a variant may be worse with the passes."""


@dataclasses.dataclass(frozen=True)
class Images:
    """A model of timm, and how many images."""

    model: str
    batch: int
    train = False


@dataclasses.dataclass(frozen=True)
class Variant:
    """One layer, between its model's embedding and last norm."""

    config: str
    """A class of transformers."""
    tokens: int
    sizes: dict[str, Any]
    batch: int = 1
    train: bool = False
    attention: str = "sdpa"
    padded: bool = False
    """With a mask of the tokens that count."""
    cache: int = 0
    """A step of decoding, with keys and values of so many positions in transformers' `StaticCache`."""


def llama(width: int, heads: int, key_heads: int, hidden: int, **more: Any) -> dict[str, Any]:
    """The sizes of a decoder's layer by the names that Llama, Qwen and Gemma have in common."""
    return {
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "intermediate_size": hidden,
        "num_hidden_layers": 1,
        **more,
    }


def gpt2(width: int, heads: int, **more: Any) -> dict[str, Any]:
    dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    return {"n_embd": width, "n_head": heads, "n_layer": 1, **dropout, **more}


def bert(width: int, heads: int, **more: Any) -> dict[str, Any]:
    dropout = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    return llama(width, heads, heads, 4 * width, **dropout) | more


LLAMA3_8B = llama(4096, 32, 8, 14336)
LLAMA3_1B = llama(2048, 32, 8, 8192, head_dim=64)
QWEN2_7B = llama(3584, 28, 4, 18944)
QWEN2_SMALL = llama(896, 14, 2, 4864)
QWEN3_8B = llama(4096, 32, 8, 12288, head_dim=128)
QWEN3_SMALL = llama(1024, 16, 8, 3072, head_dim=128)
GEMMA_2B = llama(2048, 8, 1, 16384, head_dim=256)
GEMMA2_2B = llama(2304, 8, 4, 9216, head_dim=256, sliding_window=4096)
GEMMA3_1B = llama(1152, 4, 1, 6912, head_dim=256, sliding_window=512, layer_types=["sliding_attention"])
GEMMA3_4B = llama(2560, 8, 4, 10240, head_dim=256, layer_types=["full_attention"])

VARIANTS: dict[str, Variant | Images] = {
    "llama3_8b_512": Variant("LlamaConfig", 512, LLAMA3_8B),
    "llama3_8b_1024_by_4": Variant("LlamaConfig", 1024, LLAMA3_8B, batch=4),
    "llama3_8b_2048": Variant("LlamaConfig", 2048, LLAMA3_8B),
    "llama3_8b_4096": Variant("LlamaConfig", 4096, LLAMA3_8B),
    "llama3_8b_8192": Variant("LlamaConfig", 8192, LLAMA3_8B),
    "llama3_8b_eager": Variant("LlamaConfig", 2048, LLAMA3_8B, attention="eager"),
    "llama3_8b_padded": Variant("LlamaConfig", 2048, LLAMA3_8B, padded=True),
    "llama3_8b_decode": Variant("LlamaConfig", 1, LLAMA3_8B, cache=2048),
    "llama3_8b_decode_by_8": Variant("LlamaConfig", 1, LLAMA3_8B, batch=8, cache=2048),
    "llama3_8b_train": Variant("LlamaConfig", 2048, LLAMA3_8B, train=True),
    "llama3_1b": Variant("LlamaConfig", 2048, LLAMA3_1B),
    "llama3_1b_train": Variant("LlamaConfig", 2048, LLAMA3_1B, train=True),
    "llama2_7b": Variant("LlamaConfig", 2048, llama(4096, 32, 32, 11008)),
    "llama2_7b_decode": Variant("LlamaConfig", 1, llama(4096, 32, 32, 11008), cache=2048),
    "qwen2_7b": Variant("Qwen2Config", 2048, QWEN2_7B),
    "qwen2_small_4096": Variant("Qwen2Config", 4096, QWEN2_SMALL),
    "qwen3_8b": Variant("Qwen3Config", 2048, QWEN3_8B),
    "qwen3_small_train": Variant("Qwen3Config", 1024, QWEN3_SMALL, train=True),
    "gemma_2b": Variant("GemmaConfig", 2048, GEMMA_2B),
    "gemma2_2b_eager": Variant("Gemma2Config", 2048, GEMMA2_2B, attention="eager"),
    "gemma3_1b_sliding": Variant("Gemma3TextConfig", 2048, GEMMA3_1B),
    "gemma3_4b_4096": Variant("Gemma3TextConfig", 4096, GEMMA3_4B),
    "gpt2": Variant("GPT2Config", 512, gpt2(768, 12), batch=8),
    "gpt2_medium": Variant("GPT2Config", 1024, gpt2(1024, 16), batch=4),
    "gpt2_xl": Variant("GPT2Config", 1024, gpt2(1600, 25), batch=2),
    "gpt2_eager_train": Variant("GPT2Config", 1024, gpt2(768, 12), batch=4, attention="eager", train=True),
    "bert_base": Variant("BertConfig", 512, bert(768, 12), batch=16),
    "bert_base_padded": Variant("BertConfig", 512, bert(768, 12), batch=16, padded=True),
    "bert_base_eager": Variant("BertConfig", 512, bert(768, 12), batch=16, attention="eager"),
    "bert_large_train": Variant("BertConfig", 512, bert(1024, 16), batch=8, train=True),
    "resnet18": Images("resnet18", 32),
    "resnet50_by_4": Images("resnet50", 4),
    "vgg16": Images("vgg16", 8),
    "densenet121": Images("densenet121", 16),
}


def main() -> None:
    parser = judging.parser(__doc__, tuple(VARIANTS))
    parser.add_argument("--alone", action="store_true", help="only with the passes")
    args = parser.parse_args()
    judging.head(HEAD)
    worse = False
    for chip in args.chip:
        for name in args.program:
            cells, gain = row(name, chip, args)
            worse |= gain is None or gain < -WORSE
            print(f"| {name} | {chip} | {cells} |", flush=True)
    sys.exit(worse)


def row(name: str, chip: str, args: Any) -> tuple[str, float | None]:
    """A row's cells, and the gain where there are both figures; 0 where only one is asked for."""
    given = {"option": args.option, "disable": args.disable, "levels": [2] if args.alone else [2, 0]}
    given["keep"] = str(args.keep / f"{name}-{chip}") if args.keep else None
    found, error = judging.child(__file__, name, chip, given)
    if found is None:
        return error, None
    cells = [f"{f['cycles'] / 1e6:.2f}" if f else "does not fit" for f in found]
    seconds = [f"{f['seconds']:.0f} s" if f else "" for f in found]
    if args.alone:
        return f"{cells[0]} | | | {seconds[0]} |", 0.0
    ours, plain = found
    if ours is None or plain is None:
        return " | ".join([*cells, "", *seconds]), None if ours is None else 1.0
    if ours["options"] != plain["options"]:
        return f"other XLA options: {ours['options']} and {plain['options']}", None
    if ours["unpriced"] > plain["unpriced"]:
        counts = f"{ours['unpriced']} kernels have no estimate, {plain['unpriced']} without"
        return f"{' | '.join(cells)} | {counts}", None
    gain = 1 - ours["cycles"] / plain["cycles"]
    return " | ".join([*cells, f"{gain:.1%}", *seconds]), gain


def program(name: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A module and its arguments, which hold nothing."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    import transformers

    variant = VARIANTS[name]
    if isinstance(variant, Images):
        import timm

        with torch.device("meta"):
            images = torch.empty(variant.batch, 3, 224, 224, dtype=torch.bfloat16)
            return timm.create_model(variant.model).to(torch.bfloat16).eval(), (images,)
    config = getattr(transformers, variant.config)(
        use_cache=bool(variant.cache), vocab_size=8, pad_token_id=0, **variant.sizes
    )

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = transformers.AutoModel.from_config(config, attn_implementation=variant.attention)
            self.cache = None
            if variant.cache:  # It is no module, and tensors of its own stay where they are.
                sizes = variant.batch, config.num_key_value_heads, config.head_dim
                with torch.device("cpu"):
                    self.cache = transformers.StaticCache(config, variant.cache)
                    self.cache.early_initialization(*sizes, torch.bfloat16, torch.device("cpu"))

        def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
            found = self.net(inputs_embeds=x, attention_mask=mask, past_key_values=self.cache)
            return found.last_hidden_state

    shape = (variant.batch, variant.tokens)
    with torch.device("meta"):
        layer = Layer().to(torch.bfloat16).train(variant.train)
        x = torch.empty(*shape, config.hidden_size, dtype=torch.bfloat16, requires_grad=variant.train)
        return layer, (x, torch.empty(shape, dtype=torch.int64)) if variant.padded else (x,)


def one(name: str, chip: str, given: dict[str, Any]) -> list[dict[str, Any] | None]:
    """The figures at each optimization level; None for a program that does not fit."""
    import torchtpu_dynamo

    found: list[dict[str, Any] | None] = []
    for level in given["levels"]:
        try:
            found.append(compiled(name, chip, given, level))
        except torchtpu_dynamo.TorchTPUError as error:
            if "does not fit" not in str(error):
                raise
            found.append(None)
    return found


def compiled(name: str, chip: str, given: dict[str, Any], level: int) -> dict[str, Any]:
    """Cycles, the kernels that have no estimate, the XLA options of each program, and libtpu's seconds."""
    import torchtpu_dynamo

    module, inputs = program(name)
    topology = chip if ":" in chip else f"{chip}:1x1"
    options = judging.options(given) | {"opt_level": level}
    output = f"{given['keep']}-{level}.ttpu" if given["keep"] else None
    train = VARIANTS[name].train
    artifact = torchtpu_dynamo.aot_compile(
        module, inputs, topology=topology, train=train, options=options, output=output
    )
    cycles = unpriced = seconds = 0
    for kind in artifact.programs:
        cost = judging.judged(artifact, kind, topology)["cost"]
        # What else has no estimate may be missing in the figure without passes, but not in ours.
        unpriced += sum(not any(free in kernel for free in FREE) for kernel in cost["unknown"])
        cycles += cost["estimated"] + cost["floor"]
        seconds += sum(artifact.build(kind, topology)["stages"].values())
    compiled_with = {k: artifact.build(k, topology)["compiled_with"] for k in artifact.programs}
    return {"cycles": cycles, "unpriced": unpriced, "options": compiled_with, "seconds": seconds}


if __name__ == "__main__":
    judging.run(main, one)
