"""Resizing of images and other grids."""

from typing import Any

import torch
from torch.nn import functional as F

from tests.ops import Case, bf16, case, f32, u8

LINE, IMAGE, VOLUME = f32(2, 3, 5), f32(2, 3, 5, 6), f32(1, 2, 3, 4, 5)


def resize(name: str, x: Any, fixture: bool = False, **options: Any) -> Case:
    return case(name, lambda t: F.interpolate(t, **options), x, train=True, fixture=fixture)


CASES = [
    resize("nearest_double", IMAGE, True, scale_factor=2, mode="nearest"),
    resize("nearest_uneven", IMAGE, True, size=(8, 4), mode="nearest"),
    resize("nearest_scale", IMAGE, scale_factor=1.7, mode="nearest"),
    resize("nearest_exact", IMAGE, size=(7, 3), mode="nearest-exact"),
    resize("nearest1d", LINE, size=12, mode="nearest"),
    resize("nearest3d", VOLUME, size=(5, 4, 3), mode="nearest"),
    resize("nearest_far", f32(1, 1, 90), size=200, mode="nearest"),
    resize("linear", LINE, size=8, mode="linear"),
    resize("bilinear", IMAGE, True, size=(8, 9), mode="bilinear"),
    resize("bilinear_corners", IMAGE, size=(8, 3), mode="bilinear", align_corners=True),
    resize("bilinear_scale", IMAGE, scale_factor=1.7, mode="bilinear", recompute_scale_factor=False),
    resize("bilinear_bf16", bf16(1, 2, 4, 4), scale_factor=2, mode="bilinear"),
    resize("bilinear_antialias", IMAGE, size=(3, 9), mode="bilinear", antialias=True),
    resize("bicubic", IMAGE, True, size=(8, 3), mode="bicubic"),
    resize("bicubic_corners", IMAGE, size=(8, 3), mode="bicubic", align_corners=True),
    resize("bicubic_antialias", IMAGE, size=(3, 9), mode="bicubic", antialias=True),
    *(
        case(
            f"{mode}_antialias_u8_{'up' if size > (9, 9) else 'down'}",
            lambda x, mode=mode, size=size: F.interpolate(x, size=size, mode=mode, antialias=True),
            u8(2, 3, 12, 14, high=255),
            fixture=False,
        )
        for mode in ("bilinear", "bicubic")
        for size in ((20, 25), (5, 3))
    ),
    *(
        case(
            f"{mode}_u8_{name}",
            lambda x, mode=mode, options=options: F.interpolate(x, mode=mode, **options),
            u8(2, 3, 12, 14, high=255),
            fixture=False,
        )
        for mode in ("bilinear", "bicubic")
        for name, options in {
            "up": {"size": (40, 51)},
            "down": {"size": (7, 5)},
            "width": {"size": (12, 37)},
            "corners": {"size": (29, 33), "align_corners": True},
            "scale": {"scale_factor": (1.7, 2.3)},
            "near": {"size": (15, 16)},
        }.items()
    ),
    resize("trilinear", VOLUME, size=(4, 6, 3), mode="trilinear"),
    case(
        "grid_sample",
        lambda x, g: F.grid_sample(x, g, align_corners=False),
        IMAGE,
        f32(2, 4, 4, 2, low=-1.2, high=1.2),
        fixture=False,
    ),
    *(
        case(
            f"grid_sample_{n}d_{mode}_{padding}{'_corners' if align else ''}",
            lambda x, g, mode=mode, padding=padding, align=align: F.grid_sample(x, g, mode, padding, align),
            IMAGE if n == 2 else VOLUME,
            f32(IMAGE.shape[0], 4, 3, 2, low=-1.4, high=1.4)
            if n == 2
            else f32(VOLUME.shape[0], 4, 3, 2, 3, low=-1.4, high=1.4),
            train=True,
            fixture=False,
        )
        for n, mode, padding, align in (
            (2, "bilinear", "zeros", False),
            (2, "bilinear", "reflection", True),
            (2, "nearest", "border", False),
            (2, "bicubic", "reflection", False),
            (2, "bicubic", "zeros", True),
            (3, "bilinear", "border", True),
            (3, "bilinear", "reflection", False),
            (3, "nearest", "zeros", True),
        )
    ),
    case("pixel_shuffle", lambda x: torch.pixel_shuffle(x, 2), f32(1, 8, 3, 3), fixture=False),
]
