"""Random numbers: shapes and dtypes here, the distributions by moments that a wrong formula misses."""

import torch

from tests.ops import bf16, case, f32, f64, i64, tensor


def near(value: torch.Tensor, expected: float, tolerance: float) -> torch.Tensor:
    return (value.double() - expected).abs() < tolerance


def normal_moments(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    y = torch.randn_like(x)
    # The last is the share within one standard deviation.
    return (
        near(y.mean(), 0, 0.03),
        near(y.var(), 1, 0.05),
        near((y.abs() < 1).to(x.dtype).mean(), 0.6827, 0.02),
    )


def uniform_moments(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    y = torch.rand_like(x)
    return near(y.mean(), 0.5, 0.02), near(y.var(), 1 / 12, 0.01), (y >= 0).all(), (y < 1).all()


def integer_moments(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    y = torch.randint(-3, 7, x.shape)
    return y.min(), y.max(), near(y.double().mean(), 1.5, 0.1)


def moments_of(draw, mean: float, variance: float):
    """Of 65536 draws: five deviations of the mean's error, and of the variance's at a kurtosis as high as 36."""

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = draw(x.new_zeros(65536)).double()
        return near(y.mean(), mean, 0.02 * variance**0.5), near(y.var(), variance, 0.12 * variance)

    return run


def poisson_shares(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The probabilities of some counts, which moments do not see."""
    small, large = torch.poisson(x.new_full((65536,), 1.5)), torch.poisson(x.new_full((65536,), 12.0))
    return (
        near((small == 0).double().mean(), 0.22313, 0.006),
        near((small == 3).double().mean(), 0.12551, 0.005),
        near((large == 12).double().mean(), 0.11437, 0.005),
        near((large < 6).double().mean(), 0.02034, 0.002),
    )


def binomial_shares(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """As for Poisson's; and counts that are certain."""
    few, many = (
        torch.binomial(x.new_full((65536,), n), x.new_full((65536,), p)) for n, p in ((4.0, 0.3), (60.0, 0.6))
    )
    edges = torch.binomial(x.new_tensor([0.0, 7.0, 7.0, 90.0]), x.new_tensor([0.5, 0.0, 1.0, 1.0]))
    return (
        near((few == 0).double().mean(), 0.2401, 0.006),
        near((few == 2).double().mean(), 0.2646, 0.006),
        near((few == 4).double().mean(), 0.0081, 0.002),
        near((many == 36).double().mean(), 0.10467, 0.005),
        near((many < 30).double().mean(), 0.04448, 0.003),
        edges,
    )


def gamma_gradient(x: torch.Tensor) -> torch.Tensor:
    shapes = torch.tensor([0.05, 0.5, 1.0, 3.0, 40.0, 500.0], dtype=x.dtype)
    return torch._standard_gamma_grad(shapes, shapes * x)


def dropout_moments(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    y = torch.nn.functional.dropout(torch.ones_like(x), 0.3)
    return near((y == 0).double().mean(), 0.3, 0.02), near(y.max(), 1 / 0.7, 0.01)


def multinomial_shares(replacement: bool):
    def run(p: torch.Tensor) -> tuple[torch.Tensor, ...]:
        p = torch.tensor([0.1, 0.0, 0.6, 0.3]).repeat(4096, 1) + 0 * p
        first = torch.multinomial(p, 3 if replacement else 1, replacement)[:, 0]
        return tuple(near((first == i).double().mean(), s, 0.03) for i, s in enumerate([0.1, 0.0, 0.6, 0.3]))

    return run


CASES = [
    case("rand", lambda x: x + torch.rand(2, 3), f32(3), random=True),
    case("randn", lambda x: x + torch.randn(2, 3), f32(3), random=True),
    case("rand_f64", lambda x: x + torch.rand(2, 3, dtype=torch.float64), f64(3), random=True, fixture=False),
    case("rand_bf16", torch.rand_like, bf16(2, 3), random=True, fixture=False),
    case("randn_f64", torch.randn_like, f64(2, 0), random=True, fixture=False),
    case("randn_complex", torch.randn_like, tensor(torch.complex64, 4), random=True, fixture=False),
    case("randint", lambda x: x + torch.randint(2, 9, (3,)), i64(3), random=True),
    case("randint_large", lambda x: x + torch.randint(1 << 40, (3,)), i64(3), random=True, fixture=False),
    case("randint_like", lambda x: torch.randint_like(x, 5), f32(3), random=True, fixture=False),
    case("randperm", lambda x: x + torch.randperm(7), i64(7), random=True),
    case("randperm_is_one", lambda x: torch.randperm(100).sort().values + 0 * x, i64(1), fixture=False),
    case("bernoulli", torch.bernoulli, f32(9, low=0, high=1), random=True),
    case("bernoulli_p", lambda x: x.bernoulli(0.5), f32(9), random=True, fixture=False),
    case("bernoulli_certain", lambda x: (x.bernoulli(1.0), x.bernoulli(0.0)), f32(99), fixture=False),
    case(
        "bernoulli_tensor",
        lambda x: torch.empty(9).bernoulli_(x),
        f32(9, low=0, high=1),
        random=True,
        fixture=False,
    ),
    case("uniform", lambda x: torch.empty_like(x).uniform_(-2, 3), f32(9), random=True, fixture=False),
    case("normal", lambda x: torch.normal(x, 2.0), f32(9), random=True, fixture=False),
    case("normal_tensors", torch.normal, f32(9), f32(9, low=0.1, high=1), random=True, fixture=False),
    case("exponential", lambda x: torch.empty_like(x).exponential_(2), f32(9), random=True, fixture=False),
    case("cauchy", lambda x: torch.empty_like(x).cauchy_(), f32(9), random=True, fixture=False),
    case("geometric", lambda x: torch.empty_like(x).geometric_(0.3), f32(9), random=True, fixture=False),
    case("log_normal", lambda x: torch.empty_like(x).log_normal_(), f32(9), random=True, fixture=False),
    case("dropout", lambda x: torch.nn.functional.dropout(x, 0.3), f32(9), random=True, train=True),
    case("dropout_off", lambda x: torch.nn.functional.dropout(x, 0.3, False), f32(9), fixture=False),
    case("dropout_all", lambda x: torch.nn.functional.dropout(x, 1.0), f32(9), fixture=False),
    case("rrelu", lambda x: torch.nn.functional.rrelu(x, training=True), f32(9), random=True, fixture=False),
    case("rrelu_eval", lambda x: torch.nn.functional.rrelu(x), f32(9), fixture=False),
    case("multinomial", lambda p: torch.multinomial(p, 2), f32(3, 5, low=0.1, high=1), random=True),
    case(
        "multinomial_one",
        lambda p: torch.multinomial(p, 1),
        f32(5, low=0, high=1),
        random=True,
        fixture=False,
    ),
    case(
        "multinomial_all",
        lambda p: torch.multinomial(p, 5).sort().values,
        f32(5, low=0.1, high=1),
        fixture=False,
    ),
    case("multinomial_shares", multinomial_shares(False), f32(1), fixture=False),
    case("multinomial_shares_replaced", multinomial_shares(True), f32(1), fixture=False),
    case("normal_moments", normal_moments, f32(16384), fixture=False),
    case("normal_moments_f64", normal_moments, f64(16384), fixture=False),
    case("uniform_moments", uniform_moments, f32(16384), fixture=False),
    case("uniform_moments_f64", uniform_moments, f64(16384), fixture=False),
    case("integer_moments", integer_moments, f32(16384), fixture=False),
    case("poisson", torch.poisson, f32(9, low=0, high=30), random=True),
    case("poisson_zero", lambda x: torch.poisson(0 * x), f32(9), fixture=False),
    case("poisson_shares", poisson_shares, f32(1), fixture=False),
    *(
        case(
            f"poisson_moments_{rate}",
            moments_of(lambda x, rate=rate: torch.poisson(x + rate), rate, rate),
            f32(1),
            fixture=False,
        )
        for rate in (0.3, 9.0, 11.0, 4000.0)
    ),
    case(
        "binomial",
        lambda n, p: torch.binomial(n.floor(), p),
        f32(9, low=0, high=90),
        f32(9, low=0, high=1),
        random=True,
    ),
    case("binomial_shares", binomial_shares, f32(1), fixture=False),
    *(
        case(
            f"binomial_moments_{n}_{p}",
            moments_of(
                lambda x, n=n, p=p: torch.binomial(x + n, torch.full_like(x, p)), n * p, n * p * (1 - p)
            ),
            f32(1),
            fixture=False,
        )
        for n, p in ((7, 0.9), (99, 0.05), (30, 0.5), (2000, 0.8))
    ),
    case("standard_gamma", torch._standard_gamma, f32(9, low=0.1, high=5), random=True),
    *(
        case(
            f"gamma_moments_{shape}",
            moments_of(lambda x, shape=shape: torch._standard_gamma(x + shape), shape, shape),
            f32(1),
            fixture=False,
        )
        for shape in (0.2, 1.0, 30.0)
    ),
    case(
        "gamma_gradient",
        gamma_gradient,
        f64(6, low=0.5, high=1.5),
        fixture=False,
    ),
    case(
        "dirichlet_sum",
        lambda x: torch._sample_dirichlet(x).sum(-1),
        f32(5, 3, low=0.1, high=4),
        fixture=False,
    ),
    case("dropout_moments", dropout_moments, f32(16384), fixture=False),
]
