//! Collectives of `torch.distributed._functional_collectives`, over the replicas of the program.

use crate::cx::Cx;
use crate::table::{Result, Row, Rule::*, row};
use torchtpu_ir::op::AllReduce;
use torchtpu_ir::{BinaryOp, CompileError, ReduceKind, ReplicaGroups, Value};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("_c10d_functional.all_reduce.default", One(all_reduce)),
    row("_c10d_functional.all_reduce_coalesced.default", Many(all_reduce_coalesced)),
    row("_c10d_functional.wait_tensor.default", One(wait_tensor)),
    row("_c10d_functional.wait_tensors.default", Many(wait_tensors)),
];

/// The replica groups of a process group, and how many ranks it has.
fn groups(cx: &Cx<'_>) -> Result<ReplicaGroups> {
    let name = cx.opt_string("group_name")?.unwrap_or_default();
    cx.settings.groups.get(name).copied().ok_or_else(|| {
        CompileError::lowering(format!("process group `{name}` does not have all ranks of the world"))
            .help("collectives are compiled over all ranks: pass group=torch.distributed.group.WORLD")
    })
}

fn reduced(cx: &mut Cx<'_>, v: Value, groups: ReplicaGroups) -> Result<Value> {
    let (kind, mean) = match cx.opt_string("reduce_op")?.unwrap_or_default() {
        "sum" => (ReduceKind::Add, false),
        "avg" => (ReduceKind::Add, true),
        "product" => (ReduceKind::Mul, false),
        "max" => (ReduceKind::Max, false),
        "min" => (ReduceKind::Min, false),
        "band" => (ReduceKind::And, false),
        "bor" => (ReduceKind::Or, false),
        "bxor" => (ReduceKind::Xor, false),
        other => {
            return Err(CompileError::lowering(format!("reduce_op `{other}` is not supported"))
                .help("sum, avg, product, max, min, band, bor and bxor are"));
        }
    };
    let sum = cx.b.all_reduce(AllReduce { groups, kind }, v)?;
    if mean { cx.b.binary_const(BinaryOp::Divide, sum, groups.size as f64) } else { Ok(sum) }
}

/// `all_reduce(input, reduce_op, group_name)`.
fn all_reduce(cx: &mut Cx<'_>) -> Result<Value> {
    let (v, groups) = (cx.tensor("input")?, groups(cx)?);
    reduced(cx, v, groups)
}

/// `all_reduce_coalesced(inputs, reduce_op, group_name)`.
fn all_reduce_coalesced(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let (list, groups) = (cx.tensors("inputs")?, groups(cx)?);
    list.into_iter().map(|v| reduced(cx, v, groups)).collect()
}

/// `wait_tensor(tensor)`: when a transfer is over is for XLA to see to.
fn wait_tensor(cx: &mut Cx<'_>) -> Result<Value> {
    cx.tensor("tensor")
}

/// `wait_tensors(tensors)`.
fn wait_tensors(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    cx.tensors("tensors")
}
