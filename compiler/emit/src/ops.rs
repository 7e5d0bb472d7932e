//! What each operation of the IR is in StableHLO: its name, attributes, extra operands and body, as plain data.
//!
//! Bodies and extra operands are written in the IR's own operations, so that they are emitted by the same code.

use smallvec::{SmallVec, smallvec};
use std::fmt::Write;
use torchtpu_ir::op::{Compare, Constant, Convolution, DotGeneral, FftKind, Gather, Iota, Scatter};
use torchtpu_ir::{
    BinaryOp, DType, Direction, Literal, Op, Precision, ReduceKind, ReplicaGroups, RngAlgorithm, Scalar,
    ScatterKind, TensorType,
};

/// An attribute's value.
pub enum Attr<'a> {
    Int(i64),
    Bool(bool),
    Ints(&'a [i64]),
    /// Two lists, side by side: `tensor<Nx2xi64>`.
    Pairs(&'a [i64], &'a [i64]),
    /// An attribute of the StableHLO dialect, in its own syntax.
    Dialect(String),
    /// Every replica of every group: `tensor<GxNxi64>`.
    Groups(&'a ReplicaGroups),
    /// One precision for each of two operands.
    Precision(Precision),
    /// The elements of a constant of the result's type.
    Elements(&'a Literal),
}

pub struct Spec<'a> {
    pub name: &'static str,
    pub attrs: SmallVec<[(&'static str, Attr<'a>); 4]>,
    /// Operations without operands, whose results follow the node's operands.
    pub extra: SmallVec<[(Op, TensorType); 1]>,
    pub body: Option<Body>,
}

/// A region of scalar operations. Values are numbered: arguments first, then one for each step.
pub struct Body {
    pub args: Vec<DType>,
    pub steps: Vec<Step>,
    pub results: Vec<usize>,
}

pub struct Step {
    pub op: Op,
    pub operands: Vec<usize>,
    pub dtype: DType,
}

impl Body {
    fn new(args: Vec<DType>) -> Self {
        Body { args, steps: Vec::new(), results: Vec::new() }
    }

    fn step(&mut self, op: impl Into<Op>, operands: &[usize], dtype: DType) -> usize {
        self.steps.push(Step { op: op.into(), operands: operands.to_vec(), dtype });
        self.args.len() + self.steps.len() - 1
    }

    fn binary(&mut self, op: BinaryOp, a: usize, b: usize, dtype: DType) -> usize {
        self.step(Op::Binary(op), &[a, b], dtype)
    }

    fn compare(&mut self, direction: Direction, a: usize, b: usize) -> usize {
        self.step(Compare { direction }, &[a, b], DType::Bool)
    }

    /// `a` comes strictly before `b` in an order where NaN is the extreme (`nan_first`) or the last.
    fn before(&mut self, direction: Direction, nan_first: bool, a: usize, b: usize, dtype: DType) -> usize {
        let before = self.compare(direction, a, b);
        if !dtype.is_float() {
            return before;
        }
        let (nan, other) = if nan_first { (a, b) } else { (b, a) };
        let is_nan = self.compare(Direction::Ne, nan, nan);
        let is_number = self.compare(Direction::Eq, other, other);
        let nan_decides = self.binary(BinaryOp::And, is_nan, is_number, DType::Bool);
        self.binary(BinaryOp::Or, before, nan_decides, DType::Bool)
    }
}

impl<'a> Spec<'a> {
    fn new(name: &'static str) -> Self {
        Spec { name, attrs: SmallVec::new(), extra: SmallVec::new(), body: None }
    }

    fn with(mut self, name: &'static str, value: Attr<'a>) -> Self {
        self.attrs.push((name, value));
        self
    }

    fn dialect(self, name: &'static str, text: impl Into<String>) -> Self {
        self.with(name, Attr::Dialect(text.into()))
    }

    /// Padding is optional in StableHLO, and an operation without dimensions leaves it out.
    fn padding(self, low: &'a [i64], high: &'a [i64]) -> Self {
        if low.is_empty() { self } else { self.with("padding", Attr::Pairs(low, high)) }
    }

    fn init(mut self, dtype: DType, value: Scalar) -> Self {
        let op = Constant { value: Literal::Splat(value) };
        self.extra.push((op.into(), TensorType::scalar(dtype)));
        self
    }

    fn body(mut self, body: Body) -> Self {
        self.body = Some(body);
        self
    }
}

/// What is true is one. XLA makes a selection between `x` and 0 of the product of a converted boolean and `x`, and so 0 of
/// an infinity or NaN that is masked out; of a selection it does not.
fn one_or_zero<'a>(ty: &TensorType) -> Spec<'a> {
    let mut spec = Spec::new("stablehlo.select");
    for value in [Scalar::one(ty.dtype), Scalar::zero()] {
        spec.extra.push((Constant { value: Literal::Splat(value) }.into(), ty.clone()));
    }
    spec
}

/// The description of `op` with results of `types`. The message of an error says what the operation cannot do.
pub fn spec<'a>(op: &'a Op, operands: &[&TensorType], types: &[TensorType]) -> Result<Spec<'a>, String> {
    use Attr::{Bool, Int, Ints};
    let dtype = |i: usize| operands.get(i).map_or(DType::F32, |t| t.dtype);
    Ok(match op {
        Op::Unary(u) => Spec::new(u.mlir_name()),
        Op::Binary(b) => Spec::new(b.mlir_name()),
        Op::Parameter(_) => return Err("a parameter is an argument, not an operation".into()),
        Op::Constant(c) => Spec::new("stablehlo.constant").with("value", Attr::Elements(&c.value)),
        Op::Iota(i) => Spec::new("stablehlo.iota").with("iota_dimension", Int(i.dimension)),
        Op::Compare(c) => Spec::new("stablehlo.compare")
            .dialect(
                "comparison_direction",
                format!("#stablehlo<comparison_direction {}>", direction(c.direction)),
            )
            .dialect("compare_type", format!("#stablehlo<comparison_type {}>", compare_type(dtype(0)))),
        Op::Select(_) => Spec::new("stablehlo.select"),
        Op::Clamp(_) => Spec::new("stablehlo.clamp"),
        Op::Convert(_) => match types {
            [ty] if ty.dtype.is_float() && dtype(0) == DType::Bool => one_or_zero(ty),
            _ => Spec::new("stablehlo.convert"),
        },
        Op::BitcastConvert(_) => Spec::new("stablehlo.bitcast_convert"),
        Op::BroadcastInDim(b) => {
            Spec::new("stablehlo.broadcast_in_dim").with("broadcast_dimensions", Ints(&b.dimensions))
        }
        Op::Reshape(_) => Spec::new("stablehlo.reshape"),
        Op::Transpose(t) => Spec::new("stablehlo.transpose").with("permutation", Ints(&t.permutation)),
        Op::Reverse(r) => Spec::new("stablehlo.reverse").with("dimensions", Ints(&r.dimensions)),
        Op::Slice(s) => Spec::new("stablehlo.slice")
            .with("start_indices", Ints(&s.start))
            .with("limit_indices", Ints(&s.limit))
            .with("strides", Ints(&s.strides)),
        Op::DynamicSlice(s) => Spec::new("stablehlo.dynamic_slice").with("slice_sizes", Ints(&s.sizes)),
        Op::DynamicUpdateSlice(_) => Spec::new("stablehlo.dynamic_update_slice"),
        Op::Pad(p) => Spec::new("stablehlo.pad")
            .with("edge_padding_low", Ints(&p.low))
            .with("edge_padding_high", Ints(&p.high))
            .with("interior_padding", Ints(&p.interior)),
        Op::Concatenate(c) => Spec::new("stablehlo.concatenate").with("dimension", Int(c.dimension)),
        Op::DotGeneral(d) => Spec::new("stablehlo.dot_general")
            .dialect("dot_dimension_numbers", dot_dimensions(d))
            .with("precision_config", Attr::Precision(d.precision)),
        Op::Convolution(c) => Spec::new("stablehlo.convolution")
            .with("window_strides", Ints(&c.strides))
            .padding(&c.pad_low, &c.pad_high)
            .with("lhs_dilation", Ints(&c.lhs_dilation))
            .with("rhs_dilation", Ints(&c.rhs_dilation))
            .dialect("dimension_numbers", format!("#stablehlo.conv<{}>", conv_dimensions(c)))
            .with("feature_group_count", Int(c.feature_groups))
            .with("batch_group_count", Int(c.batch_groups))
            .with("precision_config", Attr::Precision(c.precision)),
        Op::Reduce(r) => {
            let (combiner, identity) = reduction(r.kind, dtype(0))?;
            let spec = Spec::new("stablehlo.reduce").with("dimensions", Ints(&r.dimensions));
            let spec = if operands.len() > 1 { spec } else { spec.init(dtype(0), identity) };
            spec.body(combine(Some(combiner), dtype(0)))
        }
        Op::ArgReduce(r) => {
            let value = dtype(0);
            if value.is_complex() {
                return Err(format!("arg_reduce does not order {value}"));
            }
            let identity = if r.largest { Scalar::lowest(value) } else { Scalar::highest(value) };
            let shape = operands.first().map(|t| t.shape.clone()).unwrap_or_default();
            let mut spec = Spec::new("stablehlo.reduce")
                .with("dimensions", Ints(std::slice::from_ref(&r.dimension)))
                .body(first_extreme(r.largest, value));
            let iota = Iota { dimension: r.dimension };
            spec.extra.push((iota.into(), TensorType::new(DType::I64, shape)));
            spec.init(value, identity).init(DType::I64, Scalar::zero())
        }
        Op::ReduceWindow(w) => {
            let (combiner, identity) = reduction(w.kind, dtype(0))?;
            Spec::new("stablehlo.reduce_window")
                .with("window_dimensions", Ints(&w.window))
                .with("window_strides", Ints(&w.strides))
                .with("base_dilations", Ints(&w.base_dilation))
                .with("window_dilations", Ints(&w.window_dilation))
                .padding(&w.pad_low, &w.pad_high)
                .init(dtype(0), identity)
                .body(combine(Some(combiner), dtype(0)))
        }
        Op::Sort(s) => {
            if dtype(0).is_complex() {
                return Err(format!("sort does not order {}", dtype(0)));
            }
            let mut body = Body::new(operands.iter().flat_map(|t| [t.dtype, t.dtype]).collect());
            let direction = if s.descending { Direction::Gt } else { Direction::Lt };
            let before = body.before(direction, s.descending, 0, 1, dtype(0));
            body.results = vec![before];
            Spec::new("stablehlo.sort")
                .with("dimension", Int(s.dimension))
                .with("is_stable", Bool(true))
                .body(body)
        }
        Op::Gather(g) => Spec::new("stablehlo.gather")
            .dialect("dimension_numbers", gather_dimensions(g))
            .with("slice_sizes", Ints(&g.slice_sizes))
            .with("indices_are_sorted", Bool(g.sorted)),
        Op::Scatter(s) => {
            let combiner = match s.kind {
                ScatterKind::Assign => None,
                ScatterKind::Add => Some(reduction(ReduceKind::Add, dtype(0))?.0),
                ScatterKind::Mul => Some(reduction(ReduceKind::Mul, dtype(0))?.0),
                ScatterKind::Max => Some(reduction(ReduceKind::Max, dtype(0))?.0),
                ScatterKind::Min => Some(reduction(ReduceKind::Min, dtype(0))?.0),
            };
            Spec::new("stablehlo.scatter")
                .dialect("scatter_dimension_numbers", scatter_dimensions(s))
                .with("indices_are_sorted", Bool(s.sorted))
                .with("unique_indices", Bool(s.unique))
                .body(combine(combiner, dtype(0)))
        }
        Op::RngBitGenerator(r) => Spec::new("stablehlo.rng_bit_generator")
            .dialect("rng_algorithm", format!("#stablehlo<rng_algorithm {}>", rng_algorithm(r.algorithm))),
        Op::Cholesky(c) => Spec::new("stablehlo.cholesky").with("lower", Bool(c.lower)),
        Op::TriangularSolve(t) => Spec::new("stablehlo.triangular_solve")
            .with("left_side", Bool(t.left_side))
            .with("lower", Bool(t.lower))
            .with("unit_diagonal", Bool(t.unit_diagonal))
            .dialect(
                "transpose_a",
                if t.transpose {
                    "#stablehlo<transpose TRANSPOSE>"
                } else {
                    "#stablehlo<transpose NO_TRANSPOSE>"
                },
            ),
        Op::Fft(f) => Spec::new("stablehlo.fft")
            .dialect("fft_type", format!("#stablehlo<fft_type {}>", fft_kind(f.kind)))
            .with("fft_length", Ints(&f.length)),
        Op::If(_) => Spec::new("stablehlo.if"),
        Op::While(_) => Spec::new("stablehlo.while"),
        Op::Call(_) | Op::Custom(_) => Spec::new("func.call"),
        Op::AllReduce(r) => Spec::new("stablehlo.all_reduce")
            .with("replica_groups", Attr::Groups(&r.groups))
            .body(combine(Some(reduction(r.kind, dtype(0))?.0), dtype(0))),
        Op::AllGather(g) => Spec::new("stablehlo.all_gather")
            .with("all_gather_dim", Int(g.dimension))
            .with("replica_groups", Attr::Groups(&g.groups)),
        Op::ReduceScatter(r) => Spec::new("stablehlo.reduce_scatter")
            .with("scatter_dimension", Int(r.dimension))
            .with("replica_groups", Attr::Groups(&r.groups))
            .body(combine(Some(reduction(r.kind, dtype(0))?.0), dtype(0))),
        Op::AllToAll(t) => Spec::new("stablehlo.all_to_all")
            .with("split_dimension", Int(t.split))
            .with("concat_dimension", Int(t.concat))
            .with("split_count", Int(t.groups.size()))
            .with("replica_groups", Attr::Groups(&t.groups)),
        // Without a channel: with one, and one partition, the CPU plugin aborts the process.
        Op::CollectivePermute(p) => Spec::new("stablehlo.collective_permute")
            .with("source_target_pairs", Attr::Pairs(&p.sources, &p.targets)),
        Op::ReplicaId(_) => Spec::new("stablehlo.replica_id"),
        Op::OptimizationBarrier(_) => Spec::new("stablehlo.optimization_barrier"),
        Op::Allocate(_) => {
            Spec::new("stablehlo.custom_call").dialect("call_target_name", "\"AllocateBuffer\"")
        }
    })
}

/// The combiner of a reduction and its identity over `dtype`.
fn reduction(kind: ReduceKind, dtype: DType) -> Result<(BinaryOp, Scalar), String> {
    let refuse = || Err(format!("{} over {dtype} has no meaning", kind.name()));
    let identity = match kind {
        ReduceKind::Max | ReduceKind::Min if dtype.is_complex() => return refuse(),
        ReduceKind::And | ReduceKind::Or | ReduceKind::Xor if dtype.is_float() || dtype.is_complex() => {
            return refuse();
        }
        ReduceKind::Add | ReduceKind::Or | ReduceKind::Xor => Scalar::zero(),
        ReduceKind::Mul => Scalar::one(dtype),
        ReduceKind::Max => Scalar::lowest(dtype),
        ReduceKind::Min => Scalar::highest(dtype),
        ReduceKind::And if dtype == DType::Bool => Scalar(1),
        ReduceKind::And => Scalar::from_i64(dtype, -1),
    };
    Ok((kind.combiner(), identity))
}

/// `(old, new) -> op(old, new)`, or `new` without an operation.
fn combine(op: Option<BinaryOp>, dtype: DType) -> Body {
    let mut body = Body::new(vec![dtype, dtype]);
    let result = op.map_or(1, |op| body.binary(op, 0, 1, dtype));
    body.results = vec![result];
    body
}

/// `((value, index), (value, index)) -> (value, index)`: the extreme, or of equals the lower index. XLA does not
/// promise an order of combination, so neither side is presumed to hold the lower indices.
fn first_extreme(largest: bool, dtype: DType) -> Body {
    let mut body = Body::new(vec![dtype, DType::I64, dtype, DType::I64]);
    let (left, left_index, right, right_index) = (0, 1, 2, 3);
    let direction = if largest { Direction::Gt } else { Direction::Lt };
    let better = body.before(direction, true, left, right, dtype);
    let worse = body.before(direction, true, right, left, dtype);
    let earlier = body.compare(Direction::Lt, left_index, right_index);
    let not_worse = body.step(Op::Unary(torchtpu_ir::UnaryOp::Not), &[worse], DType::Bool);
    let tie = body.binary(BinaryOp::And, not_worse, earlier, DType::Bool);
    let keep = body.binary(BinaryOp::Or, better, tie, DType::Bool);
    let select = || Op::from(torchtpu_ir::op::Select {});
    let value = body.step(select(), &[keep, left, right], dtype);
    let index = body.step(select(), &[keep, left_index, right_index], DType::I64);
    body.results = vec![value, index];
    body
}

pub fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Eq => "EQ",
        Direction::Ne => "NE",
        Direction::Ge => "GE",
        Direction::Gt => "GT",
        Direction::Le => "LE",
        Direction::Lt => "LT",
    }
}

pub fn compare_type(dtype: DType) -> &'static str {
    if dtype.is_signed() {
        "SIGNED"
    } else if dtype.is_unsigned() || dtype == DType::Bool {
        "UNSIGNED"
    } else {
        "FLOAT"
    }
}

pub fn precision(precision: Precision) -> &'static str {
    match precision {
        Precision::Default => "DEFAULT",
        Precision::High => "HIGH",
        Precision::Highest => "HIGHEST",
    }
}

pub fn rng_algorithm(algorithm: RngAlgorithm) -> &'static str {
    match algorithm {
        RngAlgorithm::ThreeFry => "THREE_FRY",
        RngAlgorithm::Philox => "PHILOX",
    }
}

pub fn fft_kind(kind: FftKind) -> &'static str {
    match kind {
        FftKind::Fft => "FFT",
        FftKind::Ifft => "IFFT",
        FftKind::Rfft => "RFFT",
        FftKind::Irfft => "IRFFT",
    }
}

/// `[1, 2]`
pub fn list(values: &[i64]) -> String {
    let mut out = String::with_capacity(2 + values.len() * 4);
    out.push('[');
    for (i, v) in values.iter().enumerate() {
        let _ = write!(out, "{}{v}", if i > 0 { ", " } else { "" });
    }
    out.push(']');
    out
}

/// Fields in order; StableHLO prints empty lists of these attributes as nothing.
fn fields(name: &str, lists: &[(&str, &[i64])], tail: &str) -> String {
    let mut out = format!("#stablehlo.{name}<");
    let start = out.len();
    for (field, values) in lists.iter().filter(|(_, values)| !values.is_empty()) {
        let separator = if out.len() > start { ", " } else { "" };
        let _ = write!(out, "{separator}{field} = {}", list(values));
    }
    if !tail.is_empty() {
        let _ = write!(out, "{}{tail}", if out.len() > start { ", " } else { "" });
    }
    out.push('>');
    out
}

fn dot_dimensions(d: &DotGeneral) -> String {
    let lists: [(&str, &[i64]); 4] = [
        ("lhs_batching_dimensions", &d.lhs_batch),
        ("rhs_batching_dimensions", &d.rhs_batch),
        ("lhs_contracting_dimensions", &d.lhs_contracting),
        ("rhs_contracting_dimensions", &d.rhs_contracting),
    ];
    fields("dot", &lists, "")
}

fn gather_dimensions(g: &Gather) -> String {
    let lists: [(&str, &[i64]); 5] = [
        ("offset_dims", &g.offset_dims),
        ("collapsed_slice_dims", &g.collapsed_slice_dims),
        ("operand_batching_dims", &g.operand_batching_dims),
        ("start_indices_batching_dims", &g.start_indices_batching_dims),
        ("start_index_map", &g.start_index_map),
    ];
    fields("gather", &lists, &format!("index_vector_dim = {}", g.index_vector_dim))
}

fn scatter_dimensions(s: &Scatter) -> String {
    let lists: [(&str, &[i64]); 5] = [
        ("update_window_dims", &s.update_window_dims),
        ("inserted_window_dims", &s.inserted_window_dims),
        ("input_batching_dims", &s.input_batching_dims),
        ("scatter_indices_batching_dims", &s.scatter_indices_batching_dims),
        ("scatter_dims_to_operand_dims", &s.scatter_dims_to_operand_dims),
    ];
    fields("scatter", &lists, &format!("index_vector_dim = {}", s.index_vector_dim))
}

/// `[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]`: for each dimension what it is.
pub fn conv_dimensions(c: &Convolution) -> String {
    let side = |dims: &[i64], first: &str, second: &str| {
        let mut roles: SmallVec<[String; 5]> = smallvec![String::new(); dims.len()];
        for (i, &d) in dims.iter().enumerate() {
            if let Some(role) = roles.get_mut(d as usize) {
                *role = match i {
                    0 => first.into(),
                    1 => second.into(),
                    n => (n - 2).to_string(),
                };
            }
        }
        format!("[{}]", roles.join(", "))
    };
    format!(
        "{}x{}->{}",
        side(&c.lhs_dims, "b", "f"),
        side(&c.rhs_dims, "o", "i"),
        side(&c.out_dims, "b", "f")
    )
}
