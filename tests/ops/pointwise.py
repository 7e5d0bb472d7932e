"""Pointwise arithmetic, comparison, logic and special functions."""

import torch
import torch.nn.functional as F

from tests.ops import Case, bf16, case, f32, f64, i32, i64, mask, tensor, u8

INF, NAN = float("inf"), float("nan")


def special(*values: float):
    """The given values, in f32."""
    return f32(len(values), then=lambda t: torch.tensor(values))


EDGES = special(-INF, -2.5, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 1.5, 2.5, INF, NAN)
POSITIVE = {"low": 0.1, "high": 3.0}
INSIDE = {"low": -0.9, "high": 0.9}

# Domain of the functions that are not defined everywhere.
DOMAINS = {
    **dict.fromkeys(["log", "log2", "log10", "sqrt", "rsqrt", "lgamma", "digamma"], POSITIVE),
    **dict.fromkeys(["asin", "acos", "atanh", "erfinv"], INSIDE),
    "log1p": {"low": -0.9, "high": 2.0},
    "acosh": {"low": 1.1, "high": 3.0},
}
UNARY = [
    "abs",
    "neg",
    "sign",
    "exp",
    "expm1",
    "exp2",
    "log",
    "log1p",
    "log2",
    "log10",
    "sqrt",
    "rsqrt",
    "reciprocal",
    "sin",
    "cos",
    "tan",
    "sinc",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "tanh",
    "asinh",
    "acosh",
    "atanh",
    "erf",
    "erfc",
    "erfinv",
    "lgamma",
    "digamma",
    "floor",
    "ceil",
    "trunc",
    "round",
    "sigmoid",
    "relu",
    "signbit",
    "isnan",
    "isinf",
    "isfinite",
    "angle",
    "logical_not",
]
SPECIAL = ["i0", "i0e", "i1", "i1e", "erfcx", "ndtri", "modified_bessel_i0", "modified_bessel_i1"]
COMPARE = ["eq", "ne", "lt", "le", "gt", "ge"]
MATH_INTS = ["exp", "sin", "sqrt", "erf", "sigmoid", "log1p", "tanh", "reciprocal"]


def unary_cases() -> list[Case]:
    cases = []
    for name in UNARY:
        fn, domain = getattr(torch, name), DOMAINS.get(name, {})
        smooth = name not in ("signbit", "isnan", "isinf", "isfinite", "logical_not")
        cases.append(
            case(
                name, fn, f32(2, 3, **domain), train=smooth, fixture=name in ("sign", "log2", "round", "sinc")
            )
        )
        cases.append(case(f"{name}_bf16", fn, bf16(7, **domain), train=smooth, fixture=False))
        cases.append(case(f"{name}_edges", fn, EDGES, fixture=name == "trunc"))
    for name in MATH_INTS:
        cases.append(case(f"{name}_of_int", getattr(torch, name), i64(5, low=1), fixture=name == "exp"))
        cases.append(case(f"{name}_of_bool", getattr(torch, name), mask(5), fixture=False))
    for name in SPECIAL:
        domain = {"low": 0.01, "high": 0.99} if name == "ndtri" else {"low": -12.0, "high": 12.0}
        if name == "erfcx":
            domain = {"low": -5.0, "high": 40.0}
        fn = getattr(torch.special, name)
        cases.append(case(f"special_{name}", fn, f32(64, **domain), fixture=name == "erfcx"))
        cases.append(case(f"special_{name}_f64", fn, f64(64, **domain), fixture=False))
    return cases


def compare_cases() -> list[Case]:
    cases = []
    for name in COMPARE:
        fn = getattr(torch, name)
        cases.append(case(name, fn, EDGES, special(*reversed(range(12))), fixture=False))
        cases.append(case(f"{name}_int_and_float", fn, i64(9), f32(9), fixture=name == "lt"))
        cases.append(case(f"{name}_number", lambda x, fn=fn: fn(x, 1.5), i32(9), fixture=False))
        cases.append(case(f"{name}_bool", fn, mask(9), mask(9), fixture=False))
    return cases


def complex_plane() -> torch.Tensor:
    """Both sides of the branch cuts, and away from them."""
    line = torch.tensor([-1e10, -5.0, -1.5, -0.5, -0.0, 0.0, 0.25, 2.0, 1e5])
    return torch.complex(line[:, None].expand(9, 9), line[None].expand(9, 9))


def inverse_cases() -> list[Case]:
    names = ("asin", "acos", "atan", "asinh", "acosh", "atanh")
    return [case(f"{n}_complex", getattr(torch, n), complex_plane(), fixture=n == "acos") for n in names]


def binary_cases() -> list[Case]:
    cases = []
    for name in [
        "add",
        "sub",
        "mul",
        "div",
        "maximum",
        "minimum",
        "fmax",
        "fmin",
        "atan2",
        "hypot",
        "remainder",
        "fmod",
    ]:
        fn, edge = getattr(torch, name), name not in ("remainder", "fmod")
        for dtype in ("float32", "bfloat16"):
            a, b = tensor(getattr(torch, dtype), 4, 3), tensor(getattr(torch, dtype), 3, low=0.5)
            cases.append(case(f"{name}_{dtype}", fn, a, b, train=True, fixture=False))
        cases.append(case(f"{name}_empty", fn, f32(0, 3), f32(1), fixture=False))
        cases.append(case(f"{name}_0d", fn, f32(2), f64(), fixture=name == "add"))
        cases.append(
            case(f"{name}_edges", fn, EDGES, special(*[1.0] * 6, *[NAN] * 3, *[-INF] * 3), fixture=False)
        )
        if name != "hypot":
            cases.append(case(f"{name}_int", fn, i64(40), i64(40, low=1), fixture=name == "remainder"))
            cases.append(case(f"{name}_negative_int", fn, i32(40), i32(40, low=-9, high=-1), fixture=False))
        if edge and name not in ("sub", "div", "hypot"):
            cases.append(case(f"{name}_u8", fn, u8(5), u8(5), fixture=False))
    for name in ["bitwise_and", "bitwise_or", "bitwise_xor", "logical_and", "logical_or", "logical_xor"]:
        fn = getattr(torch, name)
        cases.append(case(f"{name}_int", fn, i64(9), i64(9), fixture=name == "logical_xor"))
        cases.append(case(f"{name}_bool", fn, mask(9), mask(9), fixture=False))
        if name.startswith("bitwise"):
            cases.append(case(f"{name}_number", lambda x, fn=fn: (fn(x, 5), fn(5, x)), i32(9), fixture=False))
    for mode in ("floor", "trunc"):
        fn = lambda x, y, mode=mode: torch.div(x, y, rounding_mode=mode)
        cases.append(case(f"div_{mode}", fn, f32(50, low=-9, high=9), f32(50), fixture=mode == "floor"))
        cases.append(case(f"div_{mode}_bf16", fn, bf16(50), bf16(50), fixture=False))
        cases.append(case(f"div_{mode}_int", fn, i64(50), i64(50, low=1), fixture=False))
        cases.append(case(f"div_{mode}_negative_int", fn, i64(50), i64(50, low=-9, high=-1), fixture=False))
        cases.append(case(f"div_{mode}_edges", fn, EDGES, special(*[0.0, -0.0, 0.5] * 4), fixture=False))
    return cases


def pow_cases() -> list[Case]:
    cases = []
    for e in (-2, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 7):
        fn = lambda x, e=e: x**e
        cases.append(case(f"pow_{e}", fn, f32(9, **POSITIVE), train=True, fixture=e in (2, 7)))
        cases.append(case(f"pow_{e}_bf16", fn, bf16(9, **POSITIVE), fixture=False))
        if e == int(e) and e >= 0:
            cases.append(case(f"pow_{e}_int", fn, i64(9), fixture=False))
    return [
        *cases,
        case("pow", torch.pow, f32(4, 3, **POSITIVE), f32(3), train=True, fixture=False),
        case("pow_edges", torch.pow, EDGES, special(*[2.0, 0.0, -1.0, 3.0] * 3), fixture=False),
        case("pow_int", torch.pow, i64(60, low=-3, high=3), i64(60, low=-4, high=4)),
        case("pow_int_wraps", torch.pow, i64(60, low=-5, high=5), i64(60, low=60, high=200), fixture=False),
        case("pow_int_high", torch.pow, i64(9, low=2), i64(9, low=2**62, high=2**62 + 99), fixture=False),
        case("pow_i32_wraps", torch.pow, i32(60), i32(60, low=30, high=2000), fixture=False),
        case("pow_u8_wraps", torch.pow, u8(60, high=9), u8(60), fixture=False),
        case("pow_int_by_number", lambda x: [x**e for e in (5, 63, 64, 127, 2**62)], i64(19), fixture=False),
        case("pow_of_number", lambda x: torch.pow(2, x), f32(5), train=True, fixture=False),
        case("pow_of_int_number", lambda x: 3**x, i64(5, low=0, high=9), fixture=False),
        case("float_power", torch.float_power, i64(5, low=1), f32(5), fixture=False),
    ]


def activation_cases() -> list[Case]:
    functions = {
        "silu": F.silu,
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "elu": lambda x: F.elu(x, 0.7),
        "selu": F.selu,
        "celu": lambda x: F.celu(x, 0.6),
        "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
        "softplus": lambda x: F.softplus(x, 1.5, 2.0),
        "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.7),
        "relu6": F.relu6,
        "mish": F.mish,
        "hardswish": F.hardswish,
        "hardsigmoid": F.hardsigmoid,
        "logsigmoid": F.logsigmoid,
        "softsign": F.softsign,
        "hardshrink": F.hardshrink,
        "softshrink": F.softshrink,
        "threshold": lambda x: F.threshold(x, 0.1, 0.3),
    }
    cases = []
    for name, fn in functions.items():
        cases.append(case(name, fn, f32(4, 5), train=True, fixture=name in ("gelu", "elu", "softplus")))
        cases.append(case(f"{name}_bf16", fn, bf16(4, 5), train=True, fixture=False))
        cases.append(case(f"{name}_edges", fn, EDGES, fixture=False))
    return cases


CASES = [
    case("tanhshrink", F.tanhshrink, f32(4, 5), train=True, fixture=False),
    *unary_cases(),
    *compare_cases(),
    *inverse_cases(),
    *binary_cases(),
    *pow_cases(),
    *activation_cases(),
    case("add_broadcast", torch.add, f32(2, 3), f32(3), train=True),
    case("add_alpha", lambda x, y: torch.add(x, y, alpha=2), bf16(2, 3), bf16(2, 3)),
    case(
        "add_alpha_float",
        lambda x, y: torch.add(x, y, alpha=0.3),
        bf16(9),
        bf16(9),
        train=True,
        fixture=False,
    ),
    case("add_bool", torch.add, mask(5), mask(5), fixture=False),
    case("sub_alpha", lambda x, y: torch.sub(x, y, alpha=3), i64(5), i64(5), fixture=False),
    case("rsub", lambda x: 1 - x, f32(5), train=True, fixture=False),
    case("mul_bool", lambda x, y: x * y, mask(5), mask(5)),
    case("mul_number_bf16", lambda x: x * 0.1, bf16(64)),
    case("mul_int_by_float", lambda x: x * 0.5, i64(5), fixture=False),
    case("div_number", lambda x: x / 3, bf16(64), train=True, fixture=False),
    case("floor_divide", lambda x: x // 3, i64(20), fixture=False),
    case(
        "floor_divide_zeros",
        lambda x: torch.signbit(torch.stack([x // 2, x // -2, x // 9])),
        special(-0.0, 0.0, 1.0, -1.0, 3.0, -3.0),
        fixture=False,
    ),
    case("floor_divide_float", lambda x: x // 0.3, f32(20), fixture=False),
    case("remainder_of_number", lambda x: torch.remainder(7, x), i64(9, low=1), fixture=False),
    case("eq_number", lambda x: x == 1, i64(5)),
    case("bitwise_not", torch.bitwise_not, i32(9), fixture=False),
    case("bitwise_not_bool", torch.bitwise_not, mask(9), fixture=False),
    case("shift_left", torch.bitwise_left_shift, i32(9), i32(9, low=0, high=40), fixture=False),
    case("shift_right", torch.bitwise_right_shift, i32(9), i32(9, low=0, high=40)),
    case("shift_right_u8", torch.bitwise_right_shift, u8(9), u8(9, low=0, high=9), fixture=False),
    case("shift_operators", lambda x: (x << 2, x >> 1), i64(9), fixture=False),
    case("round_decimals", lambda x: torch.round(x, decimals=2), f32(20), fixture=False),
    case("round_tens", lambda x: torch.round(x, decimals=-1), f32(20, low=-99, high=99), fixture=False),
    case("floor_of_int", torch.floor, i64(5), fixture=False),
    case("abs_u8", torch.abs, u8(5), fixture=False),
    case("sign_of_zeros", lambda x: torch.signbit(torch.sign(x)), EDGES, fixture=False),
    case("sign_u8", torch.sign, u8(5, high=2), fixture=False),
    case("sign_bool", torch.sign, mask(5), fixture=False),
    case("angle_of_int", torch.angle, i64(5), fixture=False),
    case("copysign", torch.copysign, EDGES, special(*[1.0, -0.0, 0.0, -2.0] * 3)),
    case("copysign_train", torch.copysign, f32(9), f32(9), train=True, fixture=False),
    case("copysign_number", lambda x: torch.copysign(x, -1), bf16(9), fixture=False),
    case("nextafter", torch.nextafter, f32(9), f32(9), fixture=False),
    case("frexp", torch.frexp, special(0.0, -0.0, 1.0, -3.5, 1e30, 1e-30, INF, NAN, 1e-40, -3e-45)),
    case("frexp_f64", torch.frexp, f64(9, low=-1e9, high=1e9), fixture=False),
    case("frexp_bf16", torch.frexp, bf16(9), fixture=False),
    case("ldexp", torch.ldexp, f32(9), i32(9), fixture=False),
    case("gcd", torch.gcd, i64(40, low=-99, high=99), i64(40, low=-99, high=99)),
    case("gcd_u8", torch.gcd, u8(40), u8(40), fixture=False),
    case("lcm", torch.lcm, i32(40, low=-99, high=99), i32(40, low=-99, high=99), fixture=False),
    case("polygamma", lambda x: [torch.polygamma(n, x) for n in range(4)], f32(9, **POSITIVE)),
    case("trigamma_negative", lambda x: torch.polygamma(1, x), f32(9, low=-2.9, high=-2.1), fixture=False),
    case("zeta", torch.special.zeta, f32(9, low=1.5, high=5), f32(9, **POSITIVE), fixture=False),
    case("xlogy", torch.xlogy, f32(9), f32(9, **POSITIVE), train=True, fixture=False),
    case(
        "xlogy_number",
        lambda x: (torch.xlogy(x, 2.0), torch.xlogy(2.0, x)),
        f32(9, **POSITIVE),
        fixture=False,
    ),
    case("xlog1py_number", lambda x: torch.special.xlog1py(x, 2.0), f32(9), fixture=False),
    case(
        "lerp_of_orders",
        lambda x, y: torch.lerp(x, y, 0.1),
        f32(2, 3, 4, 4),
        f32(2, 3, 4, 4, then=lambda t: t.to(memory_format=torch.channels_last)),
        fixture=False,
    ),
    case(
        "sqrt_branch_cut",
        lambda z: [f(r) for r in (z.sqrt(), z**0.5) for f in (torch.real, torch.imag)],
        tensor(
            torch.complex64,
            5,
            then=lambda _: torch.tensor([complex(-1, y) for y in (0.0, -0.0)] + [4 + 0j, 1j, -1j]),
        ),
        fixture=False,
    ),
    case(
        "erf_ends",
        lambda x: (torch.erf(x).abs() == 1, torch.erf(x) + 0 * x),
        special(-9, -5.3, -3.93, 3.93, 4, 88, NAN),
        fixture=False,
    ),
    case("lgamma_roots", lambda x: torch.lgamma(x) == 0, special(1, 2, 3), fixture=False),
    case("log_ndtr", torch.special.log_ndtr, f32(40, low=-20, high=5), fixture=False),
    case("nan_to_num", torch.nan_to_num, EDGES, fixture=False),
    case("clamp", lambda x: x.clamp(-1, 1), EDGES),
    case("clamp_train", lambda x: x.clamp(-0.5, 0.5), f32(20), train=True, fixture=False),
    case("clamp_min", lambda x: x.clamp(min=0.5), i64(5), fixture=False),
    case("clamp_max", lambda x: x.clamp(max=3), u8(9), fixture=False),
    case(
        "clamp_beyond_u8",
        lambda x: (x.clamp(-5, 100), x.clamp(min=-1), x.clamp(max=300), x.clamp(-(2**40), 2**40)),
        u8(9),
        fixture=False,
    ),
    case(
        "clamp_beyond_i32",
        lambda x: (x.clamp(-(2**40), 2**40), x.clamp(max=2**31), F.hardtanh(x, -(2**33), 2)),
        i32(9),
        fixture=False,
    ),
    case("clamp_beyond_i8", lambda x: x.clamp(-200, 1000), tensor(torch.int8, 9, low=-99), fixture=False),
    case("clamp_tensors", torch.clamp, f32(2, 3), f32(3), f32(2, 1), train=True, fixture=False),
    case("clamp_crossed", lambda x: x.clamp(1, -1), f32(5), fixture=False),
    case("where", torch.where, mask(2, 3), f32(3), f32(2, 1), train=True),
    case("where_number", lambda c, x: torch.where(c, x, -1), mask(4), i64(4), fixture=False),
    case("where_promotes", torch.where, mask(4), i64(4), f32(4), fixture=False),
    case(
        "mask_of_infinities",
        lambda m, x: (m * INF, m * -1.0, x * m, m.to(x.dtype) * x, x.masked_fill(m, 2) * ~m),
        tensor(torch.bool, 12, then=lambda _: torch.arange(12) % 3 == 0),
        EDGES,
        fixture=False,
    ),
    case("masked_fill", lambda x, m: x.masked_fill(m, -INF), f32(4), mask(4), fixture=False),
    case(
        "addcmul", lambda x, y, z: torch.addcmul(x, y, z, value=0.3), bf16(9), bf16(9), bf16(9), fixture=False
    ),
    case(
        "addcdiv",
        lambda x, y, z: torch.addcdiv(x, y, z, value=2),
        f32(9),
        f32(9),
        f32(9, **POSITIVE),
        fixture=False,
    ),
    case("lerp", lambda x, y: torch.lerp(x, y, 0.3), f32(9), f32(9), train=True, fixture=False),
    case("heaviside", torch.heaviside, EDGES, f32(1), fixture=False),
    case("logaddexp", torch.logaddexp, f32(9), f32(9), train=True, fixture=False),
    case("complex", torch.complex, f32(4), f32(4)),
    case("complex_abs", torch.abs, tensor(torch.complex64, 9), fixture=False),
    case("complex_exp", torch.exp, tensor(torch.complex64, 9), fixture=False),
    case("complex_sinh", torch.sinh, tensor(torch.complex64, 9), fixture=False),
    case("complex_cosh", torch.cosh, tensor(torch.complex64, 9), fixture=False),
    case("complex_angle", torch.angle, tensor(torch.complex64, 9), fixture=False),
    case("complex_isfinite", torch.isfinite, tensor(torch.complex64, 9), fixture=False),
    case("complex_mul", lambda x: x * (1 + 2j), tensor(torch.complex64, 9), fixture=False),
]
