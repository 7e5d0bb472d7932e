//! Small gatherings of arguments, as of the weights of norms and of biases, in one.
//!
//! ```text
//! before                                              after
//! %2 = all_gather %weight : f32[64]                   %2 = concatenate %weight, %bias : f32[20]
//! %3 = all_gather %bias : f32[16]                     %3 = all_gather %2 : f32[80]
//!                                                     %4 = reshape %3 : f32[4,20]
//!                                                     %5 = slice %4 : f32[4,16]
//!                                                     %6 = reshape %5 : f32[64]
//!                                                     %7 = slice %4 : f32[4,4]
//!                                                     %8 = reshape %7 : f32[16]
//! ```
//!
//! A transfer takes its latency for each step however little is sent, and libtpu, which merges small sums by itself, lets the
//! core wait for every small gathering. Between two devices a step is as long as the kernel of a slice. What is merged is together no more than `most`: over many devices
//! the shards of large weights are small as well, and those are gathered where they are needed.

use super::has_collectives;
use crate::manager::{Pass, Remark};
use crate::overlap::ring::is_there;
use crate::query::first;
use std::collections::BTreeMap;
use torchtpu_ir::{Builder, CompileError, Graph, NodeId, Op};

pub struct MergeGathers {
    /// Bytes of the largest shard, as many as are sent while a transfer begins.
    pub shard: i64,
    /// Bytes of one gathering's result.
    pub most: i64,
}

impl Pass for MergeGathers {
    fn name(&self) -> &'static str {
        "merge_gathers"
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        self.run_and_tell(graph, &mut Vec::new())
    }

    fn run_and_tell(&self, graph: &mut Graph, remarks: &mut Vec<Remark>) -> Result<usize, CompileError> {
        if !has_collectives(graph) {
            return Ok(0);
        }
        let mut merged = 0;
        for gathers in self.find(graph) {
            let bytes: i64 = gathers.iter().map(|&id| graph.ty(graph.operands(id)[0]).bytes()).sum();
            let text =
                format!("one gathering of {} shards, {:.1} kB in all", gathers.len(), bytes as f64 / 1e3);
            remarks.push(Remark::of(graph, gathers[0], text));
            merge(graph, &gathers)?;
            merged += gathers.len();
        }
        Ok(merged)
    }
}

impl MergeGathers {
    /// Gatherings to be merged: of the same devices and dtype.
    fn find(&self, graph: &Graph) -> Vec<Vec<NodeId>> {
        let mut alike: BTreeMap<String, Vec<(i64, Vec<NodeId>)>> = BTreeMap::new();
        for id in graph.topological() {
            let Op::AllGather(op) = graph.op(id) else { continue };
            let shard = graph.operands(id)[0];
            let (part, bytes) = (graph.ty(shard).bytes(), graph.ty(first(id)).bytes());
            let small = part <= self.shard && bytes <= self.most;
            if op.dimension != 0 || op.groups.size() < 3 || !small || !is_there(graph, shard) {
                continue;
            }
            let bins = alike.entry(format!("{} {:?}", graph.ty(shard).dtype, op.groups)).or_default();
            match bins.last_mut() {
                Some((sum, gathers)) if *sum + bytes <= self.most => {
                    *sum += bytes;
                    gathers.push(id);
                }
                _ => bins.push((bytes, vec![id])),
            }
        }
        let bins = alike.into_values().flatten().map(|(_, gathers)| gathers);
        bins.filter(|gathers| gathers.len() > 1).collect()
    }
}

fn merge(graph: &mut Graph, gathers: &[NodeId]) -> Result<(), CompileError> {
    let Op::AllGather(op) = graph.op(gathers[0]) else { return Ok(()) };
    let groups = op.groups.clone();
    let mut b = Builder::new(graph);
    b.loc = b.graph.node(gathers[0]).loc;
    let mut shards = Vec::new();
    for &id in gathers {
        let shard = b.graph.operands(id)[0];
        let elements = b.ty(shard).elements();
        shards.push(b.reshape(shard, &[elements])?);
    }
    let joined = b.concatenate(&shards, 0)?;
    let (elements, devices) = (b.ty(joined).elements(), groups.size());
    let whole = b.all_gather(joined, 0, groups)?;
    let whole = b.reshape(whole, &[devices, elements])?;
    let mut start = 0;
    for (&id, &shard) in gathers.iter().zip(&shards) {
        b.loc = b.graph.node(id).loc;
        let limit = start + b.ty(shard).elements();
        let columns = b.slice_dim(whole, 1, start, limit, 1)?;
        let shape = b.shape(first(id)).to_vec();
        let value = b.reshape(columns, &shape)?;
        b.graph.replace_uses(first(id), value);
        start = limit;
    }
    graph.remove_all(gathers);
    Ok(())
}
