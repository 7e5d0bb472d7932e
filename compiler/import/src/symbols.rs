//! Symbolic numbers: the expressions that PyTorch's SymInts print as, and their evaluation.
//!
//! Grammar: `+ - * / // % **`, parentheses, names, numbers and the functions that sympy and
//! `torch.utils._sympy.functions` print (`FloorDiv`, `CleanDiv`, `CeilDiv`, `Mod`, `PythonMod`, `Max`, `Min`, `Abs`,
//! `IntTrueDiv`, `FloatTrueDiv`, `ToFloat`, `floor`, `ceiling`, `FloorToInt`, `CeilToInt`, `TruncToInt`,
//! `RoundToInt`, `ModularIndexing`, `OpaqueUnaryFn_{sqrt,exp,log,log2}`, `PowByNatural`, `Piecewise`, `Eq`, `Ne`).
//! Comparisons and what `& | ~` make of them are 1 and 0.

use rustc_hash::FxHashMap;
use std::cmp::Ordering;

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
    let value = parser.any_of().map_err(|e| format!("symbolic size `{text}`: {e}"))?;
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
    fn any_of(&mut self) -> Result_ {
        self.depth += 1;
        if self.depth > 64 {
            return Err("nested too deeply".into());
        }
        let mut a = self.all_of()?;
        while self.eat("|") {
            let b = self.all_of()?;
            a = truth(a.f64() != 0.0 || b.f64() != 0.0);
        }
        self.depth -= 1;
        Ok(a)
    }
    fn all_of(&mut self) -> Result_ {
        let mut a = self.comparison()?;
        while self.eat("&") {
            let b = self.comparison()?;
            a = truth(a.f64() != 0.0 && b.f64() != 0.0);
        }
        Ok(a)
    }
    fn comparison(&mut self) -> Result_ {
        let a = self.sum()?;
        for (token, holds) in COMPARISONS {
            if self.eat(token) {
                let b = self.sum()?;
                return Ok(truth(holds(compare(a, b))));
            }
        }
        Ok(a)
    }
    fn sum(&mut self) -> Result_ {
        let mut a = self.product()?;
        loop {
            if self.eat("+") {
                a = arithmetic(a, self.product()?, i64::checked_add, |a, b| a + b)?;
            } else if self.eat("-") {
                a = arithmetic(a, self.product()?, i64::checked_sub, |a, b| a - b)?;
            } else {
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
        if self.eat("~") {
            return Ok(truth(self.unary()?.f64() == 0.0));
        }
        let base = self.atom()?;
        if self.eat("**") { power(base, self.unary()?) } else { Ok(base) }
    }
    fn atom(&mut self) -> Result_ {
        if self.eat("(") {
            let v = self.any_of()?;
            return if self.eat(")") { Ok(v) } else { Err("missing `)`".into()) };
        }
        self.peek();
        let rest = &self.text[self.at..];
        let other = |c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.');
        let mut end = rest.find(other).unwrap_or(rest.len());
        // A number's exponent has a sign: `1.5e-7`.
        if rest.starts_with(|c: char| c.is_ascii_digit())
            && rest[..end].ends_with(['e', 'E'])
            && let Some(digits) = rest[end..].strip_prefix(['-', '+'])
        {
            end += digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len()) + 1;
        }
        let word = &rest[..end];
        self.at += word.len();
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            let int = word.parse().map(Number::Int).ok();
            return int
                .or_else(|| word.parse().map(Number::Float).ok())
                .ok_or_else(|| format!("bad number `{word}`"));
        }
        if !self.eat("(") {
            return match (word, self.bindings.get(word)) {
                (_, Some(v)) => Ok(Number::Int(*v)),
                ("True", _) => Ok(truth(true)),
                ("False", _) => Ok(truth(false)),
                _ => Err(format!("`{word}` has no value")),
            };
        }
        if word == "Piecewise" {
            return self.pieces();
        }
        let mut args = Vec::new();
        while !self.eat(")") {
            args.push(self.any_of()?);
            if !self.eat(",") && self.peek() != Some(')') {
                return Err("missing `,` or `)`".into());
            }
        }
        call(word, &args)
    }
    /// `(value, condition), ...)`: the value of the first condition that holds.
    fn pieces(&mut self) -> Result_ {
        let mut found = None;
        while !self.eat(")") {
            let piece = self.eat("(");
            let value = self.any_of();
            let condition = if self.eat(",") { self.any_of()? } else { truth(false) };
            if !piece || !self.eat(")") || !(self.eat(",") || self.peek() == Some(')')) {
                return Err("a piece is a value and a condition".into());
            }
            if condition.f64() != 0.0 {
                found = found.or(Some(value));
            }
        }
        found.unwrap_or_else(|| Err("no condition of `Piecewise` holds".into()))
    }
}

type Holds = fn(Ordering) -> bool;

/// Longer ones first.
const COMPARISONS: [(&str, Holds); 6] = [
    ("<=", Ordering::is_le),
    (">=", Ordering::is_ge),
    ("==", Ordering::is_eq),
    ("!=", Ordering::is_ne),
    ("<", Ordering::is_lt),
    (">", Ordering::is_gt),
];

fn compare(a: Number, b: Number) -> Ordering {
    match (a, b) {
        (Number::Int(a), Number::Int(b)) => a.cmp(&b),
        (a, b) => a.f64().total_cmp(&b.f64()),
    }
}

fn truth(holds: bool) -> Number {
    Number::Int(i64::from(holds))
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
        ("Eq", [a, b]) => Ok(truth(compare(*a, *b).is_eq())),
        ("Ne", [a, b]) => Ok(truth(compare(*a, *b).is_ne())),
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
        assert_eq!(int("1.5e-1*ToFloat(s0) - 1"), Ok(Number::Float(1.5e-1 * 7.0 - 1.0)));
        assert_eq!(int("2.0e+1 + 1"), Ok(Number::Float(21.0)));
        assert!(["1e", "1e-", "2e+é", "1eé", "1e*2"].into_iter().all(|t| int(t).is_err()));
        assert_eq!(int("Max(1, s0, 3)"), Ok(Number::Int(7)));
        assert_eq!(int("s0**2 - Mod(s0, 4)"), Ok(Number::Int(46)));
        assert_eq!(int("s0*s1"), Ok(Number::Int(21)));
        assert_eq!(int("ToFloat(s0)/2"), Ok(Number::Float(3.5)));
        assert_eq!(int("RoundToInt(IntTrueDiv(s0, 2))"), Ok(Number::Int(4)));
        assert_eq!(int("ModularIndexing(s0, 2, 2)"), Ok(Number::Int(1)));
        assert_eq!(int("s0 + 6*Piecewise((1, Eq(s0, -2) & (s0 < 0)), (0, True)) + 2"), Ok(Number::Int(9)));
        assert_eq!(int("Piecewise((s0, ~(s0 > 7) | False), (0, True))"), Ok(Number::Int(7)));
        assert!(int("Piecewise((1, s0 < 0))").is_err());
        assert!(int("s2 + 1").is_err_and(|e| e.contains("`s2` has no value")));
        assert!(int("s0 +").is_err());
    }
}
