//! Products of one row as products of several that are alike.
//!
//! ```text
//! before                                              after
//! %1 = dot_general %0, %w : bf16[1,14336]             %1 = concatenate %0, %0 : bf16[2,4096]
//!                                                     %2 = dot_general %1, %w : bf16[2,14336]
//!                                                     %3 = slice %2 : bf16[1,14336]
//! ```
//!
//! libtpu has a product of one row computed by the vector unit, element by element, two to ten times as long as the matrix unit
//! takes to read the same weight. docs/passes.md has the figures.

use crate::manager::Pass;
use crate::query::first;
use torchtpu_ir::op::DotGeneral;
use torchtpu_ir::{Builder, CompileError, Graph, NodeId, Op};

pub struct WidenRows {
    /// Elements of the smallest other operand that is worth it.
    pub least: i64,
}

/// Of a matrix two rows are enough; of a batch of them so many as a tile has are better.
const ROWS: usize = 2;
const BATCHED: usize = 8;

impl Pass for WidenRows {
    fn name(&self) -> &'static str {
        "widen_rows"
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        let dots: Vec<NodeId> = graph.node_ids().collect();
        let mut rewrites = 0;
        for dot in dots {
            if let Some(row) = self.row(graph, dot) {
                widen(graph, dot, row)?;
                rewrites += 1;
            }
        }
        Ok(rewrites)
    }
}

/// The operand that is a row.
#[derive(Clone, Copy)]
enum Row {
    Lhs,
    Rhs,
}

impl WidenRows {
    fn row(&self, graph: &Graph, id: NodeId) -> Option<Row> {
        let Op::DotGeneral(op) = graph.op(id) else { return None };
        let [lhs, rhs] = graph.operands(id)[..] else { return None };
        let (lhs, rhs) = (graph.ty(lhs), graph.ty(rhs));
        if !lhs.dtype.is_float() || !rhs.dtype.is_float() {
            return None;
        }
        let inner = |shape: &[i64], batch: &[i64], contracting: &[i64]| -> i64 {
            batch.iter().chain(contracting).map(|&d| shape[d as usize]).product()
        };
        let row = lhs.elements() == inner(&lhs.shape, &op.lhs_batch, &op.lhs_contracting);
        let column = rhs.elements() == inner(&rhs.shape, &op.rhs_batch, &op.rhs_contracting);
        match (row, column) {
            (true, false) if rhs.elements() >= self.least => Some(Row::Lhs),
            (false, true) if lhs.elements() >= self.least => Some(Row::Rhs),
            _ => None,
        }
    }
}

fn widen(graph: &mut Graph, id: NodeId, row: Row) -> Result<(), CompileError> {
    let Op::DotGeneral(op) = graph.op(id).clone() else { return Ok(()) };
    let mut op: DotGeneral = *op;
    let (ty, loc, mut operands) = (graph.ty(first(id)).clone(), graph.node(id).loc, graph.operands(id));
    let mut b = Builder::new(graph);
    b.loc = loc;
    let (operand, batch, contracting) = match row {
        Row::Lhs => (&mut operands[0], &mut op.lhs_batch, &mut op.lhs_contracting),
        Row::Rhs => (&mut operands[1], &mut op.rhs_batch, &mut op.rhs_contracting),
    };
    // A dimension of its own, in front of the contracted ones; those of one element stay.
    let mut shape = b.shape(*operand).to_vec();
    let at = batch.iter().map(|&d| d as usize + 1).max().unwrap_or(0);
    shape.insert(at, 1);
    for dim in batch.iter_mut().chain(contracting.iter_mut()) {
        *dim += i64::from(*dim >= at as i64);
    }
    let one = b.reshape(*operand, &shape)?;
    let count = if batch.is_empty() { ROWS } else { BATCHED };
    *operand = b.concatenate(&vec![one; count], at)?;
    // The new dimension is the first of the row's free ones, which are behind those of the batch, and of the other operand.
    let batch = op.lhs_batch.len();
    let before = match row {
        Row::Lhs => batch,
        Row::Rhs => batch + b.rank(operands[0]) - op.lhs_batch.len() - op.lhs_contracting.len(),
    };
    let product = b.dot_general_to(operands[0], operands[1], op, ty.dtype)?;
    let product = b.slice_dim(product, before, 0, 1, 1)?;
    let product = b.reshape(product, &ty.shape)?;
    graph.replace_uses(first(id), product);
    graph.remove_all(&[id]);
    Ok(())
}
