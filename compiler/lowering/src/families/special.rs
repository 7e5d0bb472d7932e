//! Special functions that PyTorch has no decomposition for: Bessel and Airy functions, orthogonal polynomials, the
//! incomplete gamma functions. Those that are one IR operation or nearly so are with the pointwise ones.

mod bessel;
pub(crate) mod gamma;
mod polynomial;

use crate::cx::Cx;
use crate::families::pointwise::{binary_opmath, opmath};
use crate::table::{Result, Row, Rule::*, row};
use polynomial::{Chebyshev, Family, polynomial};
use torchtpu_ir::Value;

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("aten.special_bessel_j0.default", One(|cx| opmath(cx, bessel::j0))),
    row("aten.special_bessel_j1.default", One(|cx| opmath(cx, bessel::j1))),
    row("aten.special_bessel_y0.default", One(|cx| opmath(cx, bessel::y0))),
    row("aten.special_bessel_y1.default", One(|cx| opmath(cx, bessel::y1))),
    row("aten.special_modified_bessel_k0.default", One(|cx| opmath(cx, bessel::k0))),
    row("aten.special_modified_bessel_k1.default", One(|cx| opmath(cx, bessel::k1))),
    row("aten.special_scaled_modified_bessel_k0.default", One(|cx| of_x(cx, bessel::scaled_k0))),
    row("aten.special_scaled_modified_bessel_k1.default", One(|cx| of_x(cx, bessel::scaled_k1))),
    row("aten.special_spherical_bessel_j0.default", One(|cx| of_x(cx, bessel::spherical_j0))),
    row("aten.special_airy_ai.default", One(|cx| of_x(cx, bessel::airy_ai))),

    row("aten.igamma.default", One(|cx| binary_opmath(cx, gamma::igamma))),
    row("aten.igammac.default", One(|cx| binary_opmath(cx, gamma::igammac))),

    row("aten.special_chebyshev_polynomial_t.default", One(|cx| polynomial(cx, Family::Chebyshev(Chebyshev::T)))),
    row("aten.special_chebyshev_polynomial_t.n_scalar", One(|cx| polynomial(cx, Family::Chebyshev(Chebyshev::T)))),
    row("aten.special_chebyshev_polynomial_t.x_scalar", One(|cx| polynomial(cx, Family::Chebyshev(Chebyshev::T)))),
    row("aten.special_chebyshev_polynomial_u.default", One(|cx| polynomial(cx, Family::Chebyshev(Chebyshev::U)))),
    row("aten.special_chebyshev_polynomial_u.n_scalar", One(|cx| polynomial(cx, Family::Chebyshev(Chebyshev::U)))),
    row("aten.special_chebyshev_polynomial_u.x_scalar", One(|cx| polynomial(cx, Family::Chebyshev(Chebyshev::U)))),
    row("aten.special_chebyshev_polynomial_v.default", One(|cx| polynomial(cx, Family::Chebyshev(Chebyshev::V)))),
    row("aten.special_chebyshev_polynomial_v.n_scalar", One(|cx| polynomial(cx, Family::Chebyshev(Chebyshev::V)))),
    row("aten.special_chebyshev_polynomial_v.x_scalar", One(|cx| polynomial(cx, Family::Chebyshev(Chebyshev::V)))),
    row("aten.special_chebyshev_polynomial_w.default", One(|cx| polynomial(cx, Family::Chebyshev(Chebyshev::W)))),
    row("aten.special_chebyshev_polynomial_w.n_scalar", One(|cx| polynomial(cx, Family::Chebyshev(Chebyshev::W)))),
    row("aten.special_chebyshev_polynomial_w.x_scalar", One(|cx| polynomial(cx, Family::Chebyshev(Chebyshev::W)))),
    row("aten.special_shifted_chebyshev_polynomial_t.default", One(|cx| polynomial(cx, Family::Shifted(Chebyshev::T)))),
    row("aten.special_shifted_chebyshev_polynomial_t.n_scalar", One(|cx| polynomial(cx, Family::Shifted(Chebyshev::T)))),
    row("aten.special_shifted_chebyshev_polynomial_t.x_scalar", One(|cx| polynomial(cx, Family::Shifted(Chebyshev::T)))),
    row("aten.special_shifted_chebyshev_polynomial_u.default", One(|cx| polynomial(cx, Family::Shifted(Chebyshev::U)))),
    row("aten.special_shifted_chebyshev_polynomial_u.n_scalar", One(|cx| polynomial(cx, Family::Shifted(Chebyshev::U)))),
    row("aten.special_shifted_chebyshev_polynomial_u.x_scalar", One(|cx| polynomial(cx, Family::Shifted(Chebyshev::U)))),
    row("aten.special_shifted_chebyshev_polynomial_v.default", One(|cx| polynomial(cx, Family::Shifted(Chebyshev::V)))),
    row("aten.special_shifted_chebyshev_polynomial_v.n_scalar", One(|cx| polynomial(cx, Family::Shifted(Chebyshev::V)))),
    row("aten.special_shifted_chebyshev_polynomial_v.x_scalar", One(|cx| polynomial(cx, Family::Shifted(Chebyshev::V)))),
    row("aten.special_shifted_chebyshev_polynomial_w.default", One(|cx| polynomial(cx, Family::Shifted(Chebyshev::W)))),
    row("aten.special_shifted_chebyshev_polynomial_w.n_scalar", One(|cx| polynomial(cx, Family::Shifted(Chebyshev::W)))),
    row("aten.special_shifted_chebyshev_polynomial_w.x_scalar", One(|cx| polynomial(cx, Family::Shifted(Chebyshev::W)))),
    row("aten.special_hermite_polynomial_h.default", One(|cx| polynomial(cx, Family::HermiteH))),
    row("aten.special_hermite_polynomial_h.n_scalar", One(|cx| polynomial(cx, Family::HermiteH))),
    row("aten.special_hermite_polynomial_h.x_scalar", One(|cx| polynomial(cx, Family::HermiteH))),
    row("aten.special_hermite_polynomial_he.default", One(|cx| polynomial(cx, Family::HermiteHe))),
    row("aten.special_hermite_polynomial_he.n_scalar", One(|cx| polynomial(cx, Family::HermiteHe))),
    row("aten.special_hermite_polynomial_he.x_scalar", One(|cx| polynomial(cx, Family::HermiteHe))),
    row("aten.special_laguerre_polynomial_l.default", One(|cx| polynomial(cx, Family::Laguerre))),
    row("aten.special_laguerre_polynomial_l.n_scalar", One(|cx| polynomial(cx, Family::Laguerre))),
    row("aten.special_laguerre_polynomial_l.x_scalar", One(|cx| polynomial(cx, Family::Laguerre))),
    row("aten.special_legendre_polynomial_p.default", One(|cx| polynomial(cx, Family::Legendre))),
    row("aten.special_legendre_polynomial_p.n_scalar", One(|cx| polynomial(cx, Family::Legendre))),
    row("aten.special_legendre_polynomial_p.x_scalar", One(|cx| polynomial(cx, Family::Legendre))),
];

/// A formula of what some schemas call `x`.
fn of_x(cx: &mut Cx<'_>, form: fn(&mut Cx<'_>, Value) -> Result<Value>) -> Result<Value> {
    let dtype = cx.out(0)?.dtype;
    let x = cx.operand("x", dtype.opmath())?;
    let v = form(cx, x)?;
    cx.b.convert(v, dtype)
}
