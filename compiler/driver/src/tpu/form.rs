//! Which form a program takes on a chip: what a search found for it, or else what a table says by what it is made of.

use crate::options::{Form, Tuned};
use torchtpu_cache::Key;
use torchtpu_ir::{DType, Graph, NodeId, Op, Value};
use torchtpu_passes::analysis::cost;
use torchtpu_passes::tpu::TileBatch;

/// What the shipped table says of a chip.
struct Row {
    chip: &'static str,
    of: Kind,
    scoped_vmem_kib: Option<i64>,
    tile_mib: i64,
    without: &'static [&'static str],
}

#[derive(Clone, Copy)]
enum Kind {
    /// Most of the work is in convolutions.
    Convolutions,
    /// The same, of float32.
    WideConvolutions,
    /// There is a backward of attention: a batched product over the rows of both operands.
    Backward,
    /// The same, and devices sum up what they computed.
    SummedBackward,
    /// Attention whose scores are less than 4 MiB a head, of which `tile_batch` takes half a tile.
    SmallScores,
    /// Attention whose scores are more than a tile a head, but not more than so many bytes in all: without tiles they fit.
    LargeScores(i64),
    /// Devices sum up what they computed, as in tensor parallelism.
    Summed,
    /// No product is batched, and there are so many operations.
    NoAttention(u64),
    Any,
}

/// The first row that fits counts; docs/passes.md has the figures. The last is for other chips, with libtpu's own 16 MiB.
#[rustfmt::skip]
const TABLE: &[Row] = &[
    Row { chip: "v5e", of: Kind::WideConvolutions,       scoped_vmem_kib: Some(16384), tile_mib: 32, without: &[] },
    Row { chip: "v5e", of: Kind::Convolutions,           scoped_vmem_kib: Some(49152), tile_mib: 32, without: &[] },
    Row { chip: "v5e", of: Kind::Backward,               scoped_vmem_kib: Some(32768), tile_mib: 32, without: &["flatten_rows"] },
    Row { chip: "v5e", of: Kind::LargeScores(512 << 20), scoped_vmem_kib: Some(65536), tile_mib: 32, without: &["tile_batch"] },
    Row { chip: "v5e", of: Kind::NoAttention(1 << 30),   scoped_vmem_kib: Some(32768), tile_mib: 32, without: &[] },
    Row { chip: "v5e", of: Kind::Any,                    scoped_vmem_kib: Some(65536), tile_mib: 32, without: &[] },
    Row { chip: "v6e", of: Kind::Convolutions,           scoped_vmem_kib: Some(49152), tile_mib: 32, without: &[] },
    Row { chip: "v6e", of: Kind::SummedBackward,         scoped_vmem_kib: Some(49152), tile_mib: 64, without: &["flatten_rows", "scatter_sums"] },
    Row { chip: "v6e", of: Kind::Backward,               scoped_vmem_kib: Some(81920), tile_mib: 64, without: &["flatten_rows"] },
    Row { chip: "v6e", of: Kind::SmallScores,            scoped_vmem_kib: Some(49152), tile_mib: 64, without: &[] },
    Row { chip: "v6e", of: Kind::LargeScores(2 << 30),   scoped_vmem_kib: Some(65536), tile_mib: 32, without: &["tile_batch"] },
    Row { chip: "v6e", of: Kind::Summed,                 scoped_vmem_kib: Some(32768), tile_mib: 32, without: &[] },
    Row { chip: "v6e", of: Kind::Any,                    scoped_vmem_kib: Some(65536), tile_mib: 32, without: &[] },
    Row { chip: "",    of: Kind::Any,                    scoped_vmem_kib: None,        tile_mib: 32, without: &[] },
];

/// The passes that no program of a chip is better with. Sums of gradients run beside the cores of v5p and v6e, on their
/// SparseCores, and of tpu7x, where libtpu hides them by itself; attention's parts in turn are slower on v5p (docs/overlap.md).
const NEVER: &[(&str, &[&str])] = &[
    ("v5e", &["early_sums", "fence_gates"]),
    ("v5p", &["fence_gates", "flatten_rows", "join_late", "ring_gradients", "tiles_in_turn"]),
    ("v6e", &["join_late", "ring_gradients"]),
    ("tpu7x", &["fence_gates", "flatten_rows", "join_late", "ring_gradients"]),
    ("", &["early_sums", "fence_gates", "flatten_rows", "join_late", "tiles_in_turn"]),
];

const SMALL: i64 = TileBatch::SMALL;
const LARGE: i64 = 32 << 20;

/// The form that was found for a graph, or the table's; an empty chip stands for any.
pub fn choose(graph: &Graph, chip: &str, tuned: &[Tuned]) -> Form {
    let here: Vec<_> = tuned.iter().filter(|t| t.chip == chip).collect();
    if !here.is_empty() {
        let products = products(graph);
        if let Some(found) = here.into_iter().find(|t| t.products == products) {
            return found.form.clone();
        }
    }
    let row = TABLE.iter().find(|row| [chip, ""].contains(&row.chip) && row.of.fits(graph));
    let row = row.unwrap_or(&TABLE[TABLE.len() - 1]);
    let never = NEVER.iter().find(|(of, _)| [chip, ""].contains(of)).map_or(&[][..], |(_, passes)| passes);
    let mut without: Vec<String> = row.without.iter().chain(never).map(|&pass| pass.to_owned()).collect();
    without.sort();
    Form { scoped_vmem_kib: row.scoped_vmem_kib, tile_mib: row.tile_mib, without }
}

impl Kind {
    fn fits(self, graph: &Graph) -> bool {
        match self {
            Kind::Convolutions => {
                cost::total(graph, cost::convolution_flops) > cost::total(graph, cost::flops) / 2
            }
            Kind::WideConvolutions => {
                let wide = |id| {
                    let convolves = matches!(graph.op(id), Op::Convolution(_));
                    convolves && graph.ty(graph.operands(id)[0]).dtype == DType::F32
                };
                Kind::Convolutions.fits(graph) && graph.node_ids().any(wide)
            }
            Kind::Backward => anywhere(graph, &|graph| graph.node_ids().any(|id| over_rows(graph, id))),
            Kind::SummedBackward => Kind::Summed.fits(graph) && Kind::Backward.fits(graph),
            Kind::SmallScores => {
                anywhere(graph, &|graph| scores(graph).any(|s| s.head < SMALL && s.all >= SMALL))
            }
            Kind::LargeScores(most) => {
                anywhere(graph, &|graph| scores(graph).any(|s| s.square > LARGE && s.all <= most))
            }
            Kind::Summed => {
                let sums = |op: &Op| matches!(op, Op::AllReduce(_) | Op::ReduceScatter(_));
                anywhere(graph, &|graph| graph.node_ids().any(|id| sums(graph.op(id))))
            }
            Kind::NoAttention(least) => {
                let attends = anywhere(graph, &|graph| scores(graph).next().is_some());
                !attends && cost::total(graph, cost::flops) >= least
            }
            Kind::Any => true,
        }
    }
}

/// In a graph or in one inside it, as that of layers that are compiled once.
pub fn anywhere(graph: &Graph, holds: &dyn Fn(&Graph) -> bool) -> bool {
    let inside = |id| graph.op(id).regions().into_iter().any(|region| anywhere(region, holds));
    holds(graph) || graph.node_ids().any(inside)
}

/// Is this a batched product over the rows of both operands?
fn over_rows(graph: &Graph, id: NodeId) -> bool {
    let Op::DotGeneral(dot) = graph.op(id) else { return false };
    let rows = graph.ty(graph.operands(id)[0]).rank() as i64 - 2;
    !dot.lhs_batch.is_empty() && dot.lhs_contracting == [rows] && dot.rhs_contracting == [rows]
}

/// Of a batched product the largest value, which are attention's scores, in bytes of float32.
struct Scores {
    /// The last two dimensions: heads that share a key are rows of one.
    head: i64,
    /// As many rows as columns, which are the keys.
    square: i64,
    all: i64,
}

fn scores(graph: &Graph) -> impl Iterator<Item = Scores> {
    let products = graph
        .node_ids()
        .filter(|&id| matches!(graph.op(id), Op::DotGeneral(dot) if !dot.lhs_batch.is_empty()));
    products.filter_map(|id| {
        let values = graph.operands(id).into_iter().chain(graph.results(id));
        let shape = &graph.ty(values.max_by_key(|&v| graph.ty(v).elements())?).shape;
        let [.., rows, columns] = shape[..] else { return None };
        let all: i64 = shape.iter().product();
        Some(Scores { head: rows * columns * 4, square: columns * columns * 4, all: all * 4 })
    })
}

/// By what a search's result is found again: a digest of the products, convolutions and collectives with their shapes.
/// Names, lines and what lies between do not count.
pub fn products(graph: &Graph) -> String {
    let mut found = Vec::new();
    collect(graph, &mut found);
    found.sort_unstable();
    Key::of(found.iter().map(String::as_bytes)).hex()[..16].to_owned()
}

fn collect(graph: &Graph, found: &mut Vec<String>) {
    for id in graph.node_ids() {
        let op = graph.op(id);
        for region in op.regions() {
            collect(region, found);
        }
        if matches!(op, Op::DotGeneral(_) | Op::Convolution(_)) || op.devices().is_some() {
            let types = |values: &[Value]| -> String {
                values.iter().map(|&v| format!(" {}", graph.ty(v))).collect()
            };
            found.push(format!(
                "{}{} ->{}",
                op.text(),
                types(&graph.operands(id)),
                types(&graph.results(id))
            ));
        }
    }
}
