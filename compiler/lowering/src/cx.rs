//! What a lowering sees: the arguments of one FX node by schema name, its result types, and a builder.

use crate::table::Result;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use torchtpu_import::{Arg, Meta, Node, Payload, Size, Target};
use torchtpu_ir::op::{ParamRole, RngAlgorithm};
use torchtpu_ir::{
    BinaryOp, Builder, CompileError, DType, Direction, Graph, Location, Precision, ReduceKind, Region,
    ReplicaGroups, Scalar, TensorType, Value,
};

/// What one FX node stands for.
#[derive(Clone, Debug)]
pub enum Lowering {
    One(Value),
    Many(Vec<Option<Value>>),
}

/// A Python number argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    Bool(bool),
    Int(i64),
    Float(f64),
    Complex(f64, f64),
}

impl Number {
    pub fn f64(self) -> f64 {
        match self {
            Number::Bool(v) => v as i64 as f64,
            Number::Int(v) => v as f64,
            Number::Float(v) | Number::Complex(v, _) => v,
        }
    }
    pub fn i64(self) -> i64 {
        match self {
            Number::Bool(v) => v as i64,
            Number::Int(v) => v,
            Number::Float(v) | Number::Complex(v, _) => v as i64,
        }
    }
    pub fn scalar(self, dtype: DType) -> Scalar {
        match self {
            Number::Bool(v) => Scalar::from_i64(dtype, v as i64),
            Number::Int(v) => Scalar::from_i64(dtype, v),
            Number::Float(v) => Scalar::from_f64(dtype, v),
            Number::Complex(re, im) if dtype.is_complex() => Scalar::from_complex(dtype, re, im),
            Number::Complex(re, _) => Scalar::from_f64(dtype, re),
        }
    }
}

/// The compiler's switches that lowerings read.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Precision of f32 dots and convolutions (`torch.set_float32_matmul_precision`).
    pub precision: Precision,
    /// What is beyond float8_e4m3fn becomes NaN and not its greatest value.
    pub float8_overflow_is_nan: bool,
    /// Process groups by name.
    pub groups: Rc<BTreeMap<String, ReplicaGroups>>,
    /// Emit the predicates of `Cx::check`.
    pub check_bounds: bool,
    /// Inside a branch or a loop.
    pub in_region: bool,
    /// The texts that nodes of the payload, nested ones too, name.
    pub stablehlo: std::sync::Arc<[String]>,
    /// The graph stands for all sizes up to this: what takes log2(n) operations takes as many as for the largest.
    pub largest: Option<i64>,
}

/// A predicate that must be false at run time, and what to say where it is not.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Check {
    pub op: String,
    pub location: Location,
    pub message: String,
}

pub struct Cx<'a> {
    pub b: Builder<'a>,
    pub settings: Settings,
    pub(crate) payload: &'a Payload,
    pub(crate) node: &'a Node,
    pub(crate) target: &'a Target,
    pub(crate) values: Vec<Lowering>,
    pub(crate) out: Vec<Option<TensorType>>,
    /// The generator state that the next random operation uses, once one has been asked for.
    pub(crate) rng_state: Option<Value>,
    /// What it was before an operation that draws from a state of its own.
    pub(crate) rng_before: Vec<Option<Value>>,
    pub(crate) checks: Vec<(Value, Check)>,
    /// Takes the failures of nodes, where more than the first is wanted.
    pub(crate) survey: Option<crate::lower::Survey>,
    pub(crate) functions: Functions,
}

/// The functions lowered so far, by the nested graph (its address) and the types of its operands. The graphs inside
/// one another share them.
pub(crate) type Functions = Rc<RefCell<Vec<(usize, Vec<TensorType>, Region)>>>;

/// The IR type of a PyTorch tensor.
pub fn tensor_type(meta: &Meta) -> Result<TensorType> {
    if let Some(layout) = &meta.layout {
        return Err(CompileError::lowering(format!("tensors of layout {layout} are not supported"))
            .help("strided tensors are; call .to_dense() before the compiled function"));
    }
    if let Some(device) = &meta.device {
        return Err(CompileError::lowering(format!("a tensor is on device {device}")).help(
            "inputs live on the CPU and the runtime moves them; call .cpu() before the compiled function",
        ));
    }
    let dtype = DType::from_torch_name(&meta.dtype).filter(|_| !meta.dtype.is_empty()).ok_or_else(|| {
        let known: Vec<_> = DType::ALL.iter().map(|d| d.torch_name()).collect();
        CompileError::lowering(format!("dtype torch.{} is not supported", meta.dtype))
            .help(format!("supported dtypes: {}", known.join(", ")))
    })?;
    let shape = meta.shape.iter().map(size).collect::<Result<Vec<_>>>()?;
    Ok(TensorType { dtype, shape })
}

pub(crate) fn size(s: &Size) -> Result<i64> {
    match s {
        Size::Known(v) if *v >= 0 => Ok(*v),
        Size::Known(v) => Err(CompileError::lowering(format!("negative size {v}"))),
        Size::Symbolic(text) => Err(CompileError::lowering(format!("size `{text}` is not bound"))),
    }
}

impl<'a> Cx<'a> {
    /// The ATen overload being lowered.
    pub fn target(&self) -> &'a str {
        &self.target.name
    }

    /// Type of result `i` as PyTorch computed it. The driver checks what a lowering returns against it.
    pub fn out(&self, i: usize) -> Result<TensorType> {
        self.out
            .get(i)
            .cloned()
            .flatten()
            .ok_or_else(|| CompileError::lowering(format!("result {i} is not a tensor")))
    }

    /// Number of results.
    pub fn out_count(&self) -> usize {
        self.out.len()
    }

    /// The result is used or at least typed: ATen backward ops leave masked-out gradients undefined.
    pub fn has_out(&self, i: usize) -> bool {
        matches!(self.out.get(i), Some(Some(_)))
    }

    pub fn graph(&self) -> &Graph {
        self.b.graph
    }

    // Arguments, by the name in the ATen schema.

    /// The raw argument; `None` where the schema of this PyTorch has no such parameter.
    pub fn arg(&self, name: &str) -> &'a Arg {
        let index = self.target.params.iter().position(|p| p == name);
        index.and_then(|i| self.node.args.get(i)).unwrap_or(&Arg::None)
    }

    fn bad<T>(&self, name: &str, expected: &str) -> Result<T> {
        Err(CompileError::lowering(format!("argument `{name}` is {:?}, expected {expected}", self.arg(name))))
    }

    pub fn is_none(&self, name: &str) -> bool {
        matches!(self.arg(name), Arg::None)
    }

    pub(crate) fn value(&self, index: usize) -> Result<Value> {
        match self.values.get(index) {
            Some(Lowering::One(v)) => Ok(*v),
            _ => Err(CompileError::lowering("a tuple stands where a tensor is expected")),
        }
    }

    pub fn tensor(&self, name: &str) -> Result<Value> {
        match self.arg(name) {
            Arg::Value(i) => self.value(*i),
            _ => self.bad(name, "a tensor"),
        }
    }
    pub fn opt_tensor(&self, name: &str) -> Result<Option<Value>> {
        if self.is_none(name) { Ok(None) } else { self.tensor(name).map(Some) }
    }
    pub fn tensors(&self, name: &str) -> Result<Vec<Value>> {
        self.opt_tensors(name)?.into_iter().map(|v| v.map_or_else(|| self.bad(name, "tensors"), Ok)).collect()
    }
    /// The tensors among what a higher-order operator passes to its graph. Sizes are passed along with them, and the
    /// graph knows these already.
    pub fn operands(&self, name: &str) -> Result<Vec<Value>> {
        match self.arg(name) {
            Arg::List(list) => list
                .iter()
                .filter_map(|a| match a {
                    Arg::Value(i) => Some(self.value(*i)),
                    Arg::Int(_) | Arg::Float(_) | Arg::Bool(_) => None,
                    _ => Some(self.bad(name, "a list of tensors and sizes")),
                })
                .collect(),
            _ => self.tensors(name),
        }
    }
    /// A list of tensors in which some may be None, as in `index`.
    pub fn opt_tensors(&self, name: &str) -> Result<Vec<Option<Value>>> {
        match self.arg(name) {
            Arg::List(list) => list
                .iter()
                .map(|a| match a {
                    Arg::Value(i) => self.value(*i).map(Some),
                    Arg::None => Ok(None),
                    _ => self.bad(name, "a list of tensors"),
                })
                .collect(),
            // A multi-result node passed whole, as split's list is.
            Arg::Value(i) => match self.values.get(*i) {
                Some(Lowering::Many(list)) => Ok(list.clone()),
                _ => self.bad(name, "a list of tensors"),
            },
            _ => self.bad(name, "a list of tensors"),
        }
    }
    pub fn opt_int(&self, name: &str) -> Result<Option<i64>> {
        match self.arg(name) {
            Arg::None => Ok(None),
            Arg::Int(v) => Ok(Some(*v)),
            Arg::Bool(v) => Ok(Some(*v as i64)),
            Arg::Float(v) if v.fract() == 0.0 => Ok(Some(*v as i64)),
            _ => self.bad(name, "an integer"),
        }
    }
    pub fn int(&self, name: &str) -> Result<i64> {
        self.opt_int(name)?.map_or_else(|| self.bad(name, "an integer"), Ok)
    }
    /// None where the list is absent; a lone integer is a list of one.
    pub fn opt_ints(&self, name: &str) -> Result<Option<Vec<i64>>> {
        match self.arg(name) {
            Arg::None => Ok(None),
            Arg::Int(v) => Ok(Some(vec![*v])),
            Arg::List(list) => list
                .iter()
                .map(|a| match a {
                    Arg::Int(v) => Ok(*v),
                    Arg::Bool(v) => Ok(*v as i64),
                    _ => self.bad(name, "a list of integers"),
                })
                .collect::<Result<_>>()
                .map(Some),
            _ => self.bad(name, "a list of integers"),
        }
    }
    pub fn ints(&self, name: &str) -> Result<Vec<i64>> {
        self.opt_ints(name)?.map_or_else(|| self.bad(name, "a list of integers"), Ok)
    }
    /// A list over `n` spatial dimensions: PyTorch lets one entry stand for all, and an empty list for `default`.
    pub fn ints_n(&self, name: &str, n: usize, default: i64) -> Result<Vec<i64>> {
        let list = self.opt_ints(name)?.unwrap_or_default();
        match list.len() {
            0 => Ok(vec![default; n]),
            1 => Ok(vec![list[0]; n]),
            len if len == n => Ok(list),
            _ => self.bad(name, &format!("{n} integers")),
        }
    }
    pub fn opt_number(&self, name: &str) -> Result<Option<Number>> {
        match self.arg(name) {
            Arg::None => Ok(None),
            Arg::Bool(v) => Ok(Some(Number::Bool(*v))),
            Arg::Int(v) => Ok(Some(Number::Int(*v))),
            Arg::Float(v) => Ok(Some(Number::Float(*v))),
            Arg::Complex(re, im) => Ok(Some(Number::Complex(*re, *im))),
            _ => self.bad(name, "a number"),
        }
    }
    pub fn number(&self, name: &str) -> Result<Number> {
        self.opt_number(name)?.map_or_else(|| self.bad(name, "a number"), Ok)
    }
    pub fn opt_float(&self, name: &str) -> Result<Option<f64>> {
        Ok(self.opt_number(name)?.map(Number::f64))
    }
    pub fn float(&self, name: &str) -> Result<f64> {
        self.number(name).map(Number::f64)
    }
    /// False where absent.
    pub fn bool(&self, name: &str) -> Result<bool> {
        match self.arg(name) {
            Arg::None => Ok(false),
            Arg::Bool(v) => Ok(*v),
            Arg::Int(v) => Ok(*v != 0),
            _ => self.bad(name, "a boolean"),
        }
    }
    pub fn bools(&self, name: &str) -> Result<Vec<bool>> {
        Ok(self.ints(name)?.into_iter().map(|v| v != 0).collect())
    }
    pub fn opt_string(&self, name: &str) -> Result<Option<&'a str>> {
        match self.arg(name) {
            Arg::None => Ok(None),
            Arg::Str(s) => Ok(Some(s)),
            _ => self.bad(name, "a string"),
        }
    }

    /// A `dim` argument: negative counts from the end; a 0-d tensor has dimension 0, as in PyTorch.
    pub fn dim(&self, name: &str, rank: usize) -> Result<usize> {
        self.wrap(self.int(name)?, rank)
    }
    /// A `dim` list; empty or absent means every dimension.
    pub fn dims(&self, name: &str, rank: usize) -> Result<Vec<usize>> {
        let list = self.opt_ints(name)?.unwrap_or_default();
        if list.is_empty() {
            return Ok((0..rank).collect());
        }
        let mut dims = list.into_iter().map(|d| self.wrap(d, rank)).collect::<Result<Vec<_>>>()?;
        if rank == 0 {
            dims.clear();
        }
        Ok(dims)
    }
    pub fn wrap(&self, dim: i64, rank: usize) -> Result<usize> {
        let n = rank.max(1) as i64;
        if (-n..n).contains(&dim) {
            Ok((if dim < 0 { dim + n } else { dim }) as usize)
        } else {
            Err(CompileError::lowering(format!("dimension {dim} of a tensor of rank {rank}")))
        }
    }

    /// A tensor, or a number as a 0-d tensor, converted to `dtype`.
    pub fn operand(&mut self, name: &str, dtype: DType) -> Result<Value> {
        match self.arg(name) {
            Arg::Value(i) => {
                let v = self.value(*i)?;
                self.convert(v, dtype)
            }
            _ => {
                let scalar = self.number(name)?.scalar(dtype);
                Ok(self.b.splat(TensorType::scalar(dtype), scalar))
            }
        }
    }

    /// As `operand`, broadcast to `shape`. A number becomes a constant of that shape at once.
    pub fn operand_to(&mut self, name: &str, dtype: DType, shape: &[i64]) -> Result<Value> {
        if let Arg::Value(i) = self.arg(name) {
            let v = self.value(*i)?;
            let v = self.convert(v, dtype)?;
            return self.b.broadcast_to(v, shape);
        }
        let scalar = self.number(name)?.scalar(dtype);
        Ok(self.b.splat(TensorType::new(dtype, shape), scalar))
    }

    /// PyTorch's value conversion (`Tensor.to`): complex to real drops the imaginary part, real to complex adds a
    /// zero one, anything to bool is `!= 0`. Float to a narrower integer goes through s64, as a C cast does in
    /// PyTorch for values in the range of s64.
    pub fn convert(&mut self, v: Value, dtype: DType) -> Result<Value> {
        let from = self.b.dtype(v);
        if from == dtype {
            return Ok(v);
        }
        if from.is_complex() && dtype == DType::Bool {
            let zero = self.b.full_like(v, 0.0);
            return self.b.compare(torchtpu_ir::Direction::Ne, v, zero);
        }
        if from.is_complex() && !dtype.is_complex() {
            let real = self.b.unary(torchtpu_ir::UnaryOp::Real, v)?;
            return self.b.convert(real, dtype);
        }
        if dtype.is_complex() && !from.is_complex() {
            let re = self.b.convert(v, dtype.real())?;
            let im = self.b.full_like(re, 0.0);
            return self.b.binary(torchtpu_ir::BinaryOp::Complex, re, im);
        }
        if dtype.is_float8() {
            return self.float8(v, dtype);
        }
        if from.is_float() && dtype.is_int() && dtype.bits() < 32 {
            let wide = self.b.convert(v, DType::I64)?;
            return self.b.convert(wide, dtype);
        }
        self.b.convert(v, dtype)
    }

    /// PyTorch converts to an 8-bit float by way of f32. StableHLO makes a NaN of what is beyond e4m3fn.
    fn float8(&mut self, v: Value, dtype: DType) -> Result<Value> {
        let mut v = self.b.convert(v, DType::F32)?;
        if dtype == DType::F8E8M0FNU {
            return self.power_of_two(v);
        }
        if dtype == DType::F8E4M3FN && !self.settings.float8_overflow_is_nan {
            let (low, high) = (self.b.full_like(v, -448.0), self.b.full_like(v, 448.0));
            v = self.b.clamp(low, v, high)?;
        }
        self.b.convert(v, dtype)
    }

    /// The nearest power of two, as float8_e8m0fnu: the exponent of f32, where PyTorch ignores the sign and rounds
    /// 1.5 up but in the lowest exponent.
    fn power_of_two(&mut self, v: Value) -> Result<Value> {
        let ty = self.b.ty(v).with_dtype(DType::U32);
        let bits = self.b.bitcast(v, ty.clone())?;
        let sign = self.b.full_int(&ty, 0x7fff_ffff);
        let bits = self.b.and(bits, sign)?;
        let half = self.b.full_int(&ty, 0x40_0000);
        let rounded = self.b.add(bits, half)?;
        let mantissa = self.b.full_int(&ty, 23);
        let exponent = self.b.binary(BinaryOp::ShiftRightLogical, rounded, mantissa)?;
        let nan = self.b.full_int(&ty, 0xff);
        let exponent = self.b.min(exponent, nan)?;
        let lowest = self.b.compare(Direction::Eq, bits, half)?;
        let zero = self.b.full_int(&ty, 0);
        let exponent = self.b.select(lowest, zero, exponent)?;
        let code = self.b.convert(exponent, DType::U8)?;
        self.b.bitcast(code, ty.with_dtype(DType::F8E8M0FNU))
    }

    /// Random bits of an unsigned type from this execution's seed; every call draws other bits.
    pub fn random_bits(&mut self, bits: TensorType) -> Result<Value> {
        let state = self.generator_state()?;
        let (next, bits) = self.b.rng_bits(RngAlgorithm::ThreeFry, state, bits)?;
        self.rng_state = Some(next);
        Ok(bits)
    }

    /// The state from which the next random bits come, a u64[2]. A region has it as an operand where its graphs
    /// draw, as `families::control` sees to.
    pub fn generator_state(&mut self) -> Result<Value> {
        match self.rng_state {
            Some(state) => Ok(state),
            None if self.settings.in_region => {
                Err(CompileError::lowering("random numbers are not supported in the condition of a loop")
                    .help("draw them before, and pass them as operands"))
            }
            None => {
                let ty = TensorType::new(DType::U64, [2]);
                let state = self.b.parameter(ParamRole::Seed, 0, ty);
                self.rng_state = Some(state);
                Ok(state)
            }
        }
    }

    /// The arguments from position `first` on, at most `count`, which are tensors.
    pub fn trailing_tensors(&self, first: usize, count: usize) -> Result<Vec<Value>> {
        let given = self.node.args.iter().skip(first).take(count);
        given
            .map(|arg| match arg {
                Arg::Value(i) => self.value(*i),
                _ => Err(CompileError::lowering("an operand of a nested graph is no tensor")),
            })
            .collect()
    }

    /// A graph argument of a higher-order operator.
    pub fn nested(&self, name: &str) -> Result<&'a Payload> {
        match self.arg(name) {
            Arg::Graph(index) => self.payload.graphs.get(*index),
            _ => None,
        }
        .ok_or_else(|| CompileError::lowering(format!("`{name}` is no graph")))
    }

    /// A list of graphs.
    pub fn nested_list(&self, name: &str) -> Result<Vec<&'a Payload>> {
        let Arg::List(list) = self.arg(name) else { return self.bad(name, "a list of graphs") };
        let graph = |arg: &Arg| match arg {
            Arg::Graph(index) => self.payload.graphs.get(*index),
            _ => None,
        };
        list.iter().map(|arg| graph(arg).map_or_else(|| self.bad(name, "a list of graphs"), Ok)).collect()
    }

    /// Under `check_bounds`: the execution raises `message` at this line if any element of `bad` is true.
    pub fn check(
        &mut self,
        bad: impl FnOnce(&mut Self) -> Result<Value>,
        message: impl Into<String>,
    ) -> Result<()> {
        if !self.settings.check_bounds {
            return Ok(());
        }
        let bad = bad(self)?;
        let dims: Vec<i64> = (0..self.b.rank(bad) as i64).collect();
        let bad = self.b.reduce(ReduceKind::Or, bad, &dims)?;
        let location = self.b.graph.location(self.b.loc).clone();
        self.checks.push((bad, Check { op: self.target.name.clone(), location, message: message.into() }));
        Ok(())
    }

    /// Under `check_bounds`: integer indices must lie in `low..high`.
    pub fn check_indices(&mut self, indices: Value, low: i64, high: i64) -> Result<()> {
        let message = format!("an index is out of range for a dimension of size {high}");
        self.check(
            |cx| {
                let wide = cx.b.convert(indices, DType::I64)?;
                let below = cx.b.compare_const(Direction::Lt, wide, low as f64)?;
                let above = cx.b.compare_const(Direction::Ge, wide, high as f64)?;
                cx.b.or(below, above)
            },
            message,
        )
    }

    /// Under `check_bounds`: an integer divisor must not be zero.
    pub fn check_divisor(&mut self, divisor: Value) -> Result<()> {
        if !self.b.dtype(divisor).is_int() {
            return Ok(());
        }
        self.check(|cx| cx.b.compare_const(Direction::Eq, divisor, 0.0), "integer division by zero")
    }
}
