//! A function that the user wrote in StableHLO: read as far as its type and its symbols go.
//!
//! What is read is MLIR's generic form (`"stablehlo.add"(%0, %1) : (...) -> ...`), which needs no dialect: functions,
//! one of them `main`, in a module or not. What the operations mean is the plugin's business.

use crate::text::{Attr, Cursor};
use crate::types::{DType, TensorType};
use std::fmt::Write;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

type Result<T> = std::result::Result<T, String>;

/// The text of a function with its type.
#[derive(Clone, Debug)]
pub struct StableHlo {
    text: Arc<str>,
    operands: Vec<TensorType>,
    results: Vec<TensorType>,
}

impl StableHlo {
    /// Reads the text; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<StableHlo> {
        let read = Writer::read(text, "main", "")?;
        let (operands, results) = read.main.ok_or("there is no function `main`")?;
        Ok(StableHlo { text: text.into(), operands, results })
    }

    pub fn operands(&self) -> &[TensorType] {
        &self.operands
    }

    pub fn results(&self) -> &[TensorType] {
        &self.results
    }

    /// The functions as private ones, in generic form without properties: `main` is called `name`, and the others'
    /// names begin with it. Their locations are left out, or unknown: lines of this text would mean nothing.
    pub fn functions(&self, name: &str, locations: bool) -> Result<String> {
        Ok(Writer::read(&self.text, name, if locations { " loc(unknown)" } else { "" })?.out)
    }
}

impl PartialEq for StableHlo {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for StableHlo {}

impl Hash for StableHlo {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl Attr for StableHlo {
    fn print(&self, out: &mut String) {
        let _ = write!(out, "{:?}", self.text);
    }
    fn parse(cursor: &mut Cursor<'_>) -> Result<Self> {
        StableHlo::parse(&cursor.string()?)
    }
}

/// `tensor<2x3xf32>`
pub fn mlir_type(ty: &TensorType) -> String {
    let mut out = String::from("tensor<");
    for d in &ty.shape {
        let _ = write!(out, "{d}x");
    }
    out + ty.dtype.mlir_name() + ">"
}

fn tensor(text: &str) -> Result<TensorType> {
    let unreadable = || format!("`{text}` is not a tensor of static shape");
    let inner =
        text.trim().strip_prefix("tensor<").and_then(|t| t.strip_suffix('>')).ok_or_else(unreadable)?;
    let mut rest = inner;
    let mut shape = Vec::new();
    while let Some((size, behind)) = rest.split_once('x') {
        // `complex<f32>` has an x too.
        let Ok(size) = size.parse::<i64>() else { break };
        shape.push(size);
        rest = behind;
    }
    let dtype = DType::ALL.iter().find(|d| d.mlir_name() == rest).ok_or_else(unreadable)?;
    Ok(TensorType::new(*dtype, shape))
}

/// Deeper nesting than this is no program, and would exhaust the stack.
const MAX_DEPTH: usize = 64;

/// Reads the generic form and writes it again, changed as `functions` says.
struct Writer<'a> {
    text: &'a str,
    at: usize,
    out: String,
    name: &'a str,
    /// Written behind operations and arguments of blocks.
    location: &'a str,
    main: Option<(Vec<TensorType>, Vec<TensorType>)>,
}

impl<'a> Writer<'a> {
    fn read(text: &'a str, name: &'a str, location: &'a str) -> Result<Writer<'a>> {
        let mut writer = Writer { text, at: 0, out: String::new(), name, location, main: None };
        writer.top().map_err(|e| {
            let line = text[..writer.at.min(text.len())].matches('\n').count() + 1;
            format!("line {line}: {e}")
        })?;
        Ok(writer)
    }

    fn top(&mut self) -> Result<()> {
        while !self.rest().is_empty() {
            if self.rest().starts_with('#') {
                let (name, _) = self.rest().split_once('=').ok_or("expected `=`")?;
                if !name.starts_with("#loc") {
                    return Err(format!(
                        "aliases such as `{}` are not read: print with local scope",
                        name.trim()
                    ));
                }
                self.at += name.len() + 1;
                self.location()?;
            } else {
                self.operation(0)?;
            }
        }
        Ok(())
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

    fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        self.at += if found { token.len() } else { 0 };
        found
    }

    fn expect(&mut self, token: &str) -> Result<()> {
        if self.eat(token) { Ok(()) } else { Err(format!("expected `{token}`")) }
    }

    fn string(&mut self) -> Result<&'a str> {
        let rest = self.rest();
        let end = string_end(rest).ok_or("a string without an end")?;
        self.at += end;
        Ok(&rest[1..end - 1])
    }

    /// What stands between a bracket, which is next, and its partner.
    fn balanced(&mut self) -> Result<&'a str> {
        let rest = self.rest();
        if !rest.starts_with(['(', '[', '{', '<']) {
            return Err("a bracket is missing".into());
        }
        let mut depth = 0usize;
        let mut i = 0;
        while let Some(c) = rest[i..].chars().next() {
            match c {
                '"' => {
                    i += string_end(&rest[i..]).ok_or("a string without an end")?;
                    continue;
                }
                '-' if rest[i..].starts_with("->") => i += 1,
                '(' | '[' | '{' | '<' => depth += 1,
                ')' | ']' | '}' | '>' => {
                    depth = depth.checked_sub(1).ok_or("a bracket without its partner")?;
                    if depth == 0 {
                        self.at += i + 1;
                        return Ok(&rest[1..i]);
                    }
                }
                _ => {}
            }
            i += c.len_utf8();
        }
        Err("a bracket without its partner".into())
    }

    fn location(&mut self) -> Result<()> {
        if self.eat("loc") { self.balanced().map(drop) } else { Ok(()) }
    }

    /// One type, or several in parentheses.
    fn types(&mut self) -> Result<String> {
        if self.rest().starts_with('(') {
            return Ok(format!("({})", self.balanced()?));
        }
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '!' && c != '.' && c != '_');
        let end = end.unwrap_or(rest.len());
        self.at += end;
        let inner =
            if rest[end..].starts_with('<') { format!("<{}>", self.balanced()?) } else { String::new() };
        Ok(format!("{}{inner}", &rest[..end]))
    }

    fn operation(&mut self, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(format!("regions are nested more than {MAX_DEPTH} deep"));
        }
        let rest = self.rest();
        let mut results = "";
        if rest.starts_with('%') {
            let (names, _) = rest.split_once('=').ok_or("expected `=`")?;
            results = names.trim();
            self.at += names.len() + 1;
        }
        if !self.rest().starts_with('"') {
            let line = self.rest().lines().next().unwrap_or_default();
            return Err(format!(
                "`{line}` is not in MLIR's generic form, \"dialect.operation\"(operands) : type"
            ));
        }
        let name = self.string()?;
        let operands = self.balanced()?;
        if self.rest().starts_with('[') {
            return Err(format!("{name} has successors, which StableHLO has not"));
        }
        let mut attributes = Vec::new();
        if self.rest().starts_with("<{") {
            let inner = self.balanced()?;
            attributes.extend(entries(inner[1..].trim_end().strip_suffix('}').ok_or("expected `}>`")?));
        }
        if name == "builtin.module" && depth == 0 {
            self.expect("(")?;
            self.region(depth)?;
            self.expect(")")?;
        } else {
            if depth == 0 && name != "func.func" {
                return Err(format!("{name} stands where a function is expected"));
            }
            let _ = write!(self.out, "{:1$}", "", 2 + 2 * depth);
            if !results.is_empty() {
                let _ = write!(self.out, "{results} = ");
            }
            let _ = write!(self.out, "\"{name}\"({operands})");
            if self.eat("(") {
                self.out.push_str(" (");
                loop {
                    self.out.push_str("{\n");
                    self.region(depth + 1)?;
                    let _ = write!(self.out, "{:1$}}}", "", 2 + 2 * depth);
                    if !self.eat(",") {
                        break;
                    }
                    self.out.push_str(", ");
                }
                self.expect(")")?;
                self.out.push(')');
            }
        }
        if self.rest().starts_with('{') {
            attributes.extend(entries(self.balanced()?));
        }
        self.expect(":")?;
        let takes = self.types()?;
        self.expect("->")?;
        let gives = self.types()?;
        self.location()?;
        if name == "builtin.module" {
            return Ok(());
        }
        if name == "func.func" {
            attributes = self.function(attributes)?;
        }
        if !attributes.is_empty() {
            let all: Vec<String> = attributes.into_iter().map(|a| self.renamed(a)).collect::<Result<_>>()?;
            let _ = write!(self.out, " {{{}}}", all.join(", "));
        }
        let _ = writeln!(self.out, " : {takes} -> {gives}{}", self.location);
        Ok(())
    }

    /// Blocks and their operations; at depth 0 those of the module.
    fn region(&mut self, depth: usize) -> Result<()> {
        self.expect("{")?;
        while !self.eat("}") {
            if self.rest().is_empty() {
                return Err("a region without an end".into());
            }
            if self.eat("^") {
                let rest = self.rest();
                let end = rest.find(['(', ':']).ok_or("expected `:`")?;
                self.at += end;
                let _ = write!(self.out, "{:1$}^{2}", "", 2 * depth, &rest[..end]);
                if self.rest().starts_with('(') {
                    let arguments = arguments(self.balanced()?, self.location);
                    let _ = write!(self.out, "({arguments})");
                }
                self.expect(":")?;
                self.out.push_str(":\n");
            } else {
                self.operation(depth)?;
            }
        }
        Ok(())
    }

    /// The attributes of a function that is private and goes by its new name; the type of `main`.
    fn function(&mut self, attributes: Vec<&'a str>) -> Result<Vec<&'a str>> {
        let value = |name: &str| {
            let found = attributes.iter().filter_map(|a| a.split_once('='));
            found.map(|(n, v)| (n.trim(), v.trim())).find(|(n, _)| *n == name).map(|(_, v)| v)
        };
        let symbol = value("sym_name").ok_or("a function without a name")?;
        let ty = value("function_type").ok_or("a function without a type")?;
        if symbol == "\"main\"" {
            let mut reader =
                Writer { text: ty, at: 0, out: String::new(), name: "", location: "", main: None };
            let takes = reader.types()?;
            reader.expect("->")?;
            let gives = reader.types()?;
            let list = |text: &str| -> Result<Vec<TensorType>> {
                let inner = text.strip_prefix('(').and_then(|t| t.strip_suffix(')')).unwrap_or(text);
                entries(inner).into_iter().map(tensor).collect()
            };
            self.main = Some((list(&takes)?, list(&gives)?));
        }
        let kept = |a: &&str| {
            let name = a.split('=').next().unwrap_or_default().trim();
            !matches!(name, "sym_visibility" | "arg_attrs" | "res_attrs")
        };
        let mut attributes: Vec<&str> = attributes.iter().copied().filter(kept).collect();
        attributes.push("sym_visibility = \"private\"");
        Ok(attributes)
    }

    /// An attribute with the new names of functions.
    fn renamed(&self, attribute: &str) -> Result<String> {
        let new = |symbol: &str| match symbol {
            "main" => self.name.to_string(),
            other => format!("{}_{other}", self.name),
        };
        if let Some((name, symbol)) = attribute.split_once('=')
            && name.trim() == "sym_name"
        {
            return Ok(format!("sym_name = \"{}\"", new(symbol.trim().trim_matches('"'))));
        }
        let mut out = String::new();
        let mut rest = attribute;
        while let Some(i) = rest.find(['"', '@']) {
            out.push_str(&rest[..i]);
            rest = &rest[i..];
            if rest.starts_with('"') {
                let end = string_end(rest).ok_or("a string without an end")?;
                out.push_str(&rest[..end]);
                rest = &rest[end..];
                continue;
            }
            let plain = |c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '$' | '.' | '-');
            let end = 1 + rest[1..].find(plain).unwrap_or(rest.len() - 1);
            if end == 1 {
                return Err("quoted names of functions are not read".into());
            }
            let _ = write!(out, "@{}", new(&rest[1..end]));
            rest = &rest[end..];
        }
        Ok(out + rest)
    }
}

/// Behind the closing quote of the string that begins `text`.
fn string_end(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(i + 1),
            _ => {}
        }
    }
    None
}

/// Splits at the commas that stand in no brackets.
fn entries(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut quoted, mut before) = (0usize, 0, false, ' ');
    let mut found = Vec::new();
    for (i, c) in text.char_indices() {
        match c {
            '"' if before != '\\' => quoted = !quoted,
            _ if quoted => {}
            '(' | '[' | '{' | '<' => depth += 1,
            '>' if before == '-' => {}
            ')' | ']' | '}' | '>' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                found.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
        before = c;
    }
    found.push(&text[start..]);
    found.into_iter().map(str::trim).filter(|e| !e.is_empty()).collect()
}

/// Those of a block, all at one location.
fn arguments(text: &str, location: &str) -> String {
    let plain = entries(text).into_iter().map(|argument| argument.split(" loc(").next().unwrap_or(argument));
    plain.map(|argument| format!("{argument}{location}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = r#"
#loc = loc(unknown)
"builtin.module"() <{sym_name = "m"}> ({
  "func.func"() <{arg_attrs = [{a = "x, y"}], function_type = (tensor<2x3xf32>, tensor<complex<f32>>) -> (tensor<i1>), sym_name = "main", sym_visibility = "public"}> ({
  ^bb0(%arg0: tensor<2x3xf32> loc("x"), %arg1: tensor<complex<f32>> loc(#loc)):
    // a comment
    %0:2 = "func.call"(%arg0) <{callee = @help}> {note = "@help \" }"} : (tensor<2x3xf32>) -> (tensor<i1>, tensor<i1>) loc(#loc)
    %1 = "stablehlo.reduce"(%0#0) <{dimensions = array<i64>}> ({
    ^bb0(%a: tensor<i1>):
      "stablehlo.return"(%a) : (tensor<i1>) -> ()
    }) {more = 1 : i64} : (tensor<i1>) -> tensor<i1>
    "func.return"(%1) : (tensor<i1>) -> ()
  }) : () -> ()
  "func.func"() <{function_type = (tensor<2x3xf32>) -> (tensor<i1>, tensor<i1>), sym_name = "help"}> ({
  }) : () -> ()
}) : () -> ()
"#;

    #[test]
    fn type_and_names_are_read() {
        let read = StableHlo::parse(TWO);
        assert!(read.is_ok(), "{read:?}");
        let Ok(read) = read else { return };
        assert_eq!(read.operands(), [TensorType::new(DType::F32, [2, 3]), TensorType::scalar(DType::C64)]);
        assert_eq!(read.results(), [TensorType::scalar(DType::Bool)]);
        let text = read.functions("custom_0", false).unwrap_or_else(|e| e);
        assert!(
            text.contains(r#"{callee = @custom_0_help, note = "@help \" }"} : (tensor<2x3xf32>)"#),
            "{text}"
        );
        assert!(text.contains(r#"sym_name = "custom_0", sym_visibility = "private"}"#), "{text}");
        assert!(text.contains(r#"}) {dimensions = array<i64>, more = 1 : i64} : (tensor<i1>)"#), "{text}");
        assert!(text.contains("^bb0(%arg0: tensor<2x3xf32>, %arg1: tensor<complex<f32>>):"), "{text}");
        assert!(!text.contains("loc(") && !text.contains("<{") && !text.contains("arg_attrs"), "{text}");
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let refused = |text: &str| StableHlo::parse(text).err().unwrap_or_default();
        assert!(refused("module @m {}").contains("not in MLIR's generic form"));
        assert!(refused("").contains("no function `main`"));
        assert!(refused("\"func.func\"() ({").contains("line 1"));
        assert!(refused("\"func.func\"() <{sym_name = \"main\", function_type = (tensor<?xf32>) -> ()}> ({}) : () -> ()")
            .contains("static shape"));
        assert!(refused("#map = affine_map<>").contains("local scope"));
        for cut in 0..TWO.len() {
            let _ = StableHlo::parse(&TWO[..cut]);
        }
    }
}
