//! Attention of few queries, in which each query head has its own copy of a key head, as attention in which the queries of
//! all heads that share a key head are rows of one product.
//!
//! ```text
//! before                                                             after
//! %1 = broadcast_in_dim %k {dimensions=[0,1,3,4]} : bf16[1,8,4,2048,128]
//! %2 = reshape %1 : bf16[1,32,2048,128]                              %1 = reshape %q : bf16[1,8,4,1,128]
//! %3 = dot_general %q, %2 : f32[1,32,1,2048]                         %2 = dot_general %1, %k : f32[1,8,4,1,2048]
//!                                                                    %3 = reshape %2 : f32[1,32,1,2048]
//! ```
//!
//! A step of decoding reads all keys for each token, and libtpu writes the copies before it reads them: sixty times as long for
//! eight sequences. Of many queries the copies are worth it, which is what `repeat_heads` is for. docs/passes.md has the figures.

use crate::manager::Pass;
use crate::query::first;
use torchtpu_ir::op::DotGeneral;
use torchtpu_ir::{Builder, CompileError, Graph, Ints, NodeId, Op, Value};

pub struct ShareHeads {
    /// Rows of the largest product of a key head.
    pub most: i64,
}

impl Pass for ShareHeads {
    fn name(&self) -> &'static str {
        "share_heads"
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        let dots: Vec<NodeId> = graph.node_ids().collect();
        let mut rewrites = 0;
        for dot in dots {
            if let Some(found) = self.find(graph, dot) {
                found.rewrite(graph)?;
                rewrites += 1;
            }
        }
        Ok(rewrites)
    }
}

/// A product of a value with copies of each part of another.
struct Found {
    dot: NodeId,
    /// Conversions and transposes between the copies and the product, the last first.
    chain: Vec<NodeId>,
    copies: Copies,
    /// The dimension of the other operand that the copies' is multiplied with.
    dim: usize,
}

impl ShareHeads {
    fn find(&self, graph: &Graph, dot: NodeId) -> Option<Found> {
        let Op::DotGeneral(op) = graph.op(dot) else { return None };
        let [lhs, mut rhs] = graph.operands(dot)[..] else { return None };
        // The copies' are the rows that come first: all others are behind them.
        let (&dim, &of) = (op.lhs_batch.last()?, op.rhs_batch.last()?);
        let (mut of, mut chain) = (of as usize, Vec::new());
        loop {
            match graph.op(rhs.node) {
                Op::Convert(_) => {}
                Op::Transpose(t) => of = t.permutation[of] as usize,
                _ => break,
            }
            chain.push(rhs.node);
            rhs = graph.operands(rhs.node)[0];
        }
        let copies = Copies::find(graph, rhs, of)?;
        let shape = &graph.ty(lhs).shape;
        let mut free =
            (0..shape.len() as i64).filter(|d| !op.lhs_batch.contains(d) && !op.lhs_contracting.contains(d));
        let rows = free.clone().map(|d| shape[d as usize]).product::<i64>() * copies.times;
        (free.all(|d| d > dim) && rows <= self.most).then_some(Found {
            dot,
            chain,
            copies,
            dim: dim as usize,
        })
    }
}

impl Found {
    fn rewrite(self, graph: &mut Graph) -> Result<(), CompileError> {
        let Op::DotGeneral(op) = graph.op(self.dot).clone() else { return Ok(()) };
        let lhs = graph.operands(self.dot)[0];
        let (ty, loc) = (graph.ty(first(self.dot)).clone(), graph.node(self.dot).loc);
        let mut b = Builder::new(graph);
        b.loc = loc;
        let mut rhs = self.copies.once(&mut b)?;
        for &node in self.chain.iter().rev() {
            rhs = match b.graph.op(node).clone() {
                Op::Transpose(t) => b.transpose(rhs, &t.permutation)?,
                _ => {
                    let dtype = b.dtype(first(node));
                    b.convert(rhs, dtype)?
                }
            };
        }
        let mut shape = b.shape(lhs).to_vec();
        shape[self.dim] /= self.copies.times;
        shape.insert(self.dim + 1, self.copies.times);
        let lhs = b.reshape(lhs, &shape)?;
        let behind = |dims: &Ints| dims.iter().map(|&d| d + i64::from(d > self.dim as i64)).collect();
        let op = DotGeneral {
            lhs_batch: behind(&op.lhs_batch),
            lhs_contracting: behind(&op.lhs_contracting),
            ..*op
        };
        let product = b.dot_general_to(lhs, rhs, op, ty.dtype)?;
        let product = b.reshape(product, &ty.shape)?;
        graph.replace_uses(first(self.dot), product);
        graph.remove_all(&[self.dot]);
        Ok(())
    }
}

/// Copies of each part of a value along a dimension, one beside the other. Unlike `split::Repeated`, which a tile cuts, they
/// may be merged with the dimensions in front, as sequences and heads are in a `bmm`.
struct Copies {
    broadcast: NodeId,
    /// The dimension of the copies in the broadcast.
    at: usize,
    times: i64,
    /// What they are a reshape to, and the dimension there.
    shape: Vec<i64>,
    dim: usize,
}

impl Copies {
    fn find(graph: &Graph, v: Value, dim: usize) -> Option<Copies> {
        let Op::Reshape(_) = graph.op(v.node) else { return None };
        let broadcast = graph.operands(v.node)[0].node;
        let Op::BroadcastInDim(op) = graph.op(broadcast) else { return None };
        let (of, to) = (&graph.ty(first(broadcast)).shape, graph.ty(v).shape.to_vec());
        if to.contains(&0) {
            return None;
        }
        // The dimensions that become this one end where as many elements are behind them as behind it.
        let behind: i64 = to[dim + 1..].iter().product();
        let at = (0..of.len()).rev().find(|&d| of[d] > 1 && of[d + 1..].iter().product::<i64>() == behind)?;
        let source = &graph.ty(graph.operands(broadcast)[0]).shape;
        let copied = op.dimensions.iter().position(|&d| d as usize == at).is_none_or(|d| source[d] == 1);
        let times = of[at];
        (copied && to[dim] % times == 0).then_some(Copies { broadcast, at, times, shape: to, dim })
    }

    /// The value with one of each.
    fn once(&self, b: &mut Builder<'_>) -> Result<Value, CompileError> {
        let Op::BroadcastInDim(op) = b.graph.op(self.broadcast).clone() else {
            return Ok(first(self.broadcast));
        };
        let source = b.graph.operands(self.broadcast)[0];
        let mut shape = b.shape(first(self.broadcast)).to_vec();
        shape[self.at] = 1;
        let one = b.broadcast_in_dim(source, &shape, &op.dimensions)?;
        let mut shape = self.shape.clone();
        shape[self.dim] /= self.times;
        b.reshape(one, &shape)
    }
}
