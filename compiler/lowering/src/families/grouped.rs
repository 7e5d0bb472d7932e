//! Grouped matrix products of mixture-of-experts layers: rows sorted by expert, each multiplied by its expert's
//! weight.
//!
//! A row's expert is data, so each product is one dense dot over the pair (expert, inner dimension) in which every
//! row is zero outside its own expert's block: a static shape, at the price of `experts` times the arithmetic.

use super::linear::dot_wide;
use crate::cx::Cx;
use crate::table::{Result, Row, Rule::*, row};
use torchtpu_ir::{CompileError, DType, Direction, TensorType, Value};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("aten._grouped_mm.default", One(aten_grouped_mm)),
    row("transformers.grouped_mm_fallback.default", One(grouped_mm)),
    row("transformers.grouped_mm_fallback_backward.default", Many(grouped_mm_backward)),
];

/// `[rows, experts]`: true where the row belongs to the expert. `offs` holds cumulative row counts; rows beyond the
/// last count belong to none.
pub fn membership(cx: &mut Cx<'_>, offs: Value, rows: i64) -> Result<Value> {
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

/// `out[r] = input[r] @ weight[group of r]`, summed in `dtype`; input `[rows, k]`, weight `[groups, k, n]`.
pub fn rows_by_group(
    cx: &mut Cx<'_>,
    input: Value,
    weight: Value,
    member: Value,
    dtype: DType,
) -> Result<Value> {
    let (groups, k, n) = (cx.b.shape(weight)[0], cx.b.shape(weight)[1], cx.b.shape(weight)[2]);
    let blocks = spread(cx, input, member)?;
    let weight = cx.b.reshape(weight, &[groups * k, n])?;
    dot_wide(cx, blocks, weight, 0, 1, 0, dtype)
}

fn product(cx: &mut Cx<'_>, input: Value, weight: Value, member: Value) -> Result<Value> {
    let dtype = cx.b.dtype(input);
    rows_by_group(cx, input, weight, member, dtype)
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
    let dtype = cx.b.dtype(grad);
    let grad_weight = dot_wide(cx, blocks, grad, 0, 0, 0, dtype)?;
    let grad_weight = cx.b.reshape(grad_weight, &shape)?;
    Ok(vec![grad_input, grad_weight])
}

/// `aten::_grouped_mm(Tensor self, Tensor mat2, Tensor? offs, Tensor? bias, ScalarType? out_dtype) -> Tensor`.
/// `offs` divides the dimension that two of self, mat2 and the result share without groups of their own.
fn aten_grouped_mm(cx: &mut Cx<'_>) -> Result<Value> {
    let (a, b) = (cx.tensor("self")?, cx.tensor("mat2")?);
    let (shape_a, shape_b) = (cx.b.shape(a).to_vec(), cx.b.shape(b).to_vec());
    let dtype = cx.out(0)?.dtype;
    if !cx.is_none("bias") {
        return Err(CompileError::lowering("a bias of _grouped_mm is not supported")
            .help("PyTorch refuses it as well; add it to the result"));
    }
    match (cx.opt_tensor("offs")?, shape_a.len(), shape_b.len()) {
        // Rows of self: each has its matrix.
        (Some(offs), 2, 3) => {
            let member = membership(cx, offs, shape_a[0])?;
            rows_by_group(cx, a, b, member, dtype)
        }
        // Columns of mat2: the same, transposed.
        (Some(offs), 3, 2) => {
            let member = membership(cx, offs, shape_b[1])?;
            let (columns, weight) = (cx.b.transpose(b, &[1, 0])?, cx.b.transpose(a, &[0, 2, 1])?);
            let transposed = rows_by_group(cx, columns, weight, member, dtype)?;
            cx.b.transpose(transposed, &[1, 0])
        }
        // The inner dimension: a product of each part of it.
        (Some(offs), 2, 2) => {
            let member = membership(cx, offs, shape_a[1])?;
            let groups = cx.b.shape(member)[1];
            let blocks = spread(cx, b, member)?;
            let v = dot_wide(cx, a, blocks, 0, 1, 0, dtype)?;
            let v = cx.b.reshape(v, &[shape_a[0], groups, shape_b[1]])?;
            cx.b.transpose(v, &[1, 0, 2])
        }
        (None, 3, 3) => dot_wide(cx, a, b, 1, 2, 1, dtype),
        _ => Err(CompileError::lowering("this form of _grouped_mm is not supported").help(
            "two 3-d tensors without offs are, and tensors of 2 or 3 dimensions, one of them 2, with offs",
        )),
    }
}
