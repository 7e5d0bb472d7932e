//! Sums of gradients that stay as they are, each begun when it can be and done when the links are: libtpu's scheduler would
//! compute all of them at the end, where nothing is left that hides them.
//!
//! ```text
//! before                                              after
//! %5 = dot_general %dy, %x : f32[4096,4096]           %5 = dot_general %dy, %x : f32[4096,4096]
//! %6 = reduce_scatter %5 : f32[1024,4096]             %6 = reduce_scatter %5 : f32[1024,4096]
//! ... the rest of the backward, of %next              %7, %8 = optimization_barrier %next, %5
//!                                                     ... more of it, of %7
//!                                                     %9, %10 = optimization_barrier %later, %6
//!                                                     ... the rest, of %9
//! ```
//!
//! A gradient is computed before the next one's operand is used, and its sum is there before the operand of one that is so much
//! later that the transfer takes no longer than the work between. Small sums, for which the core waits, come last: in front of
//! others they would wait for the links. A backward that gathers its weights beside the sums stays as it is where the links cannot
//! keep up with both.
//!
//! It earns its place where libtpu runs sums beside the core, as on the SparseCores of v5p and v6e; docs/overlap.md has the figures.
//! Elsewhere `ring_gradients` takes them apart.

use super::has_collectives;
use super::order::{Chain, Step, Waits, bind, reach, ready, taken};
use super::region::feeds_products;
use crate::analysis::cost::{flops, matrix_flops, transcendentals};
use crate::manager::{Pass, Remark};
use crate::query::first;
use torchtpu_ir::op::OptimizationBarrier;
use torchtpu_ir::{CompileError, Graph, NodeId, Op, Value};

pub struct EarlySums {
    /// Bytes of the smallest gradient that is worth a place of its own.
    pub least: i64,
    /// Operations of products that take as long as a byte of a transfer, which has one direction of a ring.
    pub balance: f64,
    /// Operations of products that take as long as one of a vector unit.
    pub vector: f64,
}

/// Of the peak, what a program reaches: the rest is between the products.
const SHARE: f64 = 0.9;

/// Of the vector units', what is between the products reaches: attention's scores above all.
const VECTOR_SHARE: f64 = 0.5;

/// Vector operations of a transcendental function.
const SLOW: f64 = 8.0;

/// What is due too early is waited for: transfers count as so much longer than they are.
const MARGIN: f64 = 1.5;

/// A sum over devices and the product it is of.
struct Sum {
    sum: NodeId,
    product: NodeId,
    takes: Vec<Value>,
}

impl Pass for EarlySums {
    fn name(&self) -> &'static str {
        "early_sums"
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        self.run_and_tell(graph, &mut Vec::new())
    }

    fn run_and_tell(&self, graph: &mut Graph, remarks: &mut Vec<Remark>) -> Result<usize, CompileError> {
        if !has_collectives(graph) {
            return Ok(0);
        }
        let mut sums: Vec<Sum> =
            graph.topological().into_iter().filter_map(|id| self.sum(graph, id)).collect();
        let held = |sum: &Sum| {
            let mut users = graph.users(sum.product).chain(graph.users(sum.sum));
            users.any(|(user, ..)| is_barrier(graph, user))
        };
        if sums.iter().any(held) {
            return Ok(0); // They have their order.
        }
        sums.retain(|sum| !feeds_products(graph, sum.sum));
        if sums.len() < 2 {
            return Ok(0);
        }
        if !self.links_keep_up(graph, &sums) {
            for sum in &sums {
                let text = "stays: from the first gradient on the links have more to do than the core";
                remarks.push(Remark::of(graph, sum.sum, text));
            }
            return Ok(0);
        }
        let chains = self.chains(graph, &sums);
        for (sum, chain) in sums.iter().zip(&chains) {
            let last = chain.steps.last().copied().flatten();
            let there = match last.is_some_and(|step| step.sum == first(sum.sum)) {
                true => format!("{} gradients later", chain.steps.len()),
                false => "at the end".to_owned(),
            };
            let text = format!("is computed before the next gradient, and there {there}");
            remarks.push(Remark::of(graph, sum.sum, text));
        }
        Ok(bind(graph, &chains, Waits::Weights)? + self.last(graph, &sums))
    }
}

impl EarlySums {
    /// The sum of a product.
    fn sum(&self, graph: &Graph, id: NodeId) -> Option<Sum> {
        let (Op::ReduceScatter(_) | Op::AllReduce(_)) = graph.op(id) else { return None };
        let mut v = graph.operands(id)[0];
        if graph.ty(v).bytes() < self.least {
            return None;
        }
        while let Op::Convert(_) | Op::Reshape(_) | Op::Transpose(_) = graph.op(v.node) {
            v = graph.operands(v.node)[0];
        }
        let Op::DotGeneral(_) = graph.op(v.node) else { return None };
        let takes = graph.operands(v.node).iter().map(|&v| taken(graph, v, |_| false)).collect();
        Some(Sum { sum: id, product: v.node, takes })
    }

    /// Whether sums and weights that are gathered beside them, as in a backward of its own, take no longer than the work that is
    /// left behind the first gradient: else an order costs more than it hides. Where few weights are gathered, it does not.
    fn links_keep_up(&self, graph: &Graph, sums: &[Sum]) -> bool {
        let takes: Vec<&[Value]> = sums.iter().map(|sum| &sum.takes[..]).collect();
        let mut seen = vec![false; graph.bound()];
        if let Some(&(_, first)) = ready(graph, &takes).first() {
            reach(graph, sums[first].product, &mut seen, |_| {});
        }
        let sent: f64 = sums.iter().map(|sum| self.transfer(graph, sum.sum)).sum();
        let (mut work, mut gathered) = (0.0, 0.0);
        for id in graph.node_ids().filter(|id| !seen[id.index()]) {
            work += self.work(graph, id);
            gathered += if let Op::AllGather(_) = graph.op(id) { self.transfer(graph, id) } else { 0.0 };
        }
        2.0 * gathered < sent || sent + gathered <= work
    }

    /// Operations in the time that a node takes.
    fn work(&self, graph: &Graph, id: NodeId) -> f64 {
        let (all, matrix, slow) = (flops(graph, id), matrix_flops(graph, id), transcendentals(graph, id));
        let vector = (all - matrix) as f64 + (SLOW - 1.0) * slow as f64;
        matrix as f64 / SHARE + vector * self.vector / VECTOR_SHARE
    }

    /// Operations in the time that a sum or a gathering is on its way.
    fn transfer(&self, graph: &Graph, id: NodeId) -> f64 {
        let (rounds, groups, whole) = match graph.op(id) {
            Op::ReduceScatter(op) => (1.0, &op.groups, graph.operands(id)[0]),
            Op::AllReduce(op) => (2.0, &op.groups, first(id)),
            Op::AllGather(op) => (1.0, &op.groups, first(id)),
            _ => return 0.0,
        };
        let (bytes, devices) = (graph.ty(whole).bytes() as f64, groups.size().max(1) as f64);
        rounds * bytes * (devices - 1.0) / devices * self.balance / 2.0
    }

    /// When each is due, by the work in front of the gradients and the links, which send one after another.
    fn chains(&self, graph: &Graph, sums: &[Sum]) -> Vec<Chain> {
        let takes: Vec<&[Value]> = sums.iter().map(|sum| &sum.takes[..]).collect();
        let ready = ready(graph, &takes);
        let mut chains: Vec<Chain> =
            sums.iter().map(|sum| Chain { takes: sum.takes.clone(), steps: Vec::new() }).collect();
        let mut starts = Vec::new();
        let (mut seen, mut work) = (vec![false; graph.bound()], 0);
        for &(point, i) in &ready {
            reach(graph, point.node, &mut seen, |id| work += flops(graph, id));
            starts.push(work as f64 / SHARE);
            // It is computed before the next one's operand is used.
            reach(graph, sums[i].product, &mut seen, |id| work += flops(graph, id));
        }
        let mut links: f64 = 0.0;
        for (k, &(_, i)) in ready.iter().enumerate() {
            let done = starts[k] + flops(graph, sums[i].product) as f64 / SHARE;
            links = links.max(done) + MARGIN * self.transfer(graph, sums[i].sum);
            let steps = &mut chains[i].steps;
            steps.push(Some(Step { sum: first(sums[i].product), next: None }));
            if let Some(due) = starts[k + 1..].iter().position(|&start| start >= links) {
                steps.resize(due + 1, None);
                steps[due] = Some(Step { sum: first(sums[i].sum), next: None });
            }
        }
        chains
    }

    /// Binds small sums that nothing in the program needs behind the large ones.
    fn last(&self, graph: &mut Graph, sums: &[Sum]) -> usize {
        let is_small = |id: &NodeId| {
            let small = matches!(graph.op(*id), Op::AllReduce(_))
                && graph.ty(graph.operands(*id)[0]).bytes() < self.least;
            small && graph.users(*id).next().is_none()
        };
        let small: Vec<NodeId> = graph.node_ids().filter(is_small).collect();
        let Some(&one) = small.first() else { return 0 };
        let operands = small.iter().map(|&id| graph.operands(id)[0]);
        let held: Vec<Value> = operands.chain(sums.iter().map(|sum| first(sum.sum))).collect();
        let types: Vec<_> = held.iter().map(|&v| graph.ty(v).clone()).collect();
        let node = graph.add(OptimizationBarrier {}.into(), &held, types, graph.node(one).loc);
        for (result, &id) in small.iter().enumerate() {
            graph.set_operand(id, 0, Value { node, result: result as u32 });
        }
        small.len()
    }
}

fn is_barrier(graph: &Graph, id: NodeId) -> bool {
    matches!(graph.op(id), Op::OptimizationBarrier(_))
}
