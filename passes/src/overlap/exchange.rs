//! Permutes instead of exchanges, around what is computed of what each device sent: while the part of one device is computed,
//! those of others are on their way, here or back.
//!
//! ```text
//! before                                              after, on device d of 2
//! %2 = all_to_all %0 : f32[4,8]                       %2 = dynamic_slice %0, %other : f32[2,8]
//! %3 = dot_general %2, %w : f32[4,8]                  %3 = collective_permute %2 : f32[2,8]
//! %4 = all_to_all %3 : f32[4,8]                       %4 = dot_general %3, %w : f32[2,8]
//!                                                     %5 = dynamic_slice %0, %own : f32[2,8]
//!                                                     %6, %7 = optimization_barrier %5, %4
//!                                                     %8 = dot_general %6, %w : f32[2,8]
//!                                                     %9 = collective_permute %7 : f32[2,8]
//!                                                     %10 = %8 and %9 in their places : f32[4,8]
//! ```
//!
//! It is what experts on several devices do: rows travel to the device of their expert and back, and an expert computes row by
//! row. Each part goes straight to its device, as nothing is added on the way. A device computes those of its nearest
//! first, and its own last, while the others' are on their way back.
//!
//! What a backward needs of the rows between the products would have to be put together: there the exchanges stay.

use super::has_collectives;
use super::parts::Parts;
use super::region::Region;
use super::ring::{mb, too_many_or_small};
use crate::manager::{Pass, Remark};
use crate::query::first;
use torchtpu_ir::{CompileError, Graph, NodeId, Op};

pub struct Exchange {
    /// Bytes of the smallest part that is worth a transfer of its own.
    pub least: i64,
    /// Devices of the largest group: each is a part, and compiled.
    pub most: i64,
    /// Least operations of a part's products for a byte that each part reads whole, as weights are.
    pub intensity: f64,
}

impl Pass for Exchange {
    fn name(&self) -> &'static str {
        "exchange"
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        self.run_and_tell(graph, &mut Vec::new())
    }

    fn run_and_tell(&self, graph: &mut Graph, remarks: &mut Vec<Remark>) -> Result<usize, CompileError> {
        if !has_collectives(graph) {
            return Ok(0);
        }
        let mut regions: Vec<(NodeId, Region)> = Vec::new();
        let mut refused: Vec<(NodeId, String)> = Vec::new();
        for id in graph.topological() {
            if !matches!(graph.op(id), Op::AllToAll(_)) {
                continue;
            }
            let taken =
                |id: NodeId| regions.iter().any(|(back, region)| *back == id || region.gathers.contains(&id));
            let found = match self.small(graph, id) {
                Some(why) => Err(why),
                None => match Region::between(graph, id) {
                    Some(region) if !region.gathers.iter().any(|&there| taken(there)) => {
                        self.poor(graph, &region).map_or(Ok(region), Err)
                    }
                    _ => Err("it ends no rows' way to products that nothing else needs, and back".to_owned()),
                },
            };
            match found {
                Ok(region) => {
                    refused.retain(|(id, _)| !region.gathers.contains(id));
                    regions.push((id, region));
                }
                Err(why) => refused.push((id, why)),
            }
        }
        remarks.extend(refused.into_iter().map(|(id, why)| Remark::of(graph, id, format!("stays: {why}"))));
        for (back, region) in &regions {
            for &id in region.gathers.iter().chain([back]) {
                let text = format!(
                    "{} permutes of {:.2} MB, beside products of {:.1} GFLOP",
                    region.parts - 1,
                    mb(graph.ty(first(id)).bytes() / region.parts),
                    region.flops(graph) / 1e9,
                );
                remarks.push(Remark::of(graph, id, text));
            }
        }
        for (back, region) in &regions {
            Parts::of(graph, region)?.write_exchange(graph, *back)?;
        }
        Ok(regions.len())
    }
}

impl Exchange {
    /// Why permutes of the parts of an exchange do not pay.
    fn small(&self, graph: &Graph, id: NodeId) -> Option<String> {
        let Op::AllToAll(op) = graph.op(id) else { return None };
        let devices = op.groups.size();
        let part = graph.ty(first(id)).bytes() / devices.max(1);
        too_many_or_small(devices, self.most, part, self.least)
    }

    /// Why products in parts do not: each reads the weights again.
    fn poor(&self, graph: &Graph, region: &Region) -> Option<String> {
        let small = region.gathers.iter().find_map(|&there| self.small(graph, there));
        let (flops, again) = (region.flops(graph) / region.parts as f64, region.read_whole(graph) as f64);
        small.or_else(|| {
            (flops < self.intensity * again).then(|| {
                format!(
                    "the products of a part are {:.0} operations for a byte of their weights, and less than {:.0} are slow",
                    flops / again,
                    self.intensity
                )
            })
        })
    }
}
