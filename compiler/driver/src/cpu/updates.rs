//! Updates of a part of a tensor by what is read from another part of the same tensor, as of `x[1:] = x[:-1].flip(0)`.
//!
//! The plugin does a `dynamic_update_slice` in place, and fuses the computation of the update into it. Its check that
//! no element is then read after it was overwritten compares instructions, and misses a read through another shape
//! of the same memory. Such an update is said as a selection between two tensors, which is never done in place:
//!
//! ```text
//! %3 = dynamic_update_slice %x, %2, %i        %3 = dynamic_update_slice zeros, %2, %i
//!                                             %4 = dynamic_update_slice false, true, %i
//!                                             %5 = select %4, %3, %x
//! ```

use torchtpu_ir::{Builder, CompileError, DType, Graph, NodeId, Op, Region, Value};

/// The graph with these updates rewritten, in regions too; None where it has none.
pub fn separate(graph: &Graph) -> Result<Option<Graph>, CompileError> {
    inside(graph, false)
}

/// `inlined`: the plugin puts this body where it is called, so that any two parameters may be one memory.
fn inside(graph: &Graph, inlined: bool) -> Result<Option<Graph>, CompileError> {
    let mut changed: Option<Graph> = None;
    for id in graph.node_ids() {
        let op = graph.op(id);
        let regions = op.regions();
        for (position, region) in regions.iter().enumerate() {
            if let Some(body) = inside(region, matches!(op, Op::Call(_)))? {
                let node = changed.get_or_insert_with(|| graph.clone()).node_mut(id);
                *node.op.regions_mut()[position] = Region::new(body);
            }
        }
        if matches!(op, Op::DynamicUpdateSlice(_)) && overlaps(graph, id, inlined) {
            select(changed.get_or_insert_with(|| graph.clone()), id)?;
        }
    }
    Ok(changed)
}

fn select(graph: &mut Graph, id: NodeId) -> Result<(), CompileError> {
    let mut b = Builder::new(graph);
    b.loc = b.graph.node(id).loc;
    let operands = b.graph.operands(id);
    let (base, update, starts) = (operands[0], operands[1], &operands[2..]);
    let zeros = b.full_like(base, 0.0);
    let placed = b.dynamic_update_slice(zeros, update, starts)?;
    let (all, part) = (b.ty(base).with_dtype(DType::Bool), b.ty(update).with_dtype(DType::Bool));
    let (nowhere, everywhere) = (b.full_int(&all, 0), b.full_int(&part, 1));
    let written = b.dynamic_update_slice(nowhere, everywhere, starts)?;
    let selected = b.select(written, placed, base)?;
    b.graph.replace_uses(Value { node: id, result: 0 }, selected);
    b.graph.remove(id);
    Ok(())
}

/// Does the update depend on what the updated tensor is a view of?
fn overlaps(graph: &Graph, id: NodeId, inlined: bool) -> bool {
    let operands = graph.operands(id);
    let roots = roots(graph, operands[0].node);
    let of_caller = inlined && roots.iter().any(|&root| matches!(graph.op(root), Op::Parameter(_)));
    let found =
        |node: NodeId| roots.contains(&node) || of_caller && matches!(graph.op(node), Op::Parameter(_));
    let mut seen = vec![false; graph.bound()];
    let mut stack = vec![operands[1].node];
    while let Some(node) = stack.pop() {
        if std::mem::replace(&mut seen[node.index()], true) {
            continue;
        }
        if found(node) {
            return true;
        }
        stack.extend(graph.operands(node).iter().map(|v| v.node));
    }
    false
}

/// The nodes in whose memory the plugin may keep a value. A constant is copied for each use.
fn roots(graph: &Graph, node: NodeId) -> Vec<NodeId> {
    let mut roots = Vec::new();
    let mut stack = vec![node];
    while let Some(node) = stack.pop() {
        let operands = graph.operands(node);
        match graph.op(node) {
            Op::Constant(_) | Op::Iota(_) => {}
            Op::Reshape(_) | Op::Transpose(_) | Op::BitcastConvert(_) => stack.push(operands[0].node),
            Op::DynamicUpdateSlice(_) => {
                roots.push(node);
                stack.push(operands[0].node);
            }
            Op::Call(_) => {
                roots.push(node);
                stack.extend(operands.iter().map(|v| v.node));
            }
            _ => roots.push(node),
        }
    }
    roots
}
