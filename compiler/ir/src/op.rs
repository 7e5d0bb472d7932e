//! The table of operations.
//!
//! A pointwise operation is one row of `UnaryOp` or `BinaryOp`; every other operation is one row of `ops!`: its
//! variant, its name in the text form, and its attributes. Printing, parsing, equality and hashing follow from the
//! row. Semantics are those of the StableHLO operation of the same name unless the row says otherwise; what
//! StableHLO writes as a region of scalars (the body of a reduction, a scatter's combiner, a sort's comparator) is a
//! named kind here, so that operations stay comparable; only control flow has regions, which are graphs.

use crate::groups::ReplicaGroups;
use crate::literal::Literal;
use crate::region::Region;
use crate::stablehlo::StableHlo;
use crate::text::{Attr, Cursor};
use crate::types::Ints;

/// What a pointwise operation takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    Any,
    /// Float only.
    Float,
    /// Float or complex.
    FloatComplex,
    /// Signed or unsigned integers, floats, complex.
    Number,
    /// Integers and booleans.
    Bits,
    Int,
    Complex,
}

macro_rules! pointwise {
    ($(#[$doc:meta])* $name:ident { $($variant:ident $text:literal $mlir:literal $domain:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($variant,)* }
        impl $name {
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];
            pub fn name(self) -> &'static str { match self { $($name::$variant => $text,)* } }
            /// The operation that is emitted.
            pub fn mlir_name(self) -> &'static str { match self { $($name::$variant => $mlir,)* } }
            pub fn domain(self) -> Domain { match self { $($name::$variant => Domain::$domain,)* } }
            pub fn from_name(name: &str) -> Option<$name> {
                match name { $($text => Some($name::$variant),)* _ => None }
            }
        }
    };
}

pointwise! {
    /// Pointwise operations of one operand. The result has the operand's type, but `is_finite` gives booleans and
    /// `abs`, `real` and `imag` of a complex give its real type.
    UnaryOp {
        Abs "abs" "stablehlo.abs" Number,
        Acos "acos" "chlo.acos" FloatComplex,
        Acosh "acosh" "chlo.acosh" FloatComplex,
        Asin "asin" "chlo.asin" FloatComplex,
        Asinh "asinh" "chlo.asinh" FloatComplex,
        Atan "atan" "chlo.atan" FloatComplex,
        Atanh "atanh" "chlo.atanh" FloatComplex,
        BesselI1e "bessel_i1e" "chlo.bessel_i1e" Float,
        Cbrt "cbrt" "stablehlo.cbrt" Float,
        Ceil "ceil" "stablehlo.ceil" Float,
        Conj "conj" "chlo.conj" Complex,
        Cosh "cosh" "chlo.cosh" Float,
        Cosine "cosine" "stablehlo.cosine" FloatComplex,
        CountLeadingZeros "count_leading_zeros" "stablehlo.count_leading_zeros" Int,
        Digamma "digamma" "chlo.digamma" Float,
        Erf "erf" "chlo.erf" Float,
        ErfInv "erf_inv" "chlo.erf_inv" Float,
        Erfc "erfc" "chlo.erfc" Float,
        Exponential "exponential" "stablehlo.exponential" FloatComplex,
        ExponentialMinusOne "exponential_minus_one" "stablehlo.exponential_minus_one" FloatComplex,
        Floor "floor" "stablehlo.floor" Float,
        Imag "imag" "stablehlo.imag" Complex,
        IsFinite "is_finite" "stablehlo.is_finite" Float,
        Lgamma "lgamma" "chlo.lgamma" Float,
        Log "log" "stablehlo.log" FloatComplex,
        LogPlusOne "log_plus_one" "stablehlo.log_plus_one" FloatComplex,
        Logistic "logistic" "stablehlo.logistic" FloatComplex,
        Negate "negate" "stablehlo.negate" Number,
        Not "not" "stablehlo.not" Bits,
        Popcnt "popcnt" "stablehlo.popcnt" Int,
        Real "real" "stablehlo.real" Complex,
        RoundNearestAfz "round_nearest_afz" "stablehlo.round_nearest_afz" Float,
        RoundNearestEven "round_nearest_even" "stablehlo.round_nearest_even" Float,
        Rsqrt "rsqrt" "stablehlo.rsqrt" FloatComplex,
        Sign "sign" "stablehlo.sign" Number,
        Sine "sine" "stablehlo.sine" FloatComplex,
        Sinh "sinh" "chlo.sinh" Float,
        Sqrt "sqrt" "stablehlo.sqrt" FloatComplex,
        Tan "tan" "stablehlo.tan" FloatComplex,
        Tanh "tanh" "stablehlo.tanh" FloatComplex,
    }
}

pointwise! {
    /// Pointwise operations of two operands of one type. The result has that type, but `complex` makes a complex
    /// of two floats.
    BinaryOp {
        Add "add" "stablehlo.add" Any,
        And "and" "stablehlo.and" Bits,
        Atan2 "atan2" "stablehlo.atan2" FloatComplex,
        Complex "complex" "stablehlo.complex" Float,
        Divide "divide" "stablehlo.divide" Number,
        Maximum "maximum" "stablehlo.maximum" Any,
        Minimum "minimum" "stablehlo.minimum" Any,
        Multiply "multiply" "stablehlo.multiply" Any,
        NextAfter "next_after" "chlo.next_after" Float,
        Or "or" "stablehlo.or" Bits,
        Polygamma "polygamma" "chlo.polygamma" Float,
        Power "power" "stablehlo.power" Number,
        Remainder "remainder" "stablehlo.remainder" Number,
        ShiftLeft "shift_left" "stablehlo.shift_left" Int,
        ShiftRightArithmetic "shift_right_arithmetic" "stablehlo.shift_right_arithmetic" Int,
        ShiftRightLogical "shift_right_logical" "stablehlo.shift_right_logical" Int,
        Subtract "subtract" "stablehlo.subtract" Number,
        Xor "xor" "stablehlo.xor" Bits,
        Zeta "zeta" "chlo.zeta" Float,
    }
}

impl BinaryOp {
    /// `a op b == b op a`, bit for bit.
    pub fn commutes(self) -> bool {
        use BinaryOp::*;
        matches!(self, Add | And | Maximum | Minimum | Multiply | Or | Xor)
    }
}

macro_rules! word_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }
        impl $name {
            pub fn name(self) -> &'static str { match self { $($name::$variant => $text,)* } }
        }
        impl Attr for $name {
            fn print(&self, out: &mut String) { out.push_str(self.name()); }
            fn parse(cursor: &mut Cursor<'_>) -> Result<Self, String> {
                match cursor.word()? {
                    $($text => Ok($name::$variant),)*
                    other => Err(format!("`{other}` is not one of {}", [$($text,)*].join(", "))),
                }
            }
        }
    };
}

word_enum! {
    /// `Eq` to `Lt` are StableHLO's; floats compare as IEEE does (any comparison with NaN is false but `ne`).
    Direction { Eq "eq", Ne "ne", Ge "ge", Gt "gt", Le "le", Lt "lt", }
}
word_enum! {
    /// The combiner of a reduction, with its identity: 0, 1, lowest, highest, true, false.
    /// `max` and `min` propagate NaN, as StableHLO's maximum and minimum do.
    ReduceKind { Add "add", Mul "mul", Max "max", Min "min", And "and", Or "or", Xor "xor", }
}

impl ReduceKind {
    pub fn combiner(self) -> BinaryOp {
        match self {
            ReduceKind::Add => BinaryOp::Add,
            ReduceKind::Mul => BinaryOp::Multiply,
            ReduceKind::Max => BinaryOp::Maximum,
            ReduceKind::Min => BinaryOp::Minimum,
            ReduceKind::And => BinaryOp::And,
            ReduceKind::Or => BinaryOp::Or,
            ReduceKind::Xor => BinaryOp::Xor,
        }
    }
}

word_enum! {
    /// What a scatter does where an update lands.
    ScatterKind { Assign "assign", Add "add", Mul "mul", Max "max", Min "min", }
}
word_enum! {
    /// StableHLO's precision_config: the number of bf16 passes that a TPU spends on an f32 dot is 1, 3 or 6.
    Precision { Default "default", High "high", Highest "highest", }
}
word_enum! {
    RngAlgorithm { ThreeFry "three_fry", Philox "philox", }
}
word_enum! {
    FftKind { Fft "fft", Ifft "ifft", Rfft "rfft", Irfft "irfft", }
}
word_enum! {
    /// Who supplies a parameter: the caller (by position), the graph's own tensor constants (by position), or the
    /// runtime, which draws a fresh seed from torch's generator for every execution.
    ParamRole { Input "input", Constant "constant", Seed "seed", }
}

macro_rules! ops {
    ($($(#[$doc:meta])* $variant:ident $text:literal { $($field:ident : $ty:ty),* $(,)? })*) => {
        $($(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub struct $variant { $(pub $field: $ty,)* })*

        /// One operation with its attributes; operands and result types are the graph's.
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub enum Op {
            Unary(UnaryOp),
            Binary(BinaryOp),
            $($variant(Box<$variant>),)*
        }

        $(impl From<$variant> for Op { fn from(op: $variant) -> Op { Op::$variant(Box::new(op)) } })*

        impl Op {
            /// Names of all operations with attributes, for messages and tests.
            pub const NAMES: &'static [&'static str] = &[$($text,)*];

            /// The name in the text form.
            pub fn name(&self) -> &'static str {
                match self {
                    Op::Unary(op) => op.name(),
                    Op::Binary(op) => op.name(),
                    $(Op::$variant(_) => $text,)*
                }
            }

            /// The name and the attributes, as the text form has them.
            pub fn text(&self) -> String {
                let mut text = self.name().to_owned();
                self.print_attrs(&mut text);
                text
            }

            pub(crate) fn print_attrs(&self, out: &mut String) {
                match self {
                    Op::Unary(_) | Op::Binary(_) => {}
                    $(Op::$variant(_op) => {
                        let _start = out.len();
                        $(
                            out.push_str(if out.len() == _start { " {" } else { ", " });
                            out.push_str(concat!(stringify!($field), "="));
                            _op.$field.print(out);
                        )*
                        if out.len() != _start { out.push('}'); }
                    })*
                }
            }

            #[allow(unused_assignments, unused_mut)]
            pub(crate) fn parse(name: &str, cursor: &mut Cursor<'_>) -> Result<Op, String> {
                if let Some(op) = UnaryOp::from_name(name) { return Ok(Op::Unary(op)); }
                if let Some(op) = BinaryOp::from_name(name) { return Ok(Op::Binary(op)); }
                match name {
                    $($text => {
                        let mut first = true;
                        $(
                            cursor.expect(if first { "{" } else { "," })?;
                            first = false;
                            cursor.expect(stringify!($field))?;
                            cursor.expect("=")?;
                            let $field = <$ty as Attr>::parse(cursor)?;
                        )*
                        if !first { cursor.expect("}")?; }
                        Ok(Op::from($variant { $($field,)* }))
                    })*
                    other => Err(format!("`{other}` is not an operation")),
                }
            }
        }
    };
}

ops! {
    /// An argument of the program. `index` counts within its role.
    Parameter "parameter" { role: ParamRole, index: i64 }
    Constant "constant" { value: Literal }
    Iota "iota" { dimension: i64 }

    Compare "compare" { direction: Direction }
    /// `select(pred, on_true, on_false)`; pred has the operands' shape.
    Select "select" {}
    /// `clamp(min, operand, max)`, all of one shape.
    Clamp "clamp" {}
    /// Value conversion to the result's dtype: float to integer truncates, anything to pred is `!= 0`.
    Convert "convert" {}
    BitcastConvert "bitcast_convert" {}

    BroadcastInDim "broadcast_in_dim" { dimensions: Ints }
    Reshape "reshape" {}
    Transpose "transpose" { permutation: Ints }
    Reverse "reverse" { dimensions: Ints }
    Slice "slice" { start: Ints, limit: Ints, strides: Ints }
    /// Operand, then one scalar start index a dimension.
    DynamicSlice "dynamic_slice" { sizes: Ints }
    /// Operand, update, then one scalar start index a dimension.
    DynamicUpdateSlice "dynamic_update_slice" {}
    /// Operand and a scalar padding value.
    Pad "pad" { low: Ints, high: Ints, interior: Ints }
    Concatenate "concatenate" { dimension: i64 }

    /// The result's dtype is stated: that of the operands, or a wider one to accumulate in.
    DotGeneral "dot_general" {
        lhs_batch: Ints, rhs_batch: Ints, lhs_contracting: Ints, rhs_contracting: Ints, precision: Precision,
    }
    /// `*_dims` give the position of batch (or output feature), feature (or input feature) and spatial dimensions:
    /// `lhs_dims = [batch, feature, spatial...]`, `rhs_dims = [output feature, input feature, spatial...]`,
    /// `out_dims = [batch, feature, spatial...]`.
    Convolution "convolution" {
        lhs_dims: Ints, rhs_dims: Ints, out_dims: Ints,
        strides: Ints, pad_low: Ints, pad_high: Ints, lhs_dilation: Ints, rhs_dilation: Ints,
        feature_groups: i64, batch_groups: i64, precision: Precision,
    }

    /// Reduces `dimensions` away, from the kind's identity or from a second operand, a scalar, which joins every result.
    Reduce "reduce" { dimensions: Ints, kind: ReduceKind }
    /// Results: the extreme value and its first index (s64) along `dimension`; a NaN is the extreme.
    ArgReduce "arg_reduce" { dimension: i64, largest: bool }
    ReduceWindow "reduce_window" {
        window: Ints, strides: Ints, pad_low: Ints, pad_high: Ints, base_dilation: Ints, window_dilation: Ints,
        kind: ReduceKind,
    }
    /// Operands are sorted together along `dimension` by the first, stably. Floats: -0 equals 0 and NaN is greatest.
    Sort "sort" { dimension: i64, descending: bool }

    Gather "gather" {
        offset_dims: Ints, collapsed_slice_dims: Ints, operand_batching_dims: Ints, start_indices_batching_dims: Ints,
        start_index_map: Ints, index_vector_dim: i64, slice_sizes: Ints, sorted: bool,
    }
    /// Operand, indices, updates.
    Scatter "scatter" {
        update_window_dims: Ints, inserted_window_dims: Ints, input_batching_dims: Ints,
        scatter_indices_batching_dims: Ints, scatter_dims_to_operand_dims: Ints, index_vector_dim: i64,
        kind: ScatterKind, sorted: bool, unique: bool,
    }

    /// State (u64[2]) in; next state and random bits (an unsigned type) out.
    RngBitGenerator "rng_bit_generator" { algorithm: RngAlgorithm }

    Cholesky "cholesky" { lower: bool }
    /// `a`, `b`: solves `op(a) x = b`, or `x op(a) = b` where not `left_side`.
    TriangularSolve "triangular_solve" { left_side: bool, lower: bool, unit_diagonal: bool, transpose: bool }
    Fft "fft" { kind: FftKind, length: Ints }

    /// A predicate, then the arguments of either branch; results are the chosen branch's.
    If "if" { on_true: Region, on_false: Region }
    /// Operands are the first state; while `cond` gives true, `body` makes the next one. Results are the last state.
    While "while" { cond: Region, body: Region }
    /// Runs a function, which is emitted once however many calls of it there are.
    Call "call" { body: Region }

    /// A function of the user's, whose type says what operands and results there are.
    Custom "custom" { function: StableHlo }

    /// Every device gives its operand, and gets what those of its group combine to.
    AllReduce "all_reduce" { groups: ReplicaGroups, kind: ReduceKind }
    /// Every device gets the operands of its group, on end along `dimension`.
    AllGather "all_gather" { dimension: i64, groups: ReplicaGroups }
    /// What `all_reduce` gives is cut along `dimension`, and every device of a group gets its part, the first the first.
    ReduceScatter "reduce_scatter" { dimension: i64, groups: ReplicaGroups, kind: ReduceKind }
    /// Every device cuts its operand along `split`, a part for each of its group, and gets theirs on end along `concat`.
    AllToAll "all_to_all" { split: i64, concat: i64, groups: ReplicaGroups }
    /// Of `devices`, `sources[i]` sends its operand to `targets[i]`. Who gets none has zeros.
    CollectivePermute "collective_permute" { sources: Ints, targets: Ints, devices: i64 }
    /// The number of the device that runs the program: a u32 below `devices`.
    ReplicaId "replica_id" { devices: i64 }

    /// Keeps its operands from being fused or moved across it.
    OptimizationBarrier "optimization_barrier" {}
    /// Memory of the result's type whose elements nobody has set. TPUs alone have it.
    Allocate "allocate" {}
}

impl Op {
    /// The graphs inside this operation.
    pub fn regions(&self) -> Vec<&Region> {
        match self {
            Op::If(op) => vec![&op.on_true, &op.on_false],
            Op::While(op) => vec![&op.cond, &op.body],
            Op::Call(op) => vec![&op.body],
            _ => Vec::new(),
        }
    }

    pub fn regions_mut(&mut self) -> Vec<&mut Region> {
        match self {
            Op::If(op) => vec![&mut op.on_true, &mut op.on_false],
            Op::While(op) => vec![&mut op.cond, &mut op.body],
            Op::Call(op) => vec![&mut op.body],
            _ => Vec::new(),
        }
    }

    /// How many devices run a program with this operation, where it says so.
    pub fn devices(&self) -> Option<i64> {
        match self {
            Op::AllReduce(op) => Some(op.groups.devices()),
            Op::AllGather(op) => Some(op.groups.devices()),
            Op::ReduceScatter(op) => Some(op.groups.devices()),
            Op::AllToAll(op) => Some(op.groups.devices()),
            Op::CollectivePermute(op) => Some(op.devices),
            Op::ReplicaId(op) => Some(op.devices),
            _ => None,
        }
    }

    /// Results depend on the operands and the device alone, and there are no effects: may be merged, moved and dropped.
    pub fn is_pure(&self) -> bool {
        !matches!(self, Op::Parameter(_))
    }

    /// One result element per operand element at the same index.
    pub fn is_elementwise(&self) -> bool {
        matches!(
            self,
            Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select(_) | Op::Clamp(_) | Op::Convert(_)
        )
    }
}
