//! Symbolic numbers: the expressions that PyTorch's SymInts print as, and their evaluation.
//!
//! Grammar: `+ - * / // % **`, parentheses, names, numbers and the functions that sympy and
//! `torch.utils._sympy.functions` print (`FloorDiv`, `CleanDiv`, `CeilDiv`, `Mod`, `PythonMod`, `Max`, `Min`, `Abs`,
//! `IntTrueDiv`, `FloatTrueDiv`, `ToFloat`, `floor`, `ceiling`, `FloorToInt`, `CeilToInt`, `TruncToInt`,
//! `RoundToInt`, `ModularIndexing`, `OpaqueUnaryFn_{sqrt,exp,log,log2}`, `PowByNatural`).

use rustc_hash::FxHashMap;

/// Values of symbols. A whole expression may be bound as well: PyTorch passes some by value.
pub type Bindings = FxHashMap<String, i64>;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    Int(i64),
    Float(f64),
}

impl Number {
    fn f64(self) -> f64 {
        match self {
            Number::Int(v) => v as f64,
            Number::Float(v) => v,
        }
    }
}

/// Evaluates an expression; the message names what is unbound or not understood.
pub fn evaluate(text: &str, bindings: &Bindings) -> Result<Number, String> {
    if let Some(v) = bindings.get(text) {
        return Ok(Number::Int(*v));
    }
    let mut parser = Parser { text, at: 0, bindings, depth: 0 };
    let value = parser.sum().map_err(|e| format!("symbolic size `{text}`: {e}"))?;
    match parser.peek() {
        None => Ok(value),
        Some(c) => Err(format!("symbolic size `{text}`: unexpected `{c}`")),
    }
}

/// Evaluates for one set of values, each expression once: a graph of thousands of nodes has a handful.
pub struct Evaluator<'a> {
    bindings: &'a Bindings,
    known: FxHashMap<String, Number>,
}

impl<'a> Evaluator<'a> {
    pub fn new(bindings: &'a Bindings) -> Self {
        Evaluator { bindings, known: FxHashMap::default() }
    }

    pub fn value(&mut self, text: &str) -> Result<Number, String> {
        if let Some(known) = self.known.get(text) {
            return Ok(*known);
        }
        let value = evaluate(text, self.bindings)?;
        self.known.insert(text.to_string(), value);
        Ok(value)
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    bindings: &'a Bindings,
    depth: u32,
}

type Result_ = Result<Number, String>;

fn arithmetic(a: Number, b: Number, int: fn(i64, i64) -> Option<i64>, float: fn(f64, f64) -> f64) -> Result_ {
    match (a, b) {
        (Number::Int(a), Number::Int(b)) => {
            int(a, b).map(Number::Int).ok_or_else(|| "overflow or division by zero".into())
        }
        (a, b) => Ok(Number::Float(float(a.f64(), b.f64()))),
    }
}

fn floor_div(a: i64, b: i64) -> Option<i64> {
    let q = a.checked_div(b)?;
    Some(if a % b != 0 && (a < 0) != (b < 0) { q - 1 } else { q })
}

fn floor_mod(a: i64, b: i64) -> Option<i64> {
    let r = a.checked_rem(b)?;
    Some(if r != 0 && (r < 0) != (b < 0) { r + b } else { r })
}

fn true_div(a: Number, b: Number) -> Result_ {
    match (a, b) {
        (Number::Int(a), Number::Int(b)) if b != 0 && a % b == 0 => Ok(Number::Int(a / b)),
        (a, b) => Ok(Number::Float(a.f64() / b.f64())),
    }
}

fn power(a: Number, b: Number) -> Result_ {
    arithmetic(a, b, |a, b| u32::try_from(b).ok().and_then(|b| a.checked_pow(b)), f64::powf)
}

impl Parser<'_> {
    fn peek(&mut self) -> Option<char> {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
        self.text[self.at..].chars().next()
    }
    fn eat(&mut self, token: &str) -> bool {
        self.peek();
        let found = self.text[self.at..].starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }
    fn sum(&mut self) -> Result_ {
        self.depth += 1;
        if self.depth > 64 {
            return Err("nested too deeply".into());
        }
        let mut a = self.product()?;
        loop {
            if self.eat("+") {
                a = arithmetic(a, self.product()?, i64::checked_add, |a, b| a + b)?;
            } else if self.eat("-") {
                a = arithmetic(a, self.product()?, i64::checked_sub, |a, b| a - b)?;
            } else {
                self.depth -= 1;
                return Ok(a);
            }
        }
    }
    fn product(&mut self) -> Result_ {
        let mut a = self.unary()?;
        loop {
            if self.eat("//") {
                a = arithmetic(a, self.unary()?, floor_div, |a, b| (a / b).floor())?;
            } else if self.eat("/") {
                a = true_div(a, self.unary()?)?;
            } else if self.eat("%") {
                a = arithmetic(a, self.unary()?, floor_mod, f64::rem_euclid)?;
            } else if self.peek() == Some('*') && !self.text[self.at..].starts_with("**") {
                self.at += 1;
                a = arithmetic(a, self.unary()?, i64::checked_mul, |a, b| a * b)?;
            } else {
                return Ok(a);
            }
        }
    }
    fn unary(&mut self) -> Result_ {
        if self.eat("-") {
            return arithmetic(Number::Int(0), self.unary()?, i64::checked_sub, |_, b| -b);
        }
        let base = self.atom()?;
        if self.eat("**") { power(base, self.unary()?) } else { Ok(base) }
    }
    fn atom(&mut self) -> Result_ {
        if self.eat("(") {
            let v = self.sum()?;
            return if self.eat(")") { Ok(v) } else { Err("missing `)`".into()) };
        }
        self.peek();
        let rest = &self.text[self.at..];
        let end =
            rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.')).unwrap_or(rest.len());
        let word = &rest[..end];
        self.at += end;
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            let int = word.parse().map(Number::Int).ok();
            return int
                .or_else(|| word.parse().map(Number::Float).ok())
                .ok_or_else(|| format!("bad number `{word}`"));
        }
        if !self.eat("(") {
            return match self.bindings.get(word) {
                Some(v) => Ok(Number::Int(*v)),
                None => Err(format!("`{word}` has no value")),
            };
        }
        let mut args = Vec::new();
        while !self.eat(")") {
            args.push(self.sum()?);
            if !self.eat(",") && self.peek() != Some(')') {
                return Err("missing `,` or `)`".into());
            }
        }
        call(word, &args)
    }
}

fn call(name: &str, args: &[Number]) -> Result_ {
    let to_int = |v: f64| Ok(Number::Int(v as i64));
    match (name, args) {
        ("FloorDiv" | "CleanDiv", [a, b]) => arithmetic(*a, *b, floor_div, |a, b| (a / b).floor()),
        ("CeilDiv", [a, b]) => {
            arithmetic(*a, *b, |a, b| floor_div(a.checked_add(b)?.checked_sub(1)?, b), |a, b| (a / b).ceil())
        }
        ("Mod" | "PythonMod", [a, b]) => arithmetic(*a, *b, floor_mod, f64::rem_euclid),
        ("PowByNatural" | "FloatPow", [a, b]) => power(*a, *b),
        ("IntTrueDiv" | "FloatTrueDiv", [a, b]) => Ok(Number::Float(a.f64() / b.f64())),
        ("ToFloat", [a]) => Ok(Number::Float(a.f64())),
        ("OpaqueUnaryFn_sqrt" | "sqrt", [a]) => Ok(Number::Float(a.f64().sqrt())),
        ("floor" | "FloorToInt", [a]) => to_int(a.f64().floor()),
        ("ceiling" | "CeilToInt", [a]) => to_int(a.f64().ceil()),
        ("TruncToInt", [a]) => to_int(a.f64().trunc()),
        // Half to even, as Python's round.
        ("RoundToInt", [a]) => to_int(a.f64().round_ties_even()),
        ("ModularIndexing", [a, b, c]) => {
            arithmetic(arithmetic(*a, *b, floor_div, |a, b| (a / b).floor())?, *c, floor_mod, f64::rem_euclid)
        }
        ("OpaqueUnaryFn_exp" | "exp", [a]) => Ok(Number::Float(a.f64().exp())),
        ("OpaqueUnaryFn_log" | "log", [a]) => Ok(Number::Float(a.f64().ln())),
        ("OpaqueUnaryFn_log2", [a]) => Ok(Number::Float(a.f64().log2())),
        ("Identity", [a]) => Ok(*a),
        ("Abs", [Number::Int(a)]) => Ok(Number::Int(a.abs())),
        ("Abs", [Number::Float(a)]) => Ok(Number::Float(a.abs())),
        ("Max", [first, rest @ ..]) => {
            Ok(rest.iter().fold(*first, |m, v| if v.f64() > m.f64() { *v } else { m }))
        }
        ("Min", [first, rest @ ..]) => {
            Ok(rest.iter().fold(*first, |m, v| if v.f64() < m.f64() { *v } else { m }))
        }
        _ => Err(format!("`{name}` of {} arguments is not understood", args.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evaluates_what_sympy_prints() {
        let mut env = Bindings::default();
        env.insert("s0".into(), 7);
        env.insert("s0*s1".into(), 21);
        let int = |t: &str| evaluate(t, &env);
        assert_eq!(int("2*s0 + 1"), Ok(Number::Int(15)));
        assert_eq!(int("((s0 - 1)//2) + 1"), Ok(Number::Int(4)));
        assert_eq!(int("-s0//2"), Ok(Number::Int(-4)));
        assert_eq!(int("Max(1, s0, 3)"), Ok(Number::Int(7)));
        assert_eq!(int("s0**2 - Mod(s0, 4)"), Ok(Number::Int(46)));
        assert_eq!(int("s0*s1"), Ok(Number::Int(21)));
        assert_eq!(int("ToFloat(s0)/2"), Ok(Number::Float(3.5)));
        assert_eq!(int("RoundToInt(IntTrueDiv(s0, 2))"), Ok(Number::Int(4)));
        assert_eq!(int("ModularIndexing(s0, 2, 2)"), Ok(Number::Int(1)));
        assert!(int("s2 + 1").is_err_and(|e| e.contains("`s2` has no value")));
        assert!(int("s0 +").is_err());
    }
}
