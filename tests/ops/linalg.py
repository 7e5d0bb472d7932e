"""Factorisations, triangular systems and what follows from them."""

import torch
from torch import linalg

from tests.ops import Case, case, f32, f64, tensor


def definite(t: torch.Tensor) -> torch.Tensor:
    return t @ t.mH + torch.eye(t.shape[-1])


def regular(t: torch.Tensor) -> torch.Tensor:
    """Far from singular, with pivots off the diagonal."""
    return t + 4 * torch.eye(t.shape[-1]).flip(0)


def hermitian(t: torch.Tensor) -> torch.Tensor:
    return t + t.mH


def hollow(t: torch.Tensor) -> torch.Tensor:
    """Symmetric with pivots of two rows: nothing on the diagonal but the last element."""
    t = t + t.mH
    return t - torch.diag_embed(torch.cat([t.diagonal(dim1=-2, dim2=-1)[..., :-1], 0 * t[..., 0, :1]], -1))


def ldl_solve(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    factors, pivots, _ = linalg.ldl_factor_ex(a)
    return linalg.ldl_solve(factors, pivots, b)


def singular(t: torch.Tensor) -> torch.Tensor:
    """Rank 2."""
    return t[..., :2] @ t[..., :2, :]


def svd_parts(full: bool):
    """What is unique in a singular value decomposition: its values, product and orthogonality."""

    def run(a: torch.Tensor) -> tuple[torch.Tensor, ...]:
        u, s, vh = linalg.svd(a, full_matrices=full)
        k = s.shape[-1]
        product = (u[..., :k] * s.unsqueeze(-2)) @ vh[..., :k, :]
        return s, product, u.mH @ u, vh @ vh.mH

    return run


def svd_cases() -> list[Case]:
    cases = [
        case("svd", svd_parts(False), f32(2, 5, 3)),
        case("svd_full", svd_parts(True), f32(5, 3), fixture=False),
        case("svd_wide", svd_parts(True), f32(2, 3, 6), fixture=False),
        case("svd_complex", svd_parts(True), tensor(torch.complex64, 6, 4), fixture=False),
        case("svd_singular", svd_parts(True), f32(6, 6, then=singular), fixture=False),
        case("svd_zero", svd_parts(True), f32(3, 4, then=torch.zeros_like), fixture=False),
        case("svd_empty", svd_parts(True), f32(0, 3), fixture=False),
        case("svd_one", svd_parts(True), f32(1, 1), fixture=False),
        case("svd_f64", svd_parts(False), f64(40, 31), fixture=False),
        case("svdvals_large", linalg.svdvals, f32(5, 4, then=lambda t: t * 1e25), fixture=False),
        case("svdvals_small", linalg.svdvals, f32(5, 4, then=lambda t: t * 1e-25), fixture=False),
        case("svdvals", linalg.svdvals, f32(4, 6), train=True, fixture=False),
        case("matrix_rank", linalg.matrix_rank, f32(6, 6, then=singular), fixture=False),
        case("nuclear_norm", lambda x: linalg.matrix_norm(x, "nuc"), f32(2, 4, 3), train=True, fixture=False),
        case("cond", linalg.cond, f32(4, 4, then=regular), train=True, fixture=False),
        case("pinv", linalg.pinv, f32(2, 5, 3), train=True, fixture=False),
        case("pinv_atol", lambda x: linalg.pinv(x, atol=1.0), f32(3, 5), fixture=False),
        case(
            "pinv_hermitian",
            lambda x: linalg.pinv(x, hermitian=True),
            f32(4, 4, then=hermitian),
            fixture=False,
        ),
    ]
    if hasattr(linalg, "polar"):
        cases.append(case("polar", linalg.polar, f32(2, 5, 3), fixture=False))
    return cases


def eigh_parts(upper: bool = False):
    """What is unique in an eigenvalue decomposition."""

    def run(a: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values, v = linalg.eigh(a, "U" if upper else "L")
        return values, (v * values.unsqueeze(-2)) @ v.mH, v.mH @ v

    return run


def eigh_cases() -> list[Case]:
    cases = [
        case("eigh", eigh_parts(), f32(2, 4, 4)),
        case("eigh_upper", eigh_parts(True), f32(5, 5), fixture=False),
        case("eigh_complex", eigh_parts(), tensor(torch.complex64, 5, 5), fixture=False),
        case(
            "eigh_equal",
            eigh_parts(),
            f32(4, 4, then=lambda t: torch.ones_like(t)),
            fixture=False,
        ),
        case("eigh_f64", eigh_parts(), f64(33, 33), fixture=False),
        case("eigh_empty", eigh_parts(), f32(2, 0, 0), fixture=False),
        case("eigvalsh", linalg.eigvalsh, f32(5, 5, then=hermitian), train=True, fixture=False),
    ]
    if hasattr(linalg, "matrix_sqrth"):
        cases.append(case("matrix_sqrth", linalg.matrix_sqrth, f32(4, 4, then=definite), fixture=False))
    return cases


def qr_complex_cases() -> list[Case]:
    complex_matrix = tensor(torch.complex64, 2, 5, 3)
    return [
        case("qr_complex", linalg.qr, complex_matrix, fixture=False),
        case("geqrf_complex", torch.geqrf, tensor(torch.complex64, 3, 4), fixture=False),
        case(
            "ormqr_complex",
            lambda x, y: torch.ormqr(*torch.geqrf(x), y, transpose=True),
            complex_matrix,
            complex_matrix,
            fixture=False,
        ),
    ]


CASES = [
    *svd_cases(),
    # Of a matrix of rank 2 any sample of its range tells all.
    case(
        "svd_lowrank",
        lambda x: torch.svd_lowrank(x, q=3)[1][..., :2],
        f32(6, 5, then=singular),
        fixture=False,
    ),
    case(
        "pca_lowrank",
        lambda x: torch.pca_lowrank(x, q=3)[1][..., :2],
        f32(6, 5, then=singular),
        fixture=False,
    ),
    *eigh_cases(),
    *qr_complex_cases(),
    case("cholesky", lambda x: linalg.cholesky_ex(x), f32(2, 4, 4, then=definite), train=True),
    case(
        "cholesky_upper",
        lambda x: linalg.cholesky_ex(x, upper=True).L,
        tensor(torch.complex64, 3, 3, then=definite),
        fixture=False,
    ),
    case("cholesky_solve", torch.cholesky_solve, f32(2, 4, 3), f32(2, 4, 4, then=definite)),
    case(
        "cholesky_solve_upper",
        lambda b, u: torch.cholesky_solve(b, u, upper=True),
        f32(4, 3),
        f32(2, 4, 4, then=definite),
        fixture=False,
    ),
    case("cholesky_inverse", torch.cholesky_inverse, f32(4, 4, then=definite), fixture=False),
    case(
        "solve_triangular",
        lambda a, b: linalg.solve_triangular(a, b, upper=True),
        f32(2, 4, 4, then=definite),
        f32(4, 3),
        train=True,
    ),
    case(
        "solve_triangular_right",
        lambda a, b: linalg.solve_triangular(a, b, upper=False, left=False, unitriangular=True),
        f32(3, 3),
        f32(2, 4, 3),
        fixture=False,
    ),
    case(
        "triangular_solve",
        lambda b, a: torch.triangular_solve(b, a, upper=False, transpose=True),
        f32(4, 2),
        f32(3, 4, 4, then=definite),
        fixture=False,
    ),
    case("inv", lambda x: linalg.inv_ex(x).inverse, f32(2, 4, 4, then=regular), train=True),
    case("det", linalg.det, f32(2, 3, 3, then=regular), train=True),
    case("slogdet", linalg.slogdet, f64(4, 4), train=True, fixture=False),
    case(
        "solve",
        lambda a, b: linalg.solve_ex(a, b).result,
        f32(2, 4, 4, then=regular),
        f32(2, 4, 3),
        train=True,
        fixture=False,
    ),
    case(
        "solve_vector",
        lambda a, b: linalg.solve_ex(a, b).result,
        f32(4, 4, then=regular),
        f32(4),
        fixture=False,
    ),
    case(
        "solve_right",
        lambda a, b: linalg.solve_ex(a, b, left=False).result,
        f32(4, 4, then=regular),
        f32(2, 3, 4),
        fixture=False,
    ),
    case("lu_factor", lambda x: linalg.lu_factor_ex(x), f32(2, 4, 3), fixture=False),
    case("lu", linalg.lu, f32(2, 3, 5), fixture=False),
    case(
        "lu_solve",
        lambda lu, p, b: linalg.lu_solve(lu, p, b, adjoint=True),
        f32(3, 3, then=regular),
        tensor(torch.int32, 3, low=3, high=3),
        f32(3, 2),
        fixture=False,
    ),
    case("lu_factor_large", lambda x: linalg.lu_factor_ex(x), f64(80, 80, then=regular), fixture=False),
    case("ldl_factor", lambda x: linalg.ldl_factor_ex(x), f32(2, 5, 5, then=hermitian)),
    case("ldl_factor_large", lambda x: linalg.ldl_factor_ex(x), f64(40, 40, then=hermitian), fixture=False),
    case("ldl_factor_hollow", lambda x: linalg.ldl_factor_ex(x), f64(3, 4, 4, then=hollow), fixture=False),
    case(
        "ldl_factor_of_zeros",
        lambda x: linalg.ldl_factor_ex(x),
        f32(3, 3, then=lambda t: t * 0),
        fixture=False,
    ),
    case("ldl_solve", lambda a, b: ldl_solve(a, b), f64(2, 5, 5, then=hollow), f64(2, 5, 3), fixture=False),
    case(
        "ldl_solve_of_one_block",
        lambda a, b: ldl_solve(a, b),
        f32(3, 3, then=hollow),
        f32(2, 3, 2),
        fixture=False,
    ),
    case("matrix_exp", linalg.matrix_exp, f32(2, 4, 4), train=True),
    case("matrix_exp_large", linalg.matrix_exp, f64(2, 5, 5, low=-9, high=9), fixture=False),
    case("matrix_exp_zero", linalg.matrix_exp, f32(3, 3, then=lambda t: t * 0), fixture=False),
    case(
        "lu_unpack",
        lambda x: torch.lu_unpack(*linalg.lu_factor_ex(x)[:2]),
        f32(2, 5, 3),
        train=True,
        fixture=False,
    ),
    case("lu_unpack_wide", lambda x: torch.lu_unpack(*linalg.lu_factor_ex(x)[:2]), f32(3, 5), fixture=False),
    case("qr", linalg.qr, f32(2, 5, 3), train=True),
    case("qr_wide", linalg.qr, f32(3, 5), fixture=False),
    case("qr_complete", lambda x: linalg.qr(x, mode="complete"), f32(5, 3), fixture=False),
    case("qr_r", lambda x: linalg.qr(x, mode="r"), f32(2, 4, 3), fixture=False),
    case("qr_f64", linalg.qr, f64(20, 12), fixture=False),
    case("qr_empty", linalg.qr, f32(0, 3), fixture=False),
    case(
        "qr_zero_column",
        linalg.qr,
        f32(4, 3, then=lambda t: t * torch.tensor([1.0, 0.0, 1.0])),
        fixture=False,
    ),
    case("geqrf", torch.geqrf, f32(2, 4, 3), fixture=False),
    case("householder_product", lambda x: linalg.householder_product(*torch.geqrf(x)), f32(5, 3)),
    case("ormqr", lambda x, y: torch.ormqr(*torch.geqrf(x), y), f32(5, 3), f32(5, 2), fixture=False),
    case(
        "ormqr_right_transposed",
        lambda x, y: torch.ormqr(*torch.geqrf(x), y, left=False, transpose=True),
        f32(5, 3),
        f32(2, 5),
        fixture=False,
    ),
]
