//! Grouped matrix products of mixture-of-experts layers: rows sorted by expert, each multiplied by its expert's
//! weight.
//!
//! A row's expert is data, so each product is one dense dot over the pair (expert, inner dimension) in which every
//! row is zero outside its own expert's block: a static shape, at the price of `experts` times the arithmetic.

use crate::cx::Cx;
use crate::table::{Result, Row, Rule::*, row};
use torchtpu_ir::op::DotGeneral;
use torchtpu_ir::{CompileError, DType, Direction, Precision, TensorType, Value};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("aten._grouped_mm.default", One(aten_grouped_mm)),
    row("transformers.grouped_mm_fallback.default", One(grouped_mm)),
    row("transformers.grouped_mm_fallback_backward.default", Many(grouped_mm_backward)),
];

/// `[rows, experts]`: true where the row belongs to the expert. `offs` holds cumulative row counts; rows beyond the
/// last count belong to none.
fn membership(cx: &mut Cx<'_>, offs: Value, rows: i64) -> Result<Value> {
    let experts = cx.b.shape(offs)[0];
    let shape = [rows, experts];
    let ends = cx.b.convert(offs, DType::I64)?;
    let zero = cx.b.scalar(DType::I64, 0.0);
    let starts = cx.b.slice_dim(ends, 0, 0, experts - 1, 1)?;
    let starts = cx.b.pad(starts, zero, &[1], &[0], &[0])?;
    let row = cx.b.iota(TensorType::new(DType::I64, shape), 0)?;
    let ends = cx.b.broadcast_in_dim(ends, &shape, &[1])?;
    let starts = cx.b.broadcast_in_dim(starts, &shape, &[1])?;
    let before_end = cx.b.compare(Direction::Lt, row, ends)?;
    let after_start = cx.b.compare(Direction::Ge, row, starts)?;
    cx.b.and(before_end, after_start)
}

/// `[rows, experts * inner]`: `a` in the block of the row's expert, zero elsewhere.
fn spread(cx: &mut Cx<'_>, a: Value, member: Value) -> Result<Value> {
    let (rows, inner) = (cx.b.shape(a)[0], cx.b.shape(a)[1]);
    let experts = cx.b.shape(member)[1];
    let shape = [rows, experts, inner];
    let member = cx.b.broadcast_in_dim(member, &shape, &[0, 1])?;
    let a = cx.b.broadcast_in_dim(a, &shape, &[0, 2])?;
    let zero = cx.b.full_like(a, 0.0);
    let blocks = cx.b.select(member, a, zero)?;
    cx.b.reshape(blocks, &[rows, experts * inner])
}

fn dot(cx: &mut Cx<'_>, a: Value, b: Value, contract: (i64, i64)) -> Result<Value> {
    let precision = if cx.b.dtype(a) == DType::F32 { cx.settings.precision } else { Precision::Default };
    let dims = DotGeneral {
        lhs_batch: vec![],
        rhs_batch: vec![],
        lhs_contracting: vec![contract.0],
        rhs_contracting: vec![contract.1],
        precision,
    };
    cx.b.dot_general(a, b, dims)
}

/// `out[r] = input[r] @ weight[expert of r]`; input `[rows, k]`, weight `[experts, k, n]`.
fn product(cx: &mut Cx<'_>, input: Value, weight: Value, member: Value) -> Result<Value> {
    let (experts, k, n) = (cx.b.shape(weight)[0], cx.b.shape(weight)[1], cx.b.shape(weight)[2]);
    let blocks = spread(cx, input, member)?;
    let weight = cx.b.reshape(weight, &[experts * k, n])?;
    dot(cx, blocks, weight, (1, 0))
}

/// `transformers::grouped_mm_fallback(Tensor input, Tensor weight, Tensor offs) -> Tensor`
fn grouped_mm(cx: &mut Cx<'_>) -> Result<Value> {
    let (input, weight, offs) = (cx.tensor("input")?, cx.tensor("weight")?, cx.tensor("offs")?);
    let member = membership(cx, offs, cx.b.shape(input)[0])?;
    product(cx, input, weight, member)
}

/// `transformers::grouped_mm_fallback_backward(Tensor input, Tensor weight, Tensor offs, Tensor grad_output)`
/// gives the gradients of input and weight.
fn grouped_mm_backward(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let (input, weight, offs) = (cx.tensor("input")?, cx.tensor("weight")?, cx.tensor("offs")?);
    let grad = cx.tensor("grad_output")?;
    let shape = cx.b.shape(weight).to_vec();
    let member = membership(cx, offs, cx.b.shape(input)[0])?;
    let transposed = cx.b.transpose(weight, &[0, 2, 1])?;
    let grad_input = product(cx, grad, transposed, member)?;
    let blocks = spread(cx, input, member)?;
    let grad_weight = dot(cx, blocks, grad, (0, 0))?;
    let grad_weight = cx.b.reshape(grad_weight, &shape)?;
    Ok(vec![grad_input, grad_weight])
}

/// `aten::_grouped_mm(Tensor self, Tensor mat2, Tensor? offs, Tensor? bias, ScalarType? out_dtype) -> Tensor`, in
/// its form of 2-d rows and 3-d weights.
fn aten_grouped_mm(cx: &mut Cx<'_>) -> Result<Value> {
    let (input, weight) = (cx.tensor("self")?, cx.tensor("mat2")?);
    let out = cx.out(0)?;
    match (cx.opt_tensor("offs")?, cx.b.rank(input), cx.b.rank(weight)) {
        (Some(offs), 2, 3) if cx.is_none("bias") => {
            let member = membership(cx, offs, cx.b.shape(input)[0])?;
            let result = product(cx, input, weight, member)?;
            cx.convert(result, out.dtype)
        }
        _ => Err(CompileError::lowering("this form of _grouped_mm is not supported")
            .help("2-d rows, 3-d weights, offs and no bias are")),
    }
}
