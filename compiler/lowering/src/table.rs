//! The lowering table: the union of the families' rows.

use crate::cx::Cx;
use crate::families;
use rustc_hash::FxHashMap;
use std::sync::OnceLock;
use torchtpu_ir::{BinaryOp, CompileError, Direction, UnaryOp, Value};

pub type Result<T> = std::result::Result<T, CompileError>;

/// How an overload becomes IR. The regular ones are data; their functions are in `families::pointwise`.
#[derive(Clone, Copy)]
pub enum Rule {
    /// One IR operation in the result's dtype: `self` converted to it first.
    Unary(UnaryOp),
    /// As `Unary`, computed in f32 for the short floats: where one IR operation is less precise than PyTorch's.
    UnaryOpmath(UnaryOp),
    /// `self op other` in the result's dtype, either a tensor or a number.
    Binary(BinaryOp),
    /// `self op other` in their promoted dtype; the result is boolean.
    Compare(Direction),
    /// One result.
    One(fn(&mut Cx<'_>) -> Result<Value>),
    /// A tuple or list of results.
    Many(fn(&mut Cx<'_>) -> Result<Vec<Value>>),
}

pub struct Row {
    /// `aten.name.overload`, as FX prints it.
    pub target: &'static str,
    pub rule: Rule,
}

pub const fn row(target: &'static str, rule: Rule) -> Row {
    Row { target, rule }
}

/// All rows, family by family.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    families::ALL.iter().flat_map(|(_, rows)| rows.iter())
}

/// The rule of one target.
pub fn find(target: &str) -> Option<Rule> {
    static TABLE: OnceLock<FxHashMap<&'static str, Rule>> = OnceLock::new();
    TABLE.get_or_init(|| rows().map(|r| (r.target, r.rule)).collect()).get(target).copied()
}

/// Overloads of the same operator, or operators with a similar name, for the help line of an error.
pub fn similar(target: &str) -> Vec<&'static str> {
    let base = target.rsplit_once('.').map_or(target, |(base, _)| base);
    let mut found: Vec<_> =
        rows().map(|r| r.target).filter(|t| t.rsplit_once('.').is_some_and(|(b, _)| b == base)).collect();
    found.sort_unstable();
    found
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_target_has_exactly_one_row() {
        let mut seen = std::collections::HashSet::new();
        for row in super::rows() {
            assert!(seen.insert(row.target), "{} has two rows", row.target);
        }
        assert!(!seen.is_empty());
    }
}
