"""timm: one entry a model file, its smallest variant at a small image size. The list settles both."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch

from .zoo import Made

SIZES = (64, 96, 128, 224, 256, 384)
SHALLOW: tuple[dict[str, Any], ...] = (
    {"depth": 2},
    {"depths": [1, 1, 1, 1]},
    {"num_blocks": 2},
    {"layers": [1, 1, 1, 1]},
    {"layers": [1, 1, 1]},
    {},
)
SMALL = re.compile(
    r"test|zepto|atto|femto|pico|nano|micro|tiny|mini|small|lite|xx?s|_s|_[bmt]?0|_t|18|26|050"
)


def names() -> list[str]:
    import timm
    from timm.models import _registry

    assert timm.list_models()
    return sorted(_registry._module_to_models)


def make(name: str, variant: str, size: int, options: dict[str, Any]) -> Made:
    import timm

    torch.manual_seed(0)
    module = timm.create_model(variant, num_classes=10, **options)
    return module, {"x": torch.randn(2, 3, size, size)}


def candidates(name: str) -> Iterator[dict[str, Any]]:
    """What the entry could be, best first: the variant with the fewest parameters, at the smallest size."""
    import timm
    from timm.models import _registry

    variants = sorted(_registry._module_to_models[name], key=lambda v: (not SMALL.search(v), len(v), v))
    counts = {}
    for variant in variants[:12]:
        with torch.device("meta"):
            try:
                module = timm.create_model(variant, num_classes=10)
            except Exception:
                continue  # needs values while it is built
        counts[variant] = sum(p.numel() for p in module.parameters())
    for variant in sorted(counts or variants, key=lambda v: counts.get(v, 0))[:3]:
        for size in SIZES:
            for options in SHALLOW if counts.get(variant, 0) > 3e6 else ({},):
                yield {"variant": variant, "size": size, "options": {**options, "img_size": size}}
                yield {"variant": variant, "size": size, "options": options}
