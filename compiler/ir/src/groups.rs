//! Which devices a collective joins.

use crate::text::{Attr, Cursor};
use crate::types::Ints;
use std::fmt::Write;

/// More devices than any machine has, and few enough to write down.
const MOST: i64 = 1 << 24;

/// A partition of the replicas. The order in a group is that of what is gathered from it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ReplicaGroups {
    /// Replicas 0, 1, ... fill a mesh of this shape row by row; a group is what differs `along` some of its dimensions,
    /// the first of them slowest. `[2,4] along [1]` is {0,1,2,3} and {4,5,6,7}, `[2,4] along [0]` is {0,4}, {1,5}, {2,6}
    /// and {3,7}. However many devices there are, these are a few numbers.
    Mesh { shape: Ints, along: Ints },
    /// Any other partition, written out.
    Listed(Vec<Ints>),
}

impl ReplicaGroups {
    /// One group of all replicas.
    pub fn all(devices: i64) -> Self {
        ReplicaGroups::mesh(&[devices], &[0])
    }

    /// The groups along some dimensions of a mesh, in the one form that equal groups have: dimensions that go
    /// together are one, and those of size 1 are none.
    pub fn mesh(shape: &[i64], along: &[i64]) -> Self {
        let (mut merged, mut first): (Ints, Vec<i64>) = (Ints::new(), Vec::new());
        // By dimension of `shape`: its place in `along`, if it has one.
        let place = |d: i64| along.iter().position(|&a| a == d);
        let mut last = None;
        for (d, &size) in shape.iter().enumerate().filter(|(_, size)| **size != 1) {
            let here = place(d as i64);
            let ones = |from: usize, to: usize| {
                along[from..to].iter().all(|&a| shape.get(a as usize).is_some_and(|&n| n == 1))
            };
            let joins = match (last, here) {
                (Some(None), None) => true,
                (Some(Some(a)), Some(b)) => a < b && ones(a + 1, b),
                _ => false,
            };
            match merged.last_mut() {
                Some(before) if joins => *before = before.saturating_mul(size),
                _ => {
                    merged.push(size);
                    first.push(here.map_or(-1, |p| p as i64));
                }
            }
            last = Some(here);
        }
        let mut along: Vec<(i64, i64)> =
            first.iter().enumerate().filter(|(_, p)| **p >= 0).map(|(d, &p)| (p, d as i64)).collect();
        along.sort_unstable();
        ReplicaGroups::Mesh { shape: merged, along: along.into_iter().map(|(_, d)| d).collect() }
    }

    /// These groups, as those of a mesh where they are.
    pub fn of(groups: Vec<Ints>) -> Self {
        let devices = groups.iter().map(|g| g.len() as i64).sum();
        match groups.iter().find(|g| g.first() == Some(&0)).and_then(|g| ReplicaGroups::repeated(g, devices))
        {
            Some(mesh) => {
                let (mut left, mut right) = (mesh.groups(), groups);
                left.sort_unstable();
                right.sort_unstable();
                if left == right { mesh } else { ReplicaGroups::Listed(right) }
            }
            None => ReplicaGroups::Listed(groups),
        }
    }

    /// The mesh of which `group`, that of replica 0, is one: its members are sums of multiples of a few strides.
    fn repeated(group: &[i64], devices: i64) -> Option<Self> {
        let mut dims: Vec<(i64, i64)> = Vec::new(); // (stride, size), the last of them fastest
        let mut rest: Vec<i64> = group.to_vec();
        while let [zero, next, ..] = rest[..] {
            let stride = next - zero;
            let run = rest
                .iter()
                .enumerate()
                .take_while(|&(i, &rank)| rank == stride.saturating_mul(i as i64))
                .count();
            if stride <= 0 || !rest.len().is_multiple_of(run) {
                return None;
            }
            dims.insert(0, (stride, run as i64));
            rest = rest.into_iter().step_by(run).collect();
        }
        // Row-major: the greatest stride is the first dimension; between two strides lies what is not of the group.
        let mut order: Vec<usize> = (0..dims.len()).collect();
        order.sort_by_key(|&i| -dims[i].0);
        let (mut shape, mut along, mut above) = (Ints::new(), vec![0; dims.len()], devices);
        for i in order {
            let (stride, size) = dims[i];
            let block = stride.checked_mul(size)?;
            if above % block != 0 {
                return None;
            }
            shape.extend([above / block, size]);
            along[i] = shape.len() as i64 - 1;
            above = stride;
        }
        shape.push(above);
        Some(ReplicaGroups::mesh(&shape, &along))
    }

    /// How many replicas there are.
    pub fn devices(&self) -> i64 {
        match self {
            ReplicaGroups::Mesh { shape, .. } => shape.iter().fold(1, |n, &size| n.saturating_mul(size)),
            ReplicaGroups::Listed(groups) => groups.iter().map(|g| g.len() as i64).sum(),
        }
    }

    /// How many replicas a group has.
    pub fn size(&self) -> i64 {
        match self {
            ReplicaGroups::Mesh { shape, along } => {
                along.iter().fold(1, |n, &d| n.saturating_mul(shape.get(d as usize).copied().unwrap_or(1)))
            }
            ReplicaGroups::Listed(groups) => groups.first().map_or(0, |g| g.len() as i64),
        }
    }

    /// Every replica of every group. To be asked of groups that are `check`ed.
    pub fn groups(&self) -> Vec<Ints> {
        let (shape, along) = match self {
            ReplicaGroups::Mesh { shape, along } => (shape, along),
            ReplicaGroups::Listed(groups) => return groups.clone(),
        };
        let stride = |d: usize| shape[d + 1..].iter().product::<i64>();
        // The replicas that differ from the first along these dimensions, the last fastest.
        let spanned = |dims: &mut dyn Iterator<Item = usize>| {
            dims.fold(vec![0], |from: Ints, d| {
                let step = |rank: i64| (0..shape[d]).map(move |i| rank + i * stride(d));
                from.into_iter().flat_map(step).collect()
            })
        };
        let members = spanned(&mut along.iter().map(|&d| d as usize));
        let firsts = spanned(&mut (0..shape.len()).filter(|&d| !along.contains(&(d as i64))));
        firsts.iter().map(|first| members.iter().map(|member| first + member).collect()).collect()
    }

    /// Every replica is in one group, and all have one size.
    pub fn check(&self) -> Result<(), String> {
        let fail = |what: &str| {
            let mut text = String::new();
            self.print(&mut text);
            Err(format!("replica groups {text}: {what}"))
        };
        if self.devices() > MOST {
            return fail("there are not that many devices");
        }
        match self {
            ReplicaGroups::Mesh { shape, along } => {
                let known = |d: &i64| usize::try_from(*d).is_ok_and(|d| d < shape.len());
                if shape.iter().any(|&size| size < 1) {
                    return fail("a size is below 1");
                }
                let mut seen = along.clone();
                seen.sort_unstable();
                seen.dedup();
                if seen.len() != along.len() || !along.iter().all(known) {
                    return fail("no dimensions of the mesh");
                }
            }
            ReplicaGroups::Listed(groups) => {
                let mut ranks: Vec<i64> = groups.iter().flatten().copied().collect();
                ranks.sort_unstable();
                if groups.iter().any(|g| g.len() as i64 != self.size()) || self.size() == 0 {
                    return fail("groups of different sizes");
                }
                if !ranks.iter().enumerate().all(|(i, &rank)| i as i64 == rank) {
                    return fail("not every replica once");
                }
            }
        }
        Ok(())
    }

    /// StableHLO's `replica_groups`.
    pub fn attribute(&self) -> String {
        let groups = self.groups();
        let list = |ranks: &Ints| {
            let ranks: Vec<String> = ranks.iter().map(ToString::to_string).collect();
            format!("[{}]", ranks.join(", "))
        };
        let lists: Vec<String> = groups.iter().map(list).collect();
        format!("dense<[{}]> : tensor<{}x{}xi64>", lists.join(", "), groups.len(), self.size())
    }
}

impl Attr for ReplicaGroups {
    fn print(&self, out: &mut String) {
        match self {
            ReplicaGroups::Mesh { shape, along } => {
                shape.print(out);
                out.push_str(" along ");
                along.print(out);
            }
            ReplicaGroups::Listed(groups) => {
                for (i, group) in groups.iter().enumerate() {
                    let _ = out.write_str(if i == 0 { "[" } else { "," });
                    group.print(out);
                }
                out.push(']');
            }
        }
    }
    fn parse(cursor: &mut Cursor<'_>) -> Result<Self, String> {
        let start = cursor.clone();
        if let Ok(shape) = Ints::parse(cursor) {
            cursor.expect("along")?;
            return Ok(ReplicaGroups::Mesh { shape, along: Ints::parse(cursor)? });
        }
        *cursor = start;
        cursor.expect("[")?;
        let mut groups = vec![Ints::parse(cursor)?];
        while cursor.eat(",") {
            groups.push(Ints::parse(cursor)?);
        }
        cursor.expect("]")?;
        Ok(ReplicaGroups::Listed(groups))
    }
}

#[cfg(test)]
mod tests {
    use super::ReplicaGroups;

    fn text(groups: &ReplicaGroups) -> String {
        use crate::text::Attr;
        let mut out = String::new();
        groups.print(&mut out);
        out
    }

    #[test]
    fn a_mesh_has_one_form() {
        let same = |shape: &[i64], along: &[i64], form: &str| {
            assert_eq!(text(&ReplicaGroups::mesh(shape, along)), form, "{shape:?} along {along:?}");
        };
        same(&[8], &[0], "[8] along [0]");
        same(&[2, 4], &[0, 1], "[8] along [0]");
        same(&[2, 4], &[1, 0], "[2,4] along [1,0]");
        same(&[2, 2, 2], &[1], "[2,2,2] along [1]");
        same(&[2, 2, 2], &[2], "[4,2] along [1]");
        same(&[2, 2, 2], &[0, 2], "[2,2,2] along [0,2]");
        same(&[2, 1, 4], &[0, 2], "[8] along [0]");
        same(&[2, 1, 4], &[0, 1, 2], "[8] along [0]");
        same(&[4, 1], &[1], "[4] along []");
    }

    #[test]
    fn listed_groups_are_recognized() {
        let same = |lists: &[&[i64]], form: &str| {
            let groups = ReplicaGroups::of(lists.iter().map(|l| l.to_vec()).collect());
            assert_eq!(groups.check(), Ok(()));
            assert_eq!(text(&groups), form);
            let mut sorted = (groups.groups(), lists.iter().map(|l| l.to_vec()).collect::<Vec<_>>());
            sorted.0.sort_unstable();
            sorted.1.sort_unstable();
            assert_eq!(sorted.0, sorted.1);
        };
        same(&[&[0, 1, 2, 3], &[4, 5, 6, 7]], "[2,4] along [1]");
        same(&[&[1, 5], &[0, 4], &[2, 6], &[3, 7]], "[2,4] along [0]");
        same(&[&[0, 2], &[1, 3], &[4, 6], &[5, 7]], "[2,2,2] along [1]");
        same(&[&[0, 1, 4, 5], &[2, 3, 6, 7]], "[2,2,2] along [0,2]");
        same(&[&[0, 4, 1, 5], &[2, 6, 3, 7]], "[2,2,2] along [2,0]");
        same(&[&[0], &[1]], "[2] along []");
        same(&[&[0, 1], &[3, 2]], "[[0,1],[3,2]]");
        same(&[&[0, 3], &[1, 2]], "[[0,3],[1,2]]");
    }

    #[test]
    fn what_is_no_partition_is_refused() {
        for groups in [
            ReplicaGroups::Listed(vec![vec![0, 1], vec![2]]),
            ReplicaGroups::Listed(vec![vec![0, 1], vec![1, 2]]),
            ReplicaGroups::Listed(vec![vec![]]),
            ReplicaGroups::Mesh { shape: vec![2, 0], along: vec![0] },
            ReplicaGroups::Mesh { shape: vec![2, 2], along: vec![2] },
            ReplicaGroups::Mesh { shape: vec![2, 2], along: vec![1, 1] },
            ReplicaGroups::Mesh { shape: vec![i64::MAX, 4], along: vec![0] },
        ] {
            assert!(groups.check().is_err(), "{groups:?}");
        }
    }
}
