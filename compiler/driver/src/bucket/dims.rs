//! Which positions of a padded dimension are valid, and how dimensions are split and merged.

use super::{Witness, extents};
use smallvec::{SmallVec, smallvec};
use torchtpu_ir::{Graph, Value};

/// One number in every graph: at the bucket's upper sizes, then in each sample.
pub type Sizes = SmallVec<[i64; 6]>;

/// A factor of a dimension: `extent` positions, of which the first `limit` are valid, or all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Part {
    pub extent: i64,
    pub limit: Option<usize>,
}

/// A dimension as a product of parts, the outermost first: a position is valid where it is in every part. The valid
/// positions in their order are the positions of the exact graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dim {
    pub parts: SmallVec<[Part; 2]>,
    /// All positions hold the same, or equally random, values: any reading of the extent is right.
    pub uniform: bool,
}

impl Dim {
    pub fn of(parts: impl IntoIterator<Item = Part>) -> Dim {
        let mut list: SmallVec<[Part; 2]> = SmallVec::new();
        for part in parts {
            match list.last_mut() {
                _ if part.limit.is_none() && part.extent == 1 => {}
                Some(last) if last.limit.is_none() && part.limit.is_none() => last.extent *= part.extent,
                _ => list.push(part),
            }
        }
        if list.is_empty() {
            list.push(Part { extent: 1, limit: None });
        }
        Dim { parts: list, uniform: false }
    }
    pub fn one(extent: i64, limit: Option<usize>) -> Dim {
        Dim { parts: smallvec![Part { extent, limit }], uniform: false }
    }
    pub fn fixed(extent: i64) -> Dim {
        Dim::one(extent, None)
    }
    pub fn uniform(self) -> Dim {
        Dim { uniform: true, ..self }
    }
    /// Read as it stands, uniform no longer.
    pub fn read(&self) -> Dim {
        Dim { uniform: false, ..self.clone() }
    }
    pub fn is_padded(&self) -> bool {
        self.parts.iter().any(|p| p.limit.is_some())
    }
}

/// The numbers that sizes decide, each once.
#[derive(Default)]
pub struct Limits {
    pub values: Vec<Sizes>,
    pub witnesses: Vec<Witness>,
}

impl Limits {
    /// The index of a number, or None where it is the same in all graphs.
    pub fn intern(&mut self, sizes: &Sizes, witness: Witness) -> Option<usize> {
        if sizes.iter().all(|s| *s == sizes[0]) {
            return None;
        }
        if let Some(found) = self.values.iter().position(|v| v == sizes) {
            return Some(found);
        }
        self.values.push(sizes.clone());
        self.witnesses.push(witness);
        Some(self.values.len() - 1)
    }

    pub fn sizes(&self, part: &Part, count: usize) -> Sizes {
        part.limit.map_or_else(|| smallvec![part.extent; count], |l| self.values[l].clone())
    }

    /// The same positions as one part, where the valid ones come first: their number depends on sizes at most in the
    /// outermost part.
    pub fn prefix(&mut self, dim: &Dim) -> Option<Part> {
        let (first, rest) = dim.parts.split_first()?;
        if rest.iter().any(|p| p.limit.is_some()) {
            return None;
        }
        let scale: i64 = rest.iter().map(|p| p.extent).product();
        let extent = first.extent * scale;
        let Some(limit) = first.limit else { return Some(Part { extent, limit: None }) };
        if scale == 1 {
            return Some(*first);
        }
        let sizes: Sizes = self.values[limit].iter().map(|v| v * scale).collect();
        Some(Part { extent, limit: self.intern(&sizes, Witness::Scaled(limit, scale)) })
    }

    /// One reading of two dimensions that are met position by position.
    pub fn unify(&mut self, a: &Dim, b: &Dim) -> Option<Dim> {
        if a.uniform {
            return Some(b.clone());
        }
        if b.uniform || a.parts == b.parts {
            return Some(a.clone());
        }
        match (self.prefix(a), self.prefix(b)) {
            (Some(x), Some(y)) if x == y => Some(if a.parts.len() >= b.parts.len() { a } else { b }.clone()),
            _ => None,
        }
    }

    /// The parts of `from` regrouped into dimensions of these sizes.
    pub fn regroup(&self, from: &[Dim], to: &[Sizes]) -> Option<Vec<Dim>> {
        let mut parts: Vec<Part> = from.iter().flat_map(|d| d.parts.iter().copied()).collect();
        parts.reverse();
        let mut dims = Vec::with_capacity(to.len());
        for target in to {
            let count = target.len();
            let mut left = target.clone();
            let mut taken = Vec::new();
            while left.iter().any(|&v| v != 1) {
                let part = parts.pop()?;
                let sizes = self.sizes(&part, count);
                if sizes.iter().all(|&s| s == 1) {
                    continue;
                }
                if left.iter().zip(&sizes).all(|(l, s)| *s != 0 && l % s == 0) {
                    left.iter_mut().zip(&sizes).for_each(|(l, s)| *l /= s);
                    taken.push(part);
                } else if part.limit.is_none()
                    && left.iter().all(|&l| l == left[0] && l != 0)
                    && part.extent % left[0] == 0
                {
                    taken.push(Part { extent: left[0], limit: None });
                    parts.push(Part { extent: part.extent / left[0], limit: None });
                    left.iter_mut().for_each(|l| *l = 1);
                } else {
                    return None;
                }
            }
            dims.push(Dim::of(taken));
        }
        parts.iter().all(|p| p.limit.is_none() && p.extent == 1).then_some(dims)
    }
}

/// Every reading of one extent: factors as sizes in each graph.
pub type Reading = Vec<(Sizes, Vec<Sizes>)>;

/// The extents of inputs that are products, each with the orders in which its factors may lie.
pub fn ambiguous_extents(graphs: &[&Graph], symbols: &[Vec<i64>]) -> Vec<(Sizes, Vec<Vec<Sizes>>)> {
    let symbols: Vec<Sizes> = symbols
        .iter()
        .map(|s| s.iter().copied().collect::<Sizes>())
        .filter(|s| s.iter().any(|v| *v != s[0]))
        .collect();
    let mut found: Vec<(Sizes, Vec<Vec<Sizes>>)> = Vec::new();
    for &parameter in graphs[0].parameters() {
        let value = Value { node: parameter, result: 0 };
        for dim in 0..graphs[0].ty(value).rank() {
            let sizes = extents(graphs, value, dim);
            let constant = sizes.iter().all(|s| *s == sizes[0]);
            if constant || symbols.contains(&sizes) || found.iter().any(|(s, _)| *s == sizes) {
                continue;
            }
            let orders = factorings(&sizes, &symbols);
            if !orders.is_empty() {
                found.push((sizes, orders));
            }
        }
    }
    found
}

/// Orders of factors whose product is `sizes`: constants and one or two symbols.
fn factorings(sizes: &Sizes, symbols: &[Sizes]) -> Vec<Vec<Sizes>> {
    let quotient = |a: &Sizes, b: &Sizes| -> Option<Sizes> {
        let divides = a.iter().zip(b).all(|(x, y)| *y != 0 && x % y == 0);
        divides.then(|| a.iter().zip(b).map(|(x, y)| x / y).collect())
    };
    let fixed = |s: &Sizes| s.iter().all(|v| *v == s[0]).then_some(s[0]);
    let mut orders = Vec::new();
    for (i, s) in symbols.iter().enumerate() {
        let Some(rest) = quotient(sizes, s) else { continue };
        if let Some(c) = fixed(&rest) {
            let of = |c: i64| -> Sizes { smallvec![c; sizes.len()] };
            orders.push(vec![of(c), s.clone()]);
            orders.push(vec![s.clone(), of(c)]);
            let splits = (2..c).filter(|d| c % d == 0).take(8);
            orders.extend(splits.map(|d| vec![of(d), s.clone(), of(c / d)]));
        }
        for t in symbols.iter().skip(i) {
            let Some(c) = quotient(&rest, t).and_then(|r| fixed(&r)) else { continue };
            let c: Sizes = smallvec![c; sizes.len()];
            for (a, b) in [(s, t), (t, s)] {
                orders.push(vec![a.clone(), b.clone(), c.clone()]);
                orders.push(vec![c.clone(), a.clone(), b.clone()]);
                orders.push(vec![a.clone(), c.clone(), b.clone()]);
            }
        }
    }
    orders
}

/// Combinations of readings, at most `most`.
pub fn readings(ambiguous: &[(Sizes, Vec<Vec<Sizes>>)], most: usize) -> Vec<Reading> {
    let mut all: Vec<Reading> = vec![Vec::new()];
    for (sizes, orders) in ambiguous {
        all = orders
            .iter()
            .flat_map(|order| {
                all.iter().map(|r| r.iter().cloned().chain([(sizes.clone(), order.clone())]).collect())
            })
            .take(most)
            .collect();
    }
    all
}
