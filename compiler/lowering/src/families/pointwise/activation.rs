//! Activation functions, in the type PyTorch computes them in.

use crate::cx::Cx;
use crate::table::Result;
use torchtpu_ir::{BinaryOp, Direction, UnaryOp, Value};

/// `max(x, 0)`, NaN kept.
pub fn relu(cx: &mut Cx<'_>) -> Result<Value> {
    let v = cx.tensor("self")?;
    cx.b.binary_const(BinaryOp::Maximum, v, 0.0)
}

/// `x * sigmoid(x)`
pub fn silu(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    let gate = cx.b.unary(UnaryOp::Logistic, v)?;
    cx.b.mul(v, gate)
}

/// `x Φ(x)`, or `x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))` where `approximate` is "tanh".
pub fn gelu(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    let gate = if cx.opt_string("approximate")? == Some("tanh") {
        let square = cx.b.mul(v, v)?;
        let cube = cx.b.mul(square, v)?;
        let cube = cx.b.binary_const(BinaryOp::Multiply, cube, 0.044715)?;
        let inner = cx.b.add(v, cube)?;
        let scale = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
        let inner = cx.b.binary_const(BinaryOp::Multiply, inner, scale)?;
        cx.b.unary(UnaryOp::Tanh, inner)?
    } else {
        let inner = cx.b.binary_const(BinaryOp::Multiply, v, std::f64::consts::FRAC_1_SQRT_2)?;
        cx.b.unary(UnaryOp::Erf, inner)?
    };
    let gate = cx.b.binary_const(BinaryOp::Add, gate, 1.0)?;
    let half = cx.b.binary_const(BinaryOp::Multiply, v, 0.5)?;
    cx.b.mul(half, gate)
}

/// `scale * x`, and `scale * alpha * expm1(input_scale * x)` below zero.
pub fn elu(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    let (alpha, scale) = (cx.float("alpha")?, cx.float("scale")?);
    let input_scale = cx.float("input_scale")?;
    let inner = cx.b.binary_const(BinaryOp::Multiply, v, input_scale)?;
    let below = cx.b.unary(UnaryOp::ExponentialMinusOne, inner)?;
    let below = cx.b.binary_const(BinaryOp::Multiply, below, alpha * scale)?;
    let above = cx.b.binary_const(BinaryOp::Multiply, v, scale)?;
    let negative = cx.b.compare_const(Direction::Lt, v, 0.0)?;
    cx.b.select(negative, below, above)
}

/// `x`, and `negative_slope * x` below zero.
pub fn leaky_relu(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    let slope = cx.float("negative_slope")?;
    let below = cx.b.binary_const(BinaryOp::Multiply, v, slope)?;
    let positive = cx.b.compare_const(Direction::Gt, v, 0.0)?;
    cx.b.select(positive, v, below)
}

/// `log(1 + exp(beta * x)) / beta`, and `x` where `beta * x` is beyond `threshold`.
pub fn softplus(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    let (beta, threshold) = (cx.float("beta")?, cx.float("threshold")?);
    let inner = cx.b.binary_const(BinaryOp::Multiply, v, beta)?;
    let soft = cx.b.unary(UnaryOp::Exponential, inner)?;
    let soft = cx.b.unary(UnaryOp::LogPlusOne, soft)?;
    let soft = cx.b.binary_const(BinaryOp::Divide, soft, beta)?;
    let linear = cx.b.compare_const(Direction::Gt, inner, threshold)?;
    cx.b.select(linear, v, soft)
}
