"""Special functions. What PyTorch itself computes to fewer digits in f64 is compared in f32."""

import math

import torch
from torch import special

from tests.ops import Case, case, f32, f64

EDGES = (0.0, -0.0, math.inf, -math.inf, math.nan, 1e-6, -1e-6, 1e-30, 300.0, -300.0)


def line(dtype: torch.dtype, low: float, high: float) -> torch.Tensor:
    return torch.cat([torch.linspace(low, high, 501, dtype=dtype), torch.tensor(EDGES, dtype=dtype)])


def bessel(name: str, low: float = -40, high: float = 40) -> list[Case]:
    fn = getattr(special, name)
    return [
        case(name, fn, f32(7), fixture=name in ("bessel_y0", "modified_bessel_k1")),
        case(f"{name}_line", fn, line(torch.float32, low, high), fixture=False),
    ]


def orders(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    x = [-1.5, -1, -0.99, -0.5, 0, 0.3, 0.5, 0.999, 1, 1.2, 2, math.nan]
    n = [-1, 0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 30, 2.7, math.nan, math.inf]
    return torch.tensor(x, dtype=dtype)[:, None], torch.tensor(n, dtype=dtype)[None]


def polynomial(name: str) -> list[Case]:
    fn = getattr(special, name)
    return [
        case(name, fn, *orders(torch.float64), fixture=False),
        case(f"{name}_order", lambda x: fn(x, 4), f32(5), fixture=name == "laguerre_polynomial_l"),
    ]


def gamma_arguments(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    a = torch.tensor([0, 1e-3, 0.3, 1, 2.5, 9, 30, 99, 100, 101, 250, 3000, 1e5], dtype=dtype)[:, None]
    ratio = torch.tensor([0, 0.01, 0.3, 0.7, 0.97, 1, 1.03, 1.5, 3, 10], dtype=dtype)[None]
    return a.expand(13, 10).contiguous(), a * ratio


def gamma_edges() -> tuple[torch.Tensor, torch.Tensor]:
    edges = torch.tensor([0, 1, -1, math.inf, -math.inf, math.nan])
    return edges[:, None].expand(6, 6).contiguous(), edges[None].expand(6, 6).contiguous()


POLYNOMIALS = [
    *(f"{shifted}chebyshev_polynomial_{kind}" for shifted in ("", "shifted_") for kind in "tuvw"),
    *("hermite_polynomial_h", "hermite_polynomial_he", "laguerre_polynomial_l", "legendre_polynomial_p"),
]

CASES = [
    *(
        c
        for name in ("bessel_j0", "bessel_j1", "bessel_y0", "bessel_y1", "spherical_bessel_j0")
        for c in bessel(name)
    ),
    *(
        c
        for scaled in ("", "scaled_")
        for order in "01"
        for c in bessel(f"{scaled}modified_bessel_k{order}", low=-2)
    ),
    case("airy_ai", special.airy_ai, f32(7, low=-9, high=9)),
    case("airy_ai_f64", special.airy_ai, f64(99, low=3, high=30), fixture=False),
    *(c for name in POLYNOMIALS for c in polynomial(name)),
    case("igamma", torch.igamma, *gamma_arguments(torch.float64)),
    case("igammac", torch.igammac, *gamma_arguments(torch.float64), fixture=False),
    case(
        "igamma_gradient",
        lambda x: torch.igamma(torch.full_like(x, 2.5), x),
        f32(7, low=0.1, high=6),
        train=True,
        fixture=False,
    ),
    case("igamma_f32", torch.igamma, *gamma_arguments(torch.float32), fixture=False),
    case("igamma_edges", torch.igamma, *gamma_edges(), fixture=False),
    case("igammac_edges", torch.igammac, *gamma_edges(), fixture=False),
]
