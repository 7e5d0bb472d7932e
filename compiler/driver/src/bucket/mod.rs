//! One executable for a range of sizes: inputs are padded to the bucket's upper sizes, and masks keep the padding out
//! of every valid element.
//!
//! A graph is lowered at the upper sizes (the template) and at other sizes of the bucket (the samples). Lowering is
//! deterministic, so the graphs differ in nothing but what sizes decide: shapes, some attributes, some constants.
//! `rewrite` walks the template once. It knows of every dimension which of its positions are valid (`dims`), puts a
//! select where an operation would mix padding into valid elements (`rules`), and makes an input of every number that
//! differs between samples. An operation without a rule is refused, and its sizes are compiled one by one.
//!
//! A sample proves nothing about sizes between samples, so nothing rests on it: `Bucket::runtime` lowers at each new
//! size, holds the whole graph against the template, and takes that size's numbers from it. A size that does not
//! agree is refused. No size is ever run that has not been compared, node by node, with its own exact graph.

mod dims;
mod rules;

use dims::{Dim, Part, Sizes};
use rules::Rewriter;
use torchtpu_ir::{CompileError, DType, Graph, Literal, NodeId, Op, TensorType, Value};
use torchtpu_lowering::{InputSpec, Lowered, TensorSpec};

type Result<T> = std::result::Result<T, CompileError>;

/// A number that is known when the sizes are, and where a graph lowered at these sizes tells it.
#[derive(Clone, Copy, Debug)]
enum Witness {
    /// The extent of a dimension.
    Extent(Value, usize),
    /// Where a slice starts.
    Start(NodeId, usize),
    /// Another number, scaled.
    Scaled(usize, i64),
}

/// An input of the program that the runtime fills in from the sizes.
#[derive(Clone, Copy, Debug)]
enum Filled {
    /// s32 scalar: a valid extent or an offset, by index.
    Limit(usize),
    /// The value of a constant that depends on sizes, by index.
    Constant(usize),
}

/// What is valid in a tensor at the border: by dimension in memory order, the parts that it is made of, each with its
/// extent and, where it is padded, the index of its valid extent.
pub struct Border {
    pub order: Vec<i64>,
    pub dims: Vec<Vec<(i64, Option<usize>)>>,
}

impl Border {
    /// Nothing is padded.
    pub fn is_exact(&self) -> bool {
        self.dims.iter().flatten().all(|(_, limit)| limit.is_none())
    }
}

/// One tensor that the runtime passes after the user's inputs.
pub struct Filling {
    pub dtype: DType,
    pub shape: Vec<i64>,
    pub bytes: Vec<u8>,
}

/// What a call at one set of sizes needs.
pub struct Runtime {
    /// Valid extents, as `Border` numbers them.
    pub limits: Vec<i64>,
    /// The last inputs of the program, in order.
    pub fillings: Vec<Filling>,
}

/// The analysis of one bucket.
pub struct Bucket {
    template: Graph,
    /// What the graph was lowered for, and exact graphs are.
    pub largest: Option<i64>,
    /// By template value: node, then result.
    dims: Vec<Vec<Vec<Dim>>>,
    limits: Vec<Witness>,
    starts: Vec<(NodeId, usize, usize)>,
    constants: Vec<Vec<NodeId>>,
    filled: Vec<Filled>,
    specs: Vec<(TensorSpec, Option<usize>)>,
    results: Vec<TensorSpec>,
    pub inputs: Vec<Border>,
    pub outputs: Vec<Border>,
}

/// How many readings of ambiguous inputs are tried.
const READINGS: usize = 48;

/// The program of a bucket. `lowered[0]` is at the upper sizes, the others at samples; `symbols` has each symbol's
/// size in all of them.
pub fn rewrite(lowered: &[Lowered], symbols: &[Vec<i64>]) -> Result<(Lowered, Bucket)> {
    let graphs: Vec<&Graph> = lowered.iter().map(|l| &l.graph).collect();
    for (sample, graph) in lowered.iter().zip(&graphs).skip(1) {
        aligned(graphs[0], graph)?;
        same_border(&lowered[0], sample)?;
    }
    // An input of extent 2*s may be two rows of s, or s pairs: what makes the masks provable decides.
    let ambiguous = dims::ambiguous_extents(&graphs, symbols);
    let mut first = None;
    for reading in dims::readings(&ambiguous, READINGS) {
        let done = Rewriter::new(&graphs, reading).run().and_then(|rewritten| finish(lowered, rewritten));
        match done {
            Ok(done) => return Ok(done),
            Err(e) => first = first.or(Some(e)),
        }
    }
    Err(first.unwrap_or_else(|| CompileError::lowering("nothing to pad")))
}

/// The graphs differ in sizes alone.
pub fn is_sample(template: &Lowered, other: &Lowered) -> bool {
    aligned(&template.graph, &other.graph).is_ok() && same_border(template, other).is_ok()
}

fn finish(lowered: &[Lowered], rewritten: rules::Rewritten) -> Result<(Lowered, Bucket)> {
    let (exact, samples) = (&lowered[0], &lowered[1..]);
    let rules::Rewritten { graph, dims, limits, starts, constants, filled } = rewritten;
    let border = |value: Value, spec: &TensorSpec| Border {
        order: spec.order.clone(),
        dims: dims[value.node.index()][value.result as usize]
            .iter()
            .map(|dim| dim.parts.iter().map(|p| (p.extent, p.limit)).collect())
            .collect(),
    };
    let parameter = |i: usize| Value { node: exact.graph.parameters()[i], result: 0 };
    let inputs = exact.inputs.iter().enumerate().map(|(i, s)| border(parameter(i), &s.tensor)).collect();
    let outputs =
        exact.outputs.iter().zip(&exact.graph.outputs).map(|(o, v)| border(*v, &o.tensor)).collect();
    let bucket = Bucket {
        template: exact.graph.clone(),
        largest: None,
        limits,
        starts,
        constants,
        filled,
        specs: exact.inputs.iter().map(|i| (i.tensor.clone(), i.mutated_by)).collect(),
        results: exact.outputs.iter().map(|o| o.tensor.clone()).collect(),
        inputs,
        outputs,
        dims,
    };
    for (input, border) in exact.inputs.iter().zip(&bucket.inputs) {
        // It is written over its input, whose valid elements must lie where the result's do.
        if let Some(output) = input.mutated_by
            && border.dims != bucket.outputs[output].dims
        {
            return Err(CompileError::lowering(format!(
                "the padding of `{}` differs from that of what is written over it",
                input.name
            )));
        }
    }
    let mut specs = exact.inputs.clone();
    for filled in &bucket.filled {
        let (name, ty) = match filled {
            Filled::Limit(i) => (format!("size {i}"), TensorType::scalar(DType::I32)),
            Filled::Constant(i) => {
                let node = bucket.template.node(bucket.constants[*i][0]);
                (format!("constant {i}"), filling_type(&node.op, &node.types[0]))
            }
        };
        let order = (0..ty.rank() as i64).collect();
        specs.push(InputSpec { name, tensor: TensorSpec { ty, order }, is_static: false, mutated_by: None });
    }
    for sample in samples {
        bucket.runtime(sample)?;
    }
    let padded = Lowered {
        graph,
        inputs: specs,
        outputs: exact.outputs.clone(),
        checks: exact.checks.clone(),
        uses_seed: exact.uses_seed,
    };
    Ok((padded, bucket))
}

/// A repeated scalar is passed as one, whatever its shape.
fn filling_type(op: &Op, ty: &TensorType) -> TensorType {
    match op {
        Op::Constant(c) if matches!(c.value, Literal::Splat(_)) => TensorType::scalar(ty.dtype),
        _ => ty.clone(),
    }
}

impl Bucket {
    /// The numbers of one set of sizes, from the graph lowered at them. Fails where that graph is not the template
    /// with other sizes.
    pub fn runtime(&self, exact: &Lowered) -> Result<Runtime> {
        let graph = &exact.graph;
        aligned(&self.template, graph)?;
        let fits = exact.inputs.len() == self.specs.len()
            && exact.inputs.iter().zip(&self.specs).all(|(a, (tensor, mutated_by))| {
                a.tensor.order == tensor.order && a.mutated_by == *mutated_by
            })
            && exact.outputs.len() == self.results.len()
            && exact.outputs.iter().zip(&self.results).all(|(a, b)| a.tensor.order == b.order);
        if !fits {
            return Err(CompileError::lowering("tensors lie in memory in another order"));
        }
        let mut limits: Vec<i64> = Vec::with_capacity(self.limits.len());
        for witness in &self.limits {
            limits.push(match *witness {
                Witness::Extent(v, dim) => graph.ty(v).shape[dim],
                Witness::Start(id, dim) => start_of(graph.op(id), dim),
                Witness::Scaled(other, factor) => limits[other] * factor,
            });
        }
        for id in self.template.node_ids() {
            let differs = |what: &str| Err(refusal(&self.template, id, what));
            for (result, dims) in self.dims[id.index()].iter().enumerate() {
                let shape = &graph.node(id).types[result].shape;
                for (dim, &size) in dims.iter().zip(shape) {
                    let valid = |p: &Part| p.limit.map_or(p.extent, |l| limits[l]);
                    let (product, fits) = (
                        dim.parts.iter().map(valid).product::<i64>(),
                        dim.parts.iter().all(|p| valid(p) <= p.extent),
                    );
                    if product != size || !fits {
                        return differs("has a size that follows another rule");
                    }
                }
            }
            match (self.template.op(id), graph.op(id)) {
                (Op::Slice(a), Op::Slice(b)) => {
                    let moved = |d: usize| self.starts.iter().any(|(node, dim, _)| *node == id && *dim == d);
                    if (0..a.start.len()).any(|d| a.start[d] != b.start[d] && !moved(d)) {
                        return differs("starts where another rule says");
                    }
                }
                (Op::Constant(a), Op::Constant(b))
                    if a.value != b.value && !self.constants.iter().any(|nodes| nodes.contains(&id)) =>
                {
                    return differs("has a value that depends on sizes");
                }
                _ => {}
            }
        }
        if let Some((id, ..)) =
            self.starts.iter().find(|(id, dim, limit)| start_of(graph.op(*id), *dim) != limits[*limit])
        {
            return Err(refusal(&self.template, *id, "starts where another rule says"));
        }
        for nodes in &self.constants {
            if let Some(&id) = nodes.iter().find(|id| graph.op(**id) != graph.op(nodes[0])) {
                return Err(refusal(&self.template, id, "has a value that follows another rule"));
            }
        }
        let fillings = self
            .filled
            .iter()
            .map(|filled| match filled {
                Filled::Limit(i) => Ok(Filling {
                    dtype: DType::I32,
                    shape: Vec::new(),
                    bytes: i32::try_from(limits[*i])
                        .map_err(|_| CompileError::lowering("a size beyond 32 bits"))?
                        .to_le_bytes()
                        .to_vec(),
                }),
                Filled::Constant(i) => {
                    let node = graph.node(self.constants[*i][0]);
                    let ty = filling_type(&node.op, &node.types[0]);
                    Ok(Filling { dtype: ty.dtype, bytes: literal_bytes(&node.op, ty.dtype), shape: ty.shape })
                }
            })
            .collect::<Result<_>>()?;
        Ok(Runtime { limits, fillings })
    }
}

fn literal_bytes(op: &Op, dtype: DType) -> Vec<u8> {
    match op {
        Op::Constant(c) => match &c.value {
            Literal::Splat(scalar) => scalar.bytes(dtype),
            Literal::Dense(bytes) => bytes.to_vec(),
        },
        _ => Vec::new(),
    }
}

fn start_of(op: &Op, dim: usize) -> i64 {
    match op {
        Op::Slice(slice) => slice.start[dim],
        _ => 0,
    }
}

fn refusal(graph: &Graph, id: NodeId, what: &str) -> CompileError {
    let node = graph.node(id);
    CompileError::lowering(format!("{} {what}", node.op.name())).at(node.op.name(), graph.location(node.loc))
}

fn same_border(a: &Lowered, b: &Lowered) -> Result<()> {
    let same = a.inputs.len() == b.inputs.len()
        && a.outputs.len() == b.outputs.len()
        && a.checks.len() == b.checks.len()
        && a.uses_seed == b.uses_seed;
    if same { Ok(()) } else { Err(CompileError::lowering("inputs or outputs depend on sizes")) }
}

/// The graphs are one graph at two sets of sizes: the same operations on the same operands, and the same attributes
/// but for those that `runtime` and `rules` look at themselves.
fn aligned(a: &Graph, b: &Graph) -> Result<()> {
    let other = || CompileError::lowering("the graph has other operations at other sizes");
    if a.len() != b.len()
        || a.outputs != b.outputs
        || a.aliases != b.aliases
        || a.parameters() != b.parameters()
    {
        // The first operation that differs tells the user where.
        let at = a.node_ids().find(|&id| !b.contains(id) || a.op(id).name() != b.op(id).name());
        return Err(at.map_or_else(other, |id| refusal(a, id, "is one of several that depend on sizes")));
    }
    for id in a.node_ids() {
        if !b.contains(id) {
            return Err(other());
        }
        let (x, y) = (a.node(id), b.node(id));
        let typed = x.types.len() == y.types.len()
            && x.types.iter().zip(&y.types).all(|(s, t)| s.dtype == t.dtype && s.rank() == t.rank());
        if !typed || a.operands(id) != b.operands(id) || !attributes_agree(a, b, id) {
            return Err(refusal(a, id, "depends on sizes in a way that padding cannot follow"));
        }
    }
    Ok(())
}

fn attributes_agree(a: &Graph, b: &Graph, id: NodeId) -> bool {
    let operand = |g: &Graph| g.operands(id).first().map(|v| g.ty(*v).shape.clone()).unwrap_or_default();
    // A slice is of the whole dimension in both, or of the same size.
    let whole = |sizes_a: &[i64], sizes_b: &[i64]| {
        let (x, y) = (operand(a), operand(b));
        (0..sizes_a.len()).all(|d| sizes_a[d] == sizes_b[d] || (sizes_a[d] == x[d] && sizes_b[d] == y[d]))
    };
    match (a.op(id), b.op(id)) {
        (Op::Constant(x), Op::Constant(y)) => matches!(
            (&x.value, &y.value),
            (Literal::Splat(_), Literal::Splat(_)) | (Literal::Dense(_), Literal::Dense(_))
        ),
        (Op::Slice(x), Op::Slice(y)) => x.strides == y.strides,
        (Op::Pad(x), Op::Pad(y)) => x.low == y.low && x.interior == y.interior,
        (Op::Convolution(x), Op::Convolution(y)) => {
            let mut z = y.clone();
            z.pad_high.clone_from(&x.pad_high);
            x == &z
        }
        (Op::ReduceWindow(x), Op::ReduceWindow(y)) => {
            let mut z = y.clone();
            z.pad_high.clone_from(&x.pad_high);
            x == &z
                || (rules::whole_window(a, id) && rules::whole_window(b, id) && {
                    z.window.clone_from(&x.window);
                    z.pad_low.clone_from(&x.pad_low);
                    x == &z && z.pad_low.iter().zip(&y.pad_low).all(|(p, q)| (*p == 0) == (*q == 0))
                })
        }
        (Op::DynamicSlice(x), Op::DynamicSlice(y)) => whole(&x.sizes, &y.sizes),
        (Op::Gather(x), Op::Gather(y)) => {
            let mut z = y.clone();
            z.slice_sizes.clone_from(&x.slice_sizes);
            x == &z && whole(&x.slice_sizes, &y.slice_sizes)
        }
        (x, y) => x == y,
    }
}

/// The extents of a dimension in all graphs.
fn extents(graphs: &[&Graph], v: Value, dim: usize) -> Sizes {
    graphs.iter().map(|g| g.ty(v).shape[dim]).collect()
}
