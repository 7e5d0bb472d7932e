//! How many columns of each image lie beside each other: as many as lanes are free, where all that reads them can be packed
//! alike and it pays.

use super::PackColumns;
use super::step::{Step, reads_packed};
use crate::query::{first, pinned, splat};
use petgraph::unionfind::UnionFind;
use rustc_hash::{FxHashMap, FxHashSet};
use torchtpu_ir::{Graph, NodeId, Op, Value};

/// Beyond so many columns the zeros among the taps cost more than lanes gain.
const MOST: i64 = 8;
/// Passes of a row through the matrix unit that take as long as a tile of lanes is written and read, by libtpu's estimates
/// for convolutions of 64 features.
const TILE: i64 = 5;

/// Columns by node, where they are more than one.
pub type Columns = FxHashMap<NodeId, i64>;

/// Images with the same number of columns, as elementwise operations are between them.
struct Class {
    width: i64,
    columns: i64,
    /// Something reads or makes one of them that cannot be packed.
    fixed: bool,
    nodes: Vec<NodeId>,
}

impl Class {
    fn may_have(&self, columns: i64) -> bool {
        columns == 1 || !self.fixed && columns <= MOST && self.width % columns == 0
    }
}

/// A convolution or a pooling, from the images of one class to those of another.
struct Edge {
    id: NodeId,
    step: Step,
    from: usize,
    to: usize,
}

struct Images {
    classes: Vec<Class>,
    edges: Vec<Edge>,
}

pub fn columns(graph: &Graph, sizes: &PackColumns) -> Columns {
    let mut images = Images::of(graph, sizes);
    images.settle();
    images.drop_losses(graph, sizes);
    let packed = images.classes.iter().filter(|class| class.columns > 1);
    packed.flat_map(|class| class.nodes.iter().map(|&id| (id, class.columns))).collect()
}

/// Is it the same in each column, so that it can be made for any number of them?
pub fn is_free(graph: &Graph, v: Value) -> bool {
    match graph.op(v.node) {
        Op::BroadcastInDim(broadcast) => !broadcast.dimensions.contains(&3),
        _ => splat(graph, v).is_some(),
    }
}

fn is_image(graph: &Graph, v: Value) -> bool {
    graph.ty(v).rank() == 4 && !is_free(graph, v)
}

impl Images {
    fn of(graph: &Graph, sizes: &PackColumns) -> Images {
        let nodes: Vec<NodeId> =
            graph.topological().into_iter().filter(|&id| is_image(graph, first(id))).collect();
        let mut alike = UnionFind::<usize>::new(graph.bound());
        for &id in nodes.iter().filter(|&&id| graph.op(id).is_elementwise()) {
            for v in graph.operands(id).into_iter().filter(|&v| is_image(graph, v)) {
                alike.union(id.index(), v.node.index());
            }
        }
        let pinned = pinned(graph);
        let returned: FxHashSet<NodeId> = graph.outputs.iter().map(|v| v.node).collect();
        let is_packable = |id: NodeId| {
            let made = Step::of(graph, id).is_some() || graph.op(id).is_elementwise();
            let of_firsts = graph.operands(id).iter().all(|v| v.result == 0);
            let read = graph.users(id).all(|(user, operand, _)| reads_packed(graph, user, operand));
            made && of_firsts && read && !pinned[id.index()] && !returned.contains(&id)
        };
        let (mut classes, mut edges, mut class_of) = (Vec::<Class>::new(), Vec::new(), FxHashMap::default());
        for &id in &nodes {
            let to = *class_of.entry(alike.find(id.index())).or_insert_with(|| {
                let width = graph.ty(first(id)).shape[3];
                classes.push(Class { width, columns: 1, fixed: false, nodes: Vec::new() });
                classes.len() - 1
            });
            classes[to].nodes.push(id);
            classes[to].fixed |= !is_packable(id);
            if let Some(step) = Step::of(graph, id) {
                let from = class_of.get(&alike.find(graph.operands(id)[0].node.index()));
                // What a pooling reads may be the same in all columns.
                match from {
                    Some(&from) => edges.push(Edge { id, step, from, to }),
                    None => classes[to].fixed = true,
                }
            }
        }
        for edge in edges.iter().filter(|edge| edge.step.is_convolution) {
            let (shape, class) = (&graph.ty(first(edge.id)).shape, &mut classes[edge.to]);
            let (images, features) = (shape[0], shape[1].max(1));
            if images < sizes.images || features >= sizes.lanes {
                continue;
            }
            let free = 1 << (sizes.lanes / features).ilog2();
            if class.may_have(free) {
                class.columns = class.columns.max(free);
            }
        }
        Images { classes, edges }
    }

    /// Numbers that fit each other: more where a neighbour needs them, then fewer where that cannot be.
    fn settle(&mut self) {
        while self.edges.iter().any(|edge| {
            let (from, to) = (self.classes[edge.from].columns, self.classes[edge.to].columns);
            let behind = to * edge.step.stride;
            let (class, columns) = match edge.step.fits(from, to) {
                true => return false,
                false if from < behind && !edge.step.is_convolution => (edge.from, behind),
                false => (edge.to, 2 * to),
            };
            let may = self.classes[class].may_have(columns);
            if may {
                self.classes[class].columns = columns;
            }
            may
        }) {}
        while self.edges.iter().any(|edge| {
            let (from, to) = (self.classes[edge.from].columns, self.classes[edge.to].columns);
            let class = if to == 1 || from > to * edge.step.stride { edge.from } else { edge.to };
            let fits = edge.step.fits(from, to);
            if !fits {
                self.classes[class].columns /= 2;
            }
            !fits
        }) {}
    }

    /// Leaves alone what does not pay, of all that is packed together.
    fn drop_losses(&mut self, graph: &Graph, sizes: &PackColumns) {
        let mut together = UnionFind::<usize>::new(self.classes.len());
        for edge in &self.edges {
            if self.classes[edge.from].columns > 1 && self.classes[edge.to].columns > 1 {
                together.union(edge.from, edge.to);
            }
        }
        let mut gain = vec![0; self.classes.len()];
        for edge in &self.edges {
            let (from, to) = (self.classes[edge.from].columns, self.classes[edge.to].columns);
            if from > 1 || to > 1 {
                let class = if to > 1 { edge.to } else { edge.from };
                gain[together.find(class)] += edge.gain(graph, from, to, sizes);
            }
        }
        for (at, class) in self.classes.iter_mut().enumerate() {
            if gain[together.find(at)] <= 0 {
                class.columns = 1;
            }
        }
    }
}

impl Edge {
    /// Passes of a row through the matrix unit that are saved where there are so many columns in front of it and behind.
    fn gain(&self, graph: &Graph, from: i64, to: i64, sizes: &PackColumns) -> i64 {
        let &[batch, features, height, width] = &graph.ty(first(self.id)).shape[..] else { return 0 };
        let tiles = |of: i64| (of + sizes.lanes - 1) / sizes.lanes;
        let (rows, packed) = (batch * height * width, batch * height * width / to);
        let written = TILE * (rows * tiles(features) - packed * tiles(to * features));
        if !self.step.is_convolution {
            return written;
        }
        let weight = &graph.ty(graph.operands(self.id)[1]).shape;
        let (read, taps) = (weight[1] * weight[2], self.step.taps);
        let before = rows * tiles(read * taps) * tiles(features);
        let after = packed * tiles(read * from * self.step.reach(from, to).len()) * tiles(to * features);
        written + before - after - sizes.taps
    }
}
