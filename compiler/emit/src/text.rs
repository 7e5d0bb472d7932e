//! StableHLO's own syntax, for people: `%2 = stablehlo.add %0, %1 : tensor<2x3xf32>`.
//!
//! MLIR prints unregistered operations in its generic form only, so the common operations are written here in the
//! form that StableHLO prints. Operations whose own form says no more than the generic one (gather, scatter,
//! sort, ...) are generic; a module may mix both.

use crate::functions::{Functions, STAYS};
use crate::ops::{
    Attr, Body, Spec, compare_type, conv_dimensions, direction, fft_kind, list, precision, rng_algorithm,
    spec,
};
use crate::{FREE, LAYOUT_MODE, Reuse, Signature, layout_text, module_name};
use std::collections::BTreeMap;
use std::fmt::Write;
use torchtpu_ir::graph::Value;
use torchtpu_ir::{CompileError, DType, Frame, Graph, Literal, LocId, Location, Op, Stage, TensorType};

/// Constants of more elements are written as hexadecimal bytes.
const READABLE_ELEMENTS: i64 = 32;

pub fn module(
    graph: &Graph,
    signature: &Signature,
    inline: bool,
    locations: bool,
) -> Result<String, CompileError> {
    let functions = Functions::of(graph, inline);
    let mut printer = Printer {
        out: String::with_capacity(graph.len() * 96),
        functions: &functions,
        next: 0,
        names: Vec::new(),
        around: Vec::new(),
        base: 0,
        bases: 0,
        locations: locations.then(BTreeMap::new),
        indent: 4,
    };
    printer.module(graph, signature)?;
    Ok(printer.out)
}

struct Printer<'f> {
    out: String,
    functions: &'f Functions<'f>,
    /// The number of the next result.
    next: usize,
    /// For each node, the names of its results.
    names: Vec<Vec<String>>,
    /// The locations of the graph being written, and the number of the first in the module's table, which holds those
    /// of all graphs on end; `bases` are taken.
    around: Vec<Location>,
    base: usize,
    bases: usize,
    /// The locations that were named, where locations are wanted.
    locations: Option<BTreeMap<usize, String>>,
    indent: usize,
}

impl Printer<'_> {
    fn module(&mut self, graph: &Graph, signature: &Signature) -> Result<(), CompileError> {
        let _ = writeln!(self.out, "module @{} {{", symbol(&module_name(graph)));
        self.function(graph, "public", "main", signature)?;
        for (name, body) in self.functions.iter() {
            self.out.push('\n');
            self.function(body, "private", name, &Signature::default())?;
        }
        for text in self.functions.customs(self.locations.is_some())? {
            let _ = write!(self.out, "\n{}", text.trim_end());
        }
        self.out.push_str("\n}");
        self.location(LocId::UNKNOWN);
        self.out.push('\n');
        self.location_table();
        Ok(())
    }

    /// A function, without the end of its last line.
    fn function(
        &mut self,
        graph: &Graph,
        visibility: &str,
        name: &str,
        signature: &Signature,
    ) -> Result<(), CompileError> {
        let fail = |message: String| CompileError::new(Stage::Emit, message);
        self.next = 0;
        self.names = vec![Vec::new(); graph.bound()];
        self.around.clone_from(&graph.locations);
        self.base = self.bases;
        self.bases += graph.locations.len();
        let _ = write!(self.out, "  func.func {visibility} @{}(", symbol(name));
        for (i, &p) in graph.parameters().iter().enumerate() {
            let argument = signature.arguments.get(i).cloned().unwrap_or_default();
            let node = graph.node(p);
            let ty = node.types.first().map(tensor).unwrap_or_default();
            let _ = write!(self.out, "{}%arg{i}: {ty}", if i > 0 { ", " } else { "" });
            let layout = argument.layout.as_deref();
            let layout = layout.map(|layout| format!("{LAYOUT_MODE} = \"{}\"", layout_text(layout)));
            let reuse = match argument.reuse {
                Reuse::Keep => None,
                Reuse::Alias(output) => Some(format!("tf.aliasing_output = {output} : i32")),
                Reuse::Donate => Some("jax.buffer_donor = true".to_string()),
            };
            let attributes: Vec<String> = layout.into_iter().chain(reuse).collect();
            if !attributes.is_empty() {
                let _ = write!(self.out, " {{{}}}", attributes.join(", "));
            }
            self.location(node.loc);
            self.names[p.index()] = vec![format!("%arg{i}")];
        }
        let outputs: Vec<&TensorType> = graph.outputs.iter().map(|v| graph.ty(*v)).collect();
        if signature.free.contains(&true) {
            let each = outputs.iter().zip(&signature.free).map(|(ty, &free)| {
                let said = if free { format!(" {{{LAYOUT_MODE} = \"{FREE}\"}}") } else { String::new() };
                tensor(ty) + &said
            });
            let _ = writeln!(self.out, ") -> ({}) {{", each.collect::<Vec<_>>().join(", "));
        } else {
            let _ = writeln!(self.out, ") -> {} {{", bracketed(&outputs));
        }
        self.nodes(graph)?;
        let results = self.operands(&graph.outputs).map_err(fail)?;
        self.out.push_str("    return");
        if !results.is_empty() {
            let _ = write!(self.out, " {} : {}", results.join(", "), tensors(&outputs));
        }
        self.location(LocId::UNKNOWN);
        self.out.push_str("\n  }");
        self.location(LocId::UNKNOWN);
        Ok(())
    }

    fn nodes(&mut self, graph: &Graph) -> Result<(), CompileError> {
        for id in graph.topological() {
            let node = graph.node(id);
            if !matches!(node.op, Op::Parameter(_)) {
                self.node(graph, id).map_err(|m| {
                    CompileError::new(Stage::Emit, m).at(node.op.name(), graph.location(node.loc))
                })?;
            }
        }
        Ok(())
    }

    /// The regions of control flow. A loop's blocks take its state; a branch takes nothing and reads the operands.
    fn regions(&mut self, op: &Op, operands: &[String]) -> Result<(), String> {
        let loops = matches!(op, Op::While(_));
        for (i, graph) in op.regions().into_iter().enumerate() {
            self.out.push_str(if i > 0 { ", {\n" } else { " ({\n" });
            let outer_names = std::mem::replace(&mut self.names, vec![Vec::new(); graph.bound()]);
            let outer_locations = std::mem::replace(&mut self.around, graph.locations.clone());
            let outer_base = std::mem::replace(&mut self.base, self.bases);
            self.bases += graph.locations.len();
            if loops {
                let _ = write!(self.out, "{:1$}^bb0(", "", self.indent);
                for (k, (&p, ty)) in graph.parameters().iter().zip(graph.parameter_types()).enumerate() {
                    let name = format!("%arg_{}", self.next);
                    self.next += 1;
                    let _ = write!(self.out, "{}{name}: {}", if k > 0 { ", " } else { "" }, tensor(ty));
                    self.location(graph.node(p).loc);
                    self.names[p.index()] = vec![name];
                }
                self.out.push_str("):\n");
            } else {
                for (&p, name) in graph.parameters().iter().zip(operands.iter().skip(1)) {
                    self.names[p.index()] = vec![name.clone()];
                }
            }
            self.indent += 2;
            self.nodes(graph).map_err(|e| e.message)?;
            let results = self.operands(&graph.outputs)?;
            let _ = write!(self.out, "{:1$}stablehlo.return", "", self.indent);
            if !results.is_empty() {
                let _ = write!(self.out, " {} : {}", results.join(", "), tensors(&graph.output_types()));
            }
            self.location(LocId::UNKNOWN);
            self.indent -= 2;
            let _ = write!(self.out, "\n{:1$}}}", "", self.indent);
            self.names = outer_names;
            self.around = outer_locations;
            self.base = outer_base;
        }
        self.out.push(')');
        Ok(())
    }

    fn operands(&self, values: &[Value]) -> Result<Vec<String>, String> {
        let name = |v: &Value| self.names[v.node.index()].get(v.result as usize).cloned();
        values
            .iter()
            .map(|v| {
                name(v).ok_or_else(|| {
                    format!("value {} of node {} is used before it is made", v.result, v.node.index())
                })
            })
            .collect()
    }

    fn node(&mut self, graph: &Graph, id: torchtpu_ir::NodeId) -> Result<(), String> {
        let node = graph.node(id);
        let sources = graph.operands(id);
        let operands = self.operands(&sources)?;
        let types: Vec<&TensorType> = sources.iter().map(|v| graph.ty(*v)).collect();
        self.names[id.index()] = self.operation(&node.op, operands, &types, &node.types, node.loc)?;
        Ok(())
    }

    /// One operation of `main`, after the ones that its description adds.
    fn operation(
        &mut self,
        op: &Op,
        mut operands: Vec<String>,
        operand_types: &[&TensorType],
        types: &[TensorType],
        loc: LocId,
    ) -> Result<Vec<String>, String> {
        let spec = spec(op, operand_types, types)?;
        let mut operand_types = operand_types.to_vec();
        for (extra, ty) in &spec.extra {
            operands.extend(self.operation(extra, Vec::new(), &[], std::slice::from_ref(ty), loc)?);
            operand_types.push(ty);
        }
        let number = self.next;
        self.next += 1;
        let names = match types.len() {
            0 => Vec::new(),
            1 => vec![format!("%{number}")],
            n => (0..n).map(|i| format!("%{number}#{i}")).collect(),
        };
        let _ = write!(self.out, "{:1$}", "", self.indent);
        match types.len() {
            0 => {}
            1 => {
                let _ = write!(self.out, "%{number} = ");
            }
            n => {
                let _ = write!(self.out, "%{number}:{n} = ");
            }
        }
        let callee = match op {
            Op::Call(call) => self.functions.name(&call.body).map(str::to_string),
            Op::Custom(custom) => self.functions.custom_name(&custom.function),
            _ => None,
        };
        if matches!(op, Op::Call(_) | Op::Custom(_)) {
            let callee = callee.ok_or("a call of a function that does not exist")?;
            let results: Vec<&TensorType> = types.iter().collect();
            let stays = match op {
                Op::Call(call) if self.functions.stays(&call.body) => {
                    let (name, key, value) = STAYS;
                    format!(" {{{name} = {{{key} = \"{value}\"}}}}")
                }
                _ => String::new(),
            };
            let _ = write!(
                self.out,
                "func.call @{}({}){stays} : {}",
                symbol(&callee),
                operands.join(", "),
                function(&operand_types, &results)
            );
        } else if op.regions().is_empty() {
            match pretty(op, &spec, &operands, &operand_types, types) {
                Some(text) => self.out.push_str(&text),
                None => self.generic(&spec, &operands, &operand_types, types, loc)?,
            }
        } else {
            // A branch has its arguments from around it.
            let passed = if matches!(op, Op::If(_)) { 1 } else { operands.len() };
            let _ = write!(self.out, "\"{}\"({})", spec.name, operands[..passed].join(", "));
            self.regions(op, &operands)?;
            let results: Vec<&TensorType> = types.iter().collect();
            let _ = write!(self.out, " : {}", function(&operand_types[..passed], &results));
        }
        self.location(loc);
        self.out.push('\n');
        Ok(names)
    }

    fn generic(
        &mut self,
        spec: &Spec<'_>,
        operands: &[String],
        operand_types: &[&TensorType],
        types: &[TensorType],
        loc: LocId,
    ) -> Result<(), String> {
        let _ = write!(self.out, "\"{}\"({})", spec.name, operands.join(", "));
        if let (false, Some(result)) = (spec.attrs.is_empty(), types.first()) {
            let attrs: Vec<String> = spec
                .attrs
                .iter()
                .map(|(name, value)| format!("{name} = {}", attribute(value, result)))
                .collect();
            let _ = write!(self.out, " <{{{}}}>", attrs.join(", "));
        }
        if let Some(body) = &spec.body {
            self.body(body, loc)?;
        }
        let _ = write!(self.out, " : {}", function(operand_types, &types.iter().collect::<Vec<_>>()));
        Ok(())
    }

    /// Names of a body hold inside it only.
    fn body(&mut self, body: &Body, loc: LocId) -> Result<(), String> {
        let name = |i: usize| format!("%b{i}");
        let mut types: Vec<TensorType> = body.args.iter().map(|&d| TensorType::scalar(d)).collect();
        self.out.push_str(" ({\n    ^bb0(");
        for (i, ty) in types.iter().enumerate() {
            let _ = write!(self.out, "{}{}: {}", if i > 0 { ", " } else { "" }, name(i), tensor(ty));
            self.location(loc);
        }
        self.out.push_str("):\n");
        for step in &body.steps {
            let result = TensorType::scalar(step.dtype);
            let operands: Vec<String> = step.operands.iter().map(|&i| name(i)).collect();
            let operand_types: Vec<&TensorType> = step.operands.iter().map(|&i| &types[i]).collect();
            let stated = std::slice::from_ref(&result);
            let spec = spec(&step.op, &operand_types, stated)?;
            let _ = write!(self.out, "      {} = ", name(types.len()));
            match pretty(&step.op, &spec, &operands, &operand_types, stated) {
                Some(text) => self.out.push_str(&text),
                None => self.generic(&spec, &operands, &operand_types, stated, loc)?,
            }
            self.location(loc);
            self.out.push('\n');
            types.push(result);
        }
        let results: Vec<String> = body.results.iter().map(|&i| name(i)).collect();
        let result_types: Vec<&TensorType> = body.results.iter().map(|&i| &types[i]).collect();
        let _ =
            write!(self.out, "      stablehlo.return {} : {}", results.join(", "), tensors(&result_types));
        self.location(loc);
        self.out.push_str("\n    })");
        Ok(())
    }

    /// ` loc(#locN)` behind what was just written, where locations are wanted.
    fn location(&mut self, loc: LocId) {
        let Some(named) = &mut self.locations else { return };
        match self.around.get(loc.0 as usize) {
            Some(location) if loc != LocId::UNKNOWN => {
                let number = self.base + loc.0 as usize;
                named.entry(number).or_insert_with(|| location_text(location));
                let _ = write!(self.out, " loc(#loc{number})");
            }
            _ => self.out.push_str(" loc(unknown)"),
        }
    }

    fn location_table(&mut self) {
        for (number, text) in self.locations.iter().flatten() {
            let _ = writeln!(self.out, "#loc{number} = loc({text})");
        }
    }
}

/// The operation in StableHLO's own form, or `None` where it has none that helps.
fn pretty(
    op: &Op,
    spec: &Spec<'_>,
    operands: &[String],
    operand_types: &[&TensorType],
    types: &[TensorType],
) -> Option<String> {
    let name = spec.name;
    let args = operands.join(", ");
    let results: Vec<&TensorType> = types.iter().collect();
    let result = types.first().map(tensor)?;
    let rank = operand_types.first().map_or(0, |t| t.rank());
    let signature = || function(operand_types, &results);
    // One type says it all where every operand and result has it.
    let short = || {
        if operand_types.iter().all(|t| **t == types[0]) { result.clone() } else { signature() }
    };
    Some(match op {
        Op::Unary(_) | Op::Binary(_) if name.starts_with("chlo.") => {
            format!("{name} {args} : {} -> {result}", tensors(operand_types))
        }
        Op::Convert(_) if name == "stablehlo.select" => {
            format!("{name} {args} : {}, {result}", tensor(operand_types.first()?))
        }
        Op::Unary(_) | Op::Binary(_) | Op::Clamp(_) | Op::Convert(_) => {
            format!("{name} {args} : {}", short())
        }
        Op::Constant(c) => format!("{name} {}", attribute(&Attr::Elements(&c.value), &types[0])),
        Op::Iota(i) => format!("{name} dim = {} : {result}", i.dimension),
        Op::Compare(c) => {
            let kind = compare_type(operand_types.first()?.dtype);
            format!("{name} {}, {args}, {kind} : {}", direction(c.direction), signature())
        }
        Op::Select(_) => format!("{name} {args} : {}, {result}", tensor(operand_types.first()?)),
        Op::BitcastConvert(_) | Op::Reshape(_) => format!("{name} {args} : {}", signature()),
        Op::BroadcastInDim(b) => format!("{name} {args}, dims = {} : {}", list(&b.dimensions), signature()),
        Op::Transpose(t) => format!("{name} {args}, dims = {} : {}", list(&t.permutation), signature()),
        Op::Reverse(r) => format!("{name} {args}, dims = {} : {result}", list(&r.dimensions)),
        Op::Slice(s) if rank > 0 => {
            let ranges: Vec<String> = (0..s.start.len())
                .map(|i| match s.strides[i] {
                    1 => format!("{}:{}", s.start[i], s.limit[i]),
                    stride => format!("{}:{}:{stride}", s.start[i], s.limit[i]),
                })
                .collect();
            format!("{name} {args} [{}] : {}", ranges.join(", "), signature())
        }
        Op::DynamicSlice(s) if rank > 0 => {
            format!("{name} {args}, sizes = {} : {}", list(&s.sizes), signature())
        }
        Op::DynamicUpdateSlice(_) if rank > 0 => format!("{name} {args} : {}", signature()),
        Op::Pad(p) => format!(
            "{name} {args}, low = {}, high = {}, interior = {} : {}",
            list(&p.low),
            list(&p.high),
            list(&p.interior),
            signature()
        ),
        Op::Concatenate(c) => format!("{name} {args}, dim = {} : {}", c.dimension, signature()),
        Op::DotGeneral(d) => {
            let batching = if d.lhs_batch.is_empty() {
                String::new()
            } else {
                format!(", batching_dims = {} x {}", list(&d.lhs_batch), list(&d.rhs_batch))
            };
            format!(
                "{name} {args}{batching}, contracting_dims = {} x {}, precision = [{p}, {p}] : {}",
                list(&d.lhs_contracting),
                list(&d.rhs_contracting),
                signature(),
                p = precision(d.precision)
            )
        }
        Op::Convolution(c) if !c.strides.is_empty() => {
            let pads: Vec<String> =
                c.pad_low.iter().zip(&c.pad_high).map(|(low, high)| format!("[{low}, {high}]")).collect();
            format!(
                "{name}({args}) dim_numbers = {}, window = {{stride = {}, pad = [{}], lhs_dilate = {}, \
                 rhs_dilate = {}}} {{batch_group_count = {} : i64, feature_group_count = {} : i64, \
                 precision_config = {}}} : {}",
                conv_dimensions(c),
                list(&c.strides),
                pads.join(", "),
                list(&c.lhs_dilation),
                list(&c.rhs_dilation),
                c.batch_groups,
                c.feature_groups,
                attribute(&Attr::Precision(c.precision), &types[0]),
                signature()
            )
        }
        Op::Reduce(r) => {
            let combiner = spec.body.as_ref()?.steps.first()?.op.clone();
            let Op::Binary(combiner) = combiner else { return None };
            let [operand, init] = operands else { return None };
            format!(
                "{name}({operand} init: {init}) applies {} across dimensions = {} : {}",
                combiner.mlir_name(),
                list(&r.dimensions),
                signature()
            )
        }
        Op::RngBitGenerator(r) => {
            format!("{name} {args}, algorithm = {} : {}", rng_algorithm(r.algorithm), signature())
        }
        Op::Cholesky(c) => format!("{name} {args}, lower = {} : {result}", c.lower),
        Op::Fft(f) => {
            format!(
                "{name} {args}, type = {}, length = {} : {}",
                fft_kind(f.kind),
                list(&f.length),
                signature()
            )
        }
        Op::OptimizationBarrier(_) if !operands.is_empty() => {
            format!("{name} {args} : {}", tensors(operand_types))
        }
        _ => return None,
    })
}

/// `tensor<2x3xf32>`
fn tensor(ty: &TensorType) -> String {
    let mut out = String::from("tensor<");
    for d in &ty.shape {
        let _ = write!(out, "{d}x");
    }
    out.push_str(ty.dtype.mlir_name());
    out.push('>');
    out
}

fn tensors(types: &[&TensorType]) -> String {
    types.iter().map(|t| tensor(t)).collect::<Vec<_>>().join(", ")
}

/// One type as it is, several or none in parentheses.
fn bracketed(types: &[&TensorType]) -> String {
    match types {
        [one] => tensor(one),
        many => format!("({})", tensors(many)),
    }
}

fn function(operands: &[&TensorType], results: &[&TensorType]) -> String {
    format!("({}) -> {}", tensors(operands), bracketed(results))
}

fn attribute(value: &Attr<'_>, result: &TensorType) -> String {
    match value {
        Attr::Int(v) => format!("{v} : i64"),
        Attr::Bool(v) => v.to_string(),
        Attr::Ints([]) => "array<i64>".into(),
        Attr::Ints(v) => {
            let v = list(v);
            format!("array<i64: {}>", &v[1..v.len() - 1])
        }
        Attr::Pairs(low, high) => {
            let pairs: Vec<String> = low.iter().zip(*high).map(|(l, h)| format!("[{l}, {h}]")).collect();
            format!("dense<[{}]> : tensor<{}x2xi64>", pairs.join(", "), low.len())
        }
        Attr::Dialect(text) => text.clone(),
        Attr::Groups(groups) => groups.attribute(),
        Attr::Precision(p) => {
            format!("[#stablehlo<precision {p}>, #stablehlo<precision {p}>]", p = precision(*p))
        }
        Attr::Elements(literal) => format!("dense<{}> : {}", elements(literal, result), tensor(result)),
    }
}

fn elements(literal: &Literal, ty: &TensorType) -> String {
    let size = ty.dtype.size();
    match literal {
        _ if ty.elements() == 0 => String::new(),
        Literal::Splat(s) => element(ty.dtype, &s.bytes(ty.dtype)),
        Literal::Dense(bytes) if ty.dtype == DType::Bool || ty.elements() <= READABLE_ELEMENTS => {
            let items: Vec<String> = bytes.chunks(size).map(|b| element(ty.dtype, b)).collect();
            nested(&items, &ty.shape)
        }
        Literal::Dense(bytes) => {
            let mut out = String::with_capacity(bytes.len() * 2 + 4);
            out.push_str("\"0x");
            for b in bytes.iter() {
                let _ = write!(out, "{b:02X}");
            }
            out.push('"');
            out
        }
    }
}

/// Row-major items in the brackets of their shape.
fn nested(items: &[String], shape: &[i64]) -> String {
    let Some((&first, rest)) = shape.split_first() else {
        return items.join(", ");
    };
    let chunk = (items.len() / first.max(1) as usize).max(1);
    let inner: Vec<String> = items.chunks(chunk).map(|c| nested(c, rest)).collect();
    format!("[{}]", inner.join(", "))
}

fn element(dtype: DType, bytes: &[u8]) -> String {
    use torchtpu_ir::Scalar;
    if dtype.is_complex() {
        let (re, im) = bytes.split_at(bytes.len() / 2);
        return format!("({}, {})", element(dtype.real(), re), element(dtype.real(), im));
    }
    let scalar = Scalar::from_bytes(bytes);
    match dtype {
        DType::Bool => (scalar.0 != 0).to_string(),
        DType::U64 => (scalar.0 as u64).to_string(),
        d if d.is_int() => scalar.as_i64(d).to_string(),
        d => {
            let v = scalar.as_f64(d);
            if v.is_finite() { float(v, d) } else { format!("0x{:0width$X}", scalar.0, width = d.size() * 2) }
        }
    }
}

/// The shortest decimal that reads back as the same bits. MLIR wants a point before any exponent.
fn float(v: f64, dtype: DType) -> String {
    let text = if dtype == DType::F32 { format!("{:?}", v as f32) } else { format!("{v:?}") };
    match text.split_once('e') {
        Some((mantissa, exponent)) if !mantissa.contains('.') => format!("{mantissa}.0e{exponent}"),
        _ => text,
    }
}

/// A symbol needs quotes unless it reads as an identifier.
fn symbol(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'));
    if plain { name.to_string() } else { quoted(name) }
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for b in text.bytes() {
        match b {
            b'"' | b'\\' => {
                let _ = write!(out, "\\{b:02X}");
            }
            0x20..=0x7e => out.push(b as char),
            other => {
                let _ = write!(out, "\\{other:02X}");
            }
        }
    }
    out.push('"');
    out
}

fn location_text(location: &Location) -> String {
    let frame = |f: &Frame| {
        let line = format!("{}:{}:0", quoted(&f.file), f.line);
        if f.function.is_empty() { line } else { format!("{}({line})", quoted(&f.function)) }
    };
    let mut frames = None;
    for f in location.frames.iter().rev() {
        frames = Some(match frames {
            None => frame(f),
            Some(caller) => format!("callsite({} at {caller})", frame(f)),
        });
    }
    match (location.name.as_str(), frames) {
        ("", None) => "unknown".into(),
        ("", Some(frames)) => frames,
        (name, None) => quoted(name),
        (name, Some(frames)) => format!("{}({frames})", quoted(name)),
    }
}
