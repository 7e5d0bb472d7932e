//! The text form: what people read, tests start from and dumps hold. It round-trips.
//!
//! ```text
//! graph "forward" {
//!   %0 = parameter {role=input, index=0} : f32[2,3] #1
//!   %1 = constant {value=2.0} : f32[2,3]
//!   %2 = multiply %0, %1 : f32[2,3] #2
//!   %3, %4 = arg_reduce %2 {dimension=1, largest=true} : f32[2], s64[2] #2
//!   return %3, %4
//!   alias 0 -> 0                      // output 0 overwrites argument 0
//!   #1 = "x" at "model.py":3 in "forward"
//!   #2 = "mul"
//! }
//! ```
//!
//! Comments run from `//` to the end of the line. A splat constant is written as its number where that is exact,
//! else as its bits (`0x7FC00000`); a dense one as `dense"HEX"`, little-endian.

use crate::graph::{Alias, Graph, Types, Value, Values};
use crate::literal::{Literal, Scalar};
use crate::location::{Frame, LocId, Location};
use crate::op::{Constant, Op};
use crate::types::{DType, TensorType};
use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

/// An attribute's text form.
pub trait Attr: Sized {
    fn print(&self, out: &mut String);
    fn parse(cursor: &mut Cursor<'_>) -> Result<Self, String>;
}

impl Attr for i64 {
    fn print(&self, out: &mut String) {
        let _ = write!(out, "{self}");
    }
    fn parse(cursor: &mut Cursor<'_>) -> Result<Self, String> {
        cursor.integer()
    }
}

impl Attr for bool {
    fn print(&self, out: &mut String) {
        let _ = write!(out, "{self}");
    }
    fn parse(cursor: &mut Cursor<'_>) -> Result<Self, String> {
        match cursor.word()? {
            "true" => Ok(true),
            "false" => Ok(false),
            other => Err(format!("`{other}` is not true or false")),
        }
    }
}

impl Attr for Vec<i64> {
    fn print(&self, out: &mut String) {
        out.push('[');
        for (i, v) in self.iter().enumerate() {
            let _ = write!(out, "{}{v}", if i > 0 { "," } else { "" });
        }
        out.push(']');
    }
    fn parse(cursor: &mut Cursor<'_>) -> Result<Self, String> {
        cursor.expect("[")?;
        let mut list = Vec::new();
        if !cursor.eat("]") {
            loop {
                list.push(cursor.integer()?);
                if cursor.eat("]") {
                    break;
                }
                cursor.expect(",")?;
            }
        }
        Ok(list)
    }
}

impl Attr for Literal {
    /// Without the dtype a number has no bits: `print_graph` prints splats itself where it can.
    fn print(&self, out: &mut String) {
        match self {
            Literal::Splat(s) => {
                let _ = write!(out, "0x{:X}", s.0);
            }
            Literal::Dense(bytes) => {
                out.push_str("dense\"");
                for b in bytes.iter() {
                    let _ = write!(out, "{b:02x}");
                }
                out.push('"');
            }
        }
    }
    /// A number is kept as the bits of its f64 until `parse_graph` knows the dtype.
    fn parse(cursor: &mut Cursor<'_>) -> Result<Self, String> {
        if cursor.eat("dense") {
            let hex = cursor.string()?;
            let digits: Option<Vec<u8>> = hex.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
            return match digits {
                Some(d) if d.len() % 2 == 0 => {
                    Ok(Literal::Dense(d.chunks(2).map(|p| p[0] << 4 | p[1]).collect::<Vec<u8>>().into()))
                }
                _ => Err("dense value is not pairs of hexadecimal digits".into()),
            };
        }
        cursor.number_bits()
    }
}

/// A literal number as parsed, before its dtype is known: the marker in the high half says it is an f64.
const PENDING_F64: u128 = 0x7EF6_4F64_u128 << 96;
const PENDING_INT: u128 = 0x7E14_7E14_u128 << 96;
const PENDING_MASK: u128 = 0xFFFF_FFFF_u128 << 96;

fn settle(value: Literal, dtype: DType) -> Literal {
    match value {
        Literal::Splat(Scalar(raw)) if raw & PENDING_MASK == PENDING_F64 => {
            Literal::Splat(Scalar::from_f64(dtype, f64::from_bits(raw as u64)))
        }
        Literal::Splat(Scalar(raw)) if raw & PENDING_MASK == PENDING_INT => {
            Literal::Splat(Scalar::from_i64(dtype, raw as u64 as i64))
        }
        Literal::Splat(Scalar(raw)) if dtype == DType::Bool => Literal::Splat(Scalar((raw != 0) as u128)),
        Literal::Splat(Scalar(raw)) if dtype.size() < 16 => {
            Literal::Splat(Scalar(raw & ((1u128 << (dtype.size() * 8)) - 1)))
        }
        other => other,
    }
}

fn print_scalar(s: Scalar, dtype: DType, out: &mut String) {
    if dtype == DType::Bool || dtype.is_int() {
        let _ = write!(out, "{}", s.as_i64(dtype));
        return;
    }
    let v = s.as_f64(dtype);
    let exact = v.is_finite() && !dtype.is_complex() && Scalar::from_f64(dtype, v) == s;
    match exact {
        true if dtype == DType::F32 => {
            let _ = write!(out, "{:?}", v as f32);
        }
        true => {
            let _ = write!(out, "{v:?}");
        }
        false => {
            let _ = write!(out, "0x{:0width$X}", s.0, width = dtype.size() * 2);
        }
    }
}

/// Prints a graph; node numbers are those of the topological order, so equal graphs print alike.
pub fn print_graph(graph: &Graph) -> String {
    let order = graph.topological();
    let mut out = String::with_capacity(order.len() * 80);
    let mut names: HashMap<Value, usize> = HashMap::with_capacity(order.len());
    let mut used = vec![false; graph.locations.len()];
    let list = |names: &HashMap<Value, usize>, values: &[Value]| -> String {
        let text: Vec<String> =
            values.iter().map(|v| format!("%{}", names.get(v).copied().unwrap_or(usize::MAX))).collect();
        text.join(", ")
    };
    let _ = writeln!(out, "graph {:?} {{", graph.name);
    for &id in &order {
        let node = graph.node(id);
        let results = graph.results(id);
        for v in &results {
            let n = names.len();
            names.insert(*v, n);
        }
        let _ = write!(out, "  {} = {}", list(&names, &results), node.op.name());
        let operands = graph.operands(id);
        if !operands.is_empty() {
            let _ = write!(out, " {}", list(&names, &operands));
        }
        match &node.op {
            Op::Constant(c) => {
                out.push_str(" {value=");
                match &c.value {
                    Literal::Splat(s) => print_scalar(*s, node.types[0].dtype, &mut out),
                    dense => dense.print(&mut out),
                }
                out.push('}');
            }
            op => op.print_attrs(&mut out),
        }
        for p in graph.control_predecessors(id) {
            let _ = write!(
                out,
                " after %{}",
                names.get(&Value { node: p, result: 0 }).copied().unwrap_or(usize::MAX)
            );
        }
        let types: Vec<String> = node.types.iter().map(|t| t.to_string()).collect();
        let _ = write!(out, " : {}", types.join(", "));
        if node.loc != LocId::UNKNOWN {
            let _ = write!(out, " #{}", node.loc.0);
            if let Some(used) = used.get_mut(node.loc.0 as usize) {
                *used = true;
            }
        }
        out.push('\n');
    }
    let _ = writeln!(out, "  return {}", list(&names, &graph.outputs));
    for a in &graph.aliases {
        let _ = writeln!(out, "  alias {} -> {}", a.output, a.parameter);
    }
    for (i, loc) in graph.locations.iter().enumerate().filter(|(i, _)| used[*i]) {
        let _ = writeln!(out, "  #{i} = {loc}");
    }
    out.push_str("}\n");
    out
}

/// A position in text being parsed.
#[derive(Clone)]
pub struct Cursor<'a> {
    text: &'a str,
    at: usize,
    /// Graphs around the one being read.
    depth: usize,
}

/// Deeper nesting than this is no program, and would exhaust the stack.
const MAX_DEPTH: usize = 64;

impl<'a> Cursor<'a> {
    pub fn new(text: &'a str) -> Self {
        Cursor { text, at: 0, depth: 0 }
    }

    fn rest(&mut self) -> &'a str {
        loop {
            let rest = &self.text[self.at..];
            let trimmed = rest.trim_start();
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with("//") {
                return trimmed;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    fn done(&mut self) -> bool {
        self.rest().is_empty()
    }

    /// Consumes `token` if it is next. A word token must end there.
    pub fn eat(&mut self, token: &str) -> bool {
        let rest = self.rest();
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let Some(behind) = rest.strip_prefix(token) else { return false };
        let found = !token.ends_with(is_word) || !behind.starts_with(is_word) || token == "dense";
        if found {
            self.at += token.len();
        }
        found
    }

    pub fn expect(&mut self, token: &str) -> Result<(), String> {
        if self.eat(token) { Ok(()) } else { Err(format!("expected `{token}`")) }
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !accept(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    pub fn word(&mut self) -> Result<&'a str, String> {
        match self.take_while(|c| c.is_ascii_alphanumeric() || c == '_') {
            "" => Err("expected a word".into()),
            word => Ok(word),
        }
    }

    pub fn integer(&mut self) -> Result<i64, String> {
        let text = self.take_while(|c| c.is_ascii_digit() || c == '-');
        text.parse().map_err(|_| format!("expected an integer, not `{text}`"))
    }

    fn number_bits(&mut self) -> Result<Literal, String> {
        let text = self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.'));
        let bad = || format!("expected a number, not `{text}`");
        let raw = if let Some(hex) = text.strip_prefix("0x") {
            u128::from_str_radix(hex, 16).map_err(|_| bad())?
        } else if let Ok(v) = text.parse::<i64>() {
            PENDING_INT | v as u64 as u128
        } else {
            PENDING_F64 | text.parse::<f64>().map_err(|_| bad())?.to_bits() as u128
        };
        Ok(Literal::Splat(Scalar(raw)))
    }

    /// A quoted string with Rust's escapes `\"`, `\\`, `\n`, `\t`, `\'` and `\u{..}`.
    pub fn string(&mut self) -> Result<String, String> {
        let rest = self.rest();
        if !rest.starts_with('"') {
            return Err("expected a quoted string".into());
        }
        let mut out = String::new();
        let mut chars = rest.char_indices().skip(1);
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += i + 1;
                    return Ok(out);
                }
                '\\' => match chars.next().map(|(_, c)| c) {
                    Some('n') => out.push('\n'),
                    Some('t') => out.push('\t'),
                    Some('r') => out.push('\r'),
                    Some('0') => out.push('\0'),
                    Some('u') => {
                        let hex: String = chars
                            .by_ref()
                            .map(|(_, c)| c)
                            .skip_while(|c| *c == '{')
                            .take_while(|c| *c != '}')
                            .collect();
                        let code = u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32);
                        out.push(code.ok_or("bad \\u escape")?);
                    }
                    Some(c) => out.push(c),
                    None => break,
                },
                c => out.push(c),
            }
        }
        Err("unterminated string".into())
    }

    fn value(&mut self) -> Result<usize, String> {
        self.expect("%")?;
        usize::try_from(self.integer()?).map_err(|_| "negative value number".into())
    }

    pub fn ty(&mut self) -> Result<TensorType, String> {
        let name = self.word()?;
        let dtype = DType::from_name(name).ok_or_else(|| format!("`{name}` is not an element type"))?;
        let shape = Vec::<i64>::parse(self)?;
        if shape.iter().any(|&d| d < 0) || shape.iter().try_fold(16i64, |n, &d| n.checked_mul(d)).is_none() {
            return Err(format!("shape {shape:?} is negative or too large"));
        }
        Ok(TensorType { dtype, shape })
    }

    fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Result<T, String>) -> Result<Vec<T>, String> {
        let mut items = vec![item(self)?];
        while self.eat(",") {
            items.push(item(self)?);
        }
        Ok(items)
    }

    /// A whole graph, `graph "name" { ... }`.
    pub fn graph(&mut self) -> Result<Graph, String> {
        if self.depth == MAX_DEPTH {
            return Err(format!("regions are nested more than {MAX_DEPTH} deep"));
        }
        self.depth += 1;
        let graph = parse(self);
        self.depth -= 1;
        graph
    }

    fn line(&self) -> usize {
        self.text[..self.at].matches('\n').count() + 1
    }
}

/// Parses the text form. The message names the line. The result is not verified yet.
pub fn parse_graph(text: &str) -> Result<Graph, String> {
    let mut cursor = Cursor::new(text);
    let parsed = cursor
        .graph()
        .and_then(|graph| if cursor.done() { Ok(graph) } else { Err("text after the closing brace".into()) });
    parsed.map_err(|e| format!("line {}: {e}", cursor.line()))
}

fn parse(c: &mut Cursor<'_>) -> Result<Graph, String> {
    c.expect("graph")?;
    let mut graph = Graph::new(c.string()?);
    c.expect("{")?;
    let mut values: HashMap<usize, Value> = HashMap::new();
    let lookup = |values: &HashMap<usize, Value>, n: usize| {
        values.get(&n).copied().ok_or_else(|| format!("%{n} is not defined above"))
    };
    while !c.eat("return") {
        let names = c.list(Cursor::value)?;
        c.expect("=")?;
        let name = c.word()?;
        let operands: Vec<usize> =
            if c.rest().starts_with('%') { c.list(Cursor::value)? } else { Vec::new() };
        let operands: Values = operands.into_iter().map(|n| lookup(&values, n)).collect::<Result<_, _>>()?;
        let mut op = Op::parse(name, c)?;
        let mut after = Vec::new();
        while c.eat("after") {
            let n = c.value()?;
            after.push(lookup(&values, n)?);
        }
        c.expect(":")?;
        let types: Types = c.list(Cursor::ty)?.into();
        if types.len() != names.len() {
            return Err(format!("{} results but {} types", names.len(), types.len()));
        }
        if let Op::Constant(constant) = op {
            op = Constant { value: settle(constant.value, types[0].dtype) }.into();
        }
        let loc = if c.eat("#") {
            LocId(u32::try_from(c.integer()?).map_err(|_| "bad location number")?)
        } else {
            LocId::UNKNOWN
        };
        let id = graph.add(op, &operands, types, loc);
        for p in after {
            graph.add_control(p.node, id);
        }
        for (value, n) in graph.results(id).into_iter().zip(names) {
            if values.insert(n, value).is_some() {
                return Err(format!("%{n} is defined twice"));
            }
        }
    }
    if c.rest().starts_with('%') {
        let outputs = c.list(Cursor::value)?;
        graph.outputs = outputs.into_iter().map(|n| lookup(&values, n)).collect::<Result<_, _>>()?;
    }
    while c.eat("alias") {
        let (output, parameter) = (c.integer()?, c.expect("->").and_then(|()| c.integer())?);
        match (usize::try_from(output), usize::try_from(parameter)) {
            (Ok(output), Ok(parameter)) => graph.aliases.push(Alias { output, parameter }),
            _ => return Err("negative number in alias".into()),
        }
    }
    while c.eat("#") {
        let n = usize::try_from(c.integer()?)
            .ok()
            .filter(|n| (1..1 << 20).contains(n))
            .ok_or("bad location number")?;
        c.expect("=")?;
        let mut location = Location { name: c.string()?, frames: Vec::new() };
        while c.eat("at") {
            let file: Arc<str> = c.string()?.into();
            c.expect(":")?;
            let line = u32::try_from(c.integer()?).map_err(|_| "bad line number")?;
            c.expect("in")?;
            location.frames.push(Frame { file, line, function: c.string()?.into() });
        }
        if graph.locations.len() <= n {
            graph.locations.resize(n + 1, Location::default());
        }
        graph.locations[n] = location;
    }
    c.expect("}")?;
    Ok(graph)
}
