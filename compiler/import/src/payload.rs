//! The schema of one graph.

use crate::arg::Arg;
use crate::symbols::{Bindings, Evaluator, Number};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use torchtpu_ir::{CompileError, Frame, Location, Stage};

/// Raised whenever a reader of the old schema would misread the new one.
pub const VERSION: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Inference,
    Forward,
    Backward,
}

/// A size or stride: known, or an expression over the symbols of the inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Size {
    Known(i64),
    Symbolic(String),
}

/// What PyTorch says of one tensor: dtype name, shape, strides in elements.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    pub dtype: String,
    pub shape: Vec<Size>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stride: Vec<Size>,
    /// Where in its memory the tensor begins, in elements; absent where that is the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<Size>,
    /// Absent for strided tensors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<String>,
    /// Absent for CPU tensors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

/// A placeholder: a tensor, or a symbolic number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Input {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val: Option<Meta>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sym: Option<String>,
    /// A parameter or buffer: the same tensor call after call.
    #[serde(default, rename = "static", skip_serializing_if = "std::ops::Not::not")]
    pub is_static: bool,
}

/// A tensor that the graph itself owns. Small ones carry their row-major little-endian bytes in hexadecimal and
/// become constants; the caller passes the others after the inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Constant {
    pub name: String,
    pub val: Meta,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hex: Option<String>,
}

/// One operator with the names of its parameters, in schema order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Target {
    pub name: String,
    pub params: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    pub name: String,
    /// Index into `Payload::targets`.
    pub target: usize,
    pub args: Vec<Arg>,
    /// One entry a result; `null` for a result that is no tensor.
    pub vals: Vec<Option<Meta>>,
    /// Index into `Payload::stacks`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<usize>,
    /// Index into the outermost `Payload::stablehlo`, for an operator whose lowering is the user's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stablehlo: Option<usize>,
    /// The results are a tuple or list, be it of one.
    #[serde(default, rename = "tuple", skip_serializing_if = "std::ops::Not::not")]
    pub is_tuple: bool,
}

/// One FX graph. Values are numbered over inputs, then constants, then nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Payload {
    pub version: u32,
    pub name: String,
    pub kind: Kind,
    /// The PyTorch that made the graph.
    pub torch: String,
    /// `torch.get_float32_matmul_precision()`.
    pub matmul_precision: String,
    /// Whether this PyTorch converts what is beyond float8_e4m3fn to NaN (2.11) and not to its greatest value.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub float8_overflow_is_nan: bool,
    pub inputs: Vec<Input>,
    #[serde(default)]
    pub constants: Vec<Constant>,
    pub targets: Vec<Target>,
    pub nodes: Vec<Node>,
    /// Tensors that the program returns; anything else a graph returns is the caller's to fill in.
    pub outputs: Vec<Arg>,
    /// User stacks, innermost frame first: file, line, function.
    #[serde(default)]
    pub stacks: Vec<Vec<(String, u32, String)>>,
    /// Process groups by name; those that the collectives of the graph, and of graphs nested in it, are over. Each with
    /// those that the other ranks join in its place: every rank of the world once, in the order of its group.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, Vec<Vec<i64>>>,
    /// What higher-order operators run: branches, bodies of loops. Each has targets, stacks and graphs of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub graphs: Vec<Payload>,
    /// Functions in StableHLO that nodes call, those of nested graphs too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stablehlo: Vec<String>,
}

/// Deeper nesting than this is no program, and would exhaust the stack.
const MAX_DEPTH: usize = 64;

fn corrupt(message: impl std::fmt::Display) -> CompileError {
    CompileError::new(Stage::Import, format!("corrupt FX payload: {message}"))
        .help("payloads are written by torchtpu_dynamo of the same version; export the graph again")
}

impl Payload {
    /// Parses and checks a payload; every index in it is valid afterwards.
    pub fn from_json(json: &[u8]) -> Result<Payload, CompileError> {
        #[derive(Deserialize)]
        struct Header {
            version: u32,
        }
        let payload: Payload =
            serde_json::from_slice(json).map_err(|e| match serde_json::from_slice(json) {
                Ok(Header { version }) if version != VERSION => wrong_version(version),
                _ => corrupt(e),
            })?;
        if payload.version != VERSION {
            return Err(wrong_version(payload.version));
        }
        payload.check(0)?;
        Ok(payload)
    }

    pub fn to_json(&self) -> Result<String, CompileError> {
        serde_json::to_string(self).map_err(corrupt)
    }

    fn check(&self, depth: usize) -> Result<(), CompileError> {
        fn args_ok(args: &[Arg], bound: usize, graphs: usize) -> bool {
            args.iter().all(|a| match a {
                Arg::Value(v) => *v < bound,
                Arg::Graph(g) => *g < graphs,
                Arg::List(list) => args_ok(list, bound, graphs),
                _ => true,
            })
        }
        if depth == MAX_DEPTH {
            return Err(corrupt(format!("graphs are nested more than {MAX_DEPTH} deep")));
        }
        self.graphs.iter().try_for_each(|graph| graph.check(depth + 1))?;
        let first = self.inputs.len() + self.constants.len();
        for (i, node) in self.nodes.iter().enumerate() {
            let Some(target) = self.targets.get(node.target) else {
                return Err(corrupt(format!("node {} has no target {}", node.name, node.target)));
            };
            if node.args.len() > target.params.len() {
                return Err(corrupt(format!(
                    "node {} has more arguments than {} takes",
                    node.name, target.name
                )));
            }
            if !args_ok(&node.args, first + i, self.graphs.len()) {
                return Err(corrupt(format!(
                    "node {} reads a value that is not defined before it",
                    node.name
                )));
            }
            if node.stack.is_some_and(|s| s >= self.stacks.len()) {
                return Err(corrupt(format!("node {} has a stack that does not exist", node.name)));
            }
        }
        if !args_ok(&self.outputs, first + self.nodes.len(), 0) {
            return Err(corrupt("an output reads a value that does not exist"));
        }
        Ok(())
    }

    /// True while sizes or arguments are symbolic.
    pub fn is_symbolic(&self) -> bool {
        let meta = |m: &Meta| m.shape.iter().chain(&m.stride).any(|s| matches!(s, Size::Symbolic(_)));
        self.inputs.iter().any(|i| i.sym.is_some() || i.val.as_ref().is_some_and(meta))
            || self.nodes.iter().any(|n| n.vals.iter().flatten().any(meta) || n.args.iter().any(has_symbol))
            || self.graphs.iter().any(Payload::is_symbolic)
    }

    /// Replaces what the bindings decide, and leaves the rest: a node that needs it has no lowering.
    pub fn bind_known(&mut self, bindings: &Bindings) {
        self.bind_what_is_known(&mut Evaluator::new(bindings));
    }

    fn bind_what_is_known(&mut self, symbols: &mut Evaluator<'_>) {
        fn meta(m: &mut Meta, symbols: &mut Evaluator<'_>) {
            for size in m.shape.iter_mut().chain(&mut m.stride).chain(&mut m.offset) {
                if let Size::Symbolic(text) = size
                    && let Ok(Number::Int(v)) = symbols.value(text)
                {
                    *size = Size::Known(v);
                }
            }
        }
        fn arg(a: &mut Arg, symbols: &mut Evaluator<'_>) {
            match a {
                Arg::Sym(text) => match symbols.value(text) {
                    Ok(Number::Int(v)) => *a = Arg::Int(v),
                    Ok(Number::Float(v)) => *a = Arg::Float(v),
                    Err(_) => {}
                },
                Arg::List(list) => list.iter_mut().for_each(|a| arg(a, symbols)),
                _ => {}
            }
        }
        self.graphs.iter_mut().for_each(|graph| graph.bind_what_is_known(symbols));
        self.inputs.iter_mut().filter_map(|i| i.val.as_mut()).for_each(|m| meta(m, symbols));
        for node in &mut self.nodes {
            node.vals.iter_mut().flatten().for_each(|m| meta(m, symbols));
            node.args.iter_mut().for_each(|a| arg(a, symbols));
        }
    }

    /// Replaces every symbolic size and argument by its value.
    pub fn bind(&mut self, bindings: &Bindings) -> Result<(), CompileError> {
        self.bind_with(&mut Evaluator::new(bindings))
    }

    fn bind_with(&mut self, symbols: &mut Evaluator<'_>) -> Result<(), CompileError> {
        fn meta(m: &mut Meta, symbols: &mut Evaluator<'_>) -> Result<(), String> {
            for size in m.shape.iter_mut().chain(&mut m.stride).chain(&mut m.offset) {
                if let Size::Symbolic(text) = size {
                    *size = match symbols.value(text)? {
                        Number::Int(v) => Size::Known(v),
                        Number::Float(v) => return Err(format!("size `{text}` is {v}, no integer")),
                    };
                }
            }
            Ok(())
        }
        fn arg(a: &mut Arg, symbols: &mut Evaluator<'_>) -> Result<(), String> {
            match a {
                Arg::Sym(text) => {
                    *a = match symbols.value(text)? {
                        Number::Int(v) => Arg::Int(v),
                        Number::Float(v) => Arg::Float(v),
                    };
                    Ok(())
                }
                Arg::List(list) => list.iter_mut().try_for_each(|a| arg(a, symbols)),
                _ => Ok(()),
            }
        }
        let fail = |m: String| CompileError::new(Stage::Import, m);
        self.graphs.iter_mut().try_for_each(|graph| graph.bind_with(symbols))?;
        for m in self.inputs.iter_mut().filter_map(|i| i.val.as_mut()) {
            meta(m, symbols).map_err(fail)?;
        }
        for node in &mut self.nodes {
            let bound = node
                .vals
                .iter_mut()
                .flatten()
                .try_for_each(|m| meta(m, symbols))
                .and_then(|()| node.args.iter_mut().try_for_each(|a| arg(a, symbols)));
            bound.map_err(|m| {
                let frames = node.stack.and_then(|s| self.stacks.get(s)).into_iter().flatten();
                let location = Location {
                    name: node.name.clone(),
                    frames: frames
                        .map(|(file, line, function)| Frame {
                            file: file.as_str().into(),
                            line: *line,
                            function: function.as_str().into(),
                        })
                        .collect(),
                };
                // PyTorch names sizes that only the data decide u0, u1 ...
                let target = self.targets.get(node.target).map_or("", |t| t.name.as_str());
                fail(m)
                    .at(target, &location)
                    .help("sizes that depend on data (nonzero, boolean masks) need a bound: torch._check(n <= 64) on the size, or \
                           options={\"max_data_dependent_size\": 64}; torch.where keeps the size")
            })?;
        }
        Ok(())
    }
}

fn wrong_version(found: u32) -> CompileError {
    CompileError::new(
        Stage::Import,
        format!("FX payload of version {found}; this compiler reads version {VERSION}"),
    )
    .help("export the graph again with this version of torchtpu_dynamo")
}

fn has_symbol(arg: &Arg) -> bool {
    match arg {
        Arg::Sym(_) => true,
        Arg::List(list) => list.iter().any(has_symbol),
        _ => false,
    }
}
