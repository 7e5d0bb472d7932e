//! Which devices a collective joins.

use crate::text::{Attr, Cursor};
use std::fmt::Write;

/// Replicas 0, 1, ... in `count` groups of `size`, each of neighbours: `[2,4]` is {0,1,2,3} and {4,5,6,7}. However many
/// there are, this is two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReplicaGroups {
    pub count: i64,
    pub size: i64,
}

impl ReplicaGroups {
    /// How many replicas there are.
    pub fn devices(&self) -> i64 {
        self.count.saturating_mul(self.size)
    }

    /// StableHLO's `replica_groups`.
    pub fn attribute(&self) -> String {
        let group = |first: i64| {
            let ranks: Vec<String> = (first..first + self.size).map(|rank| rank.to_string()).collect();
            format!("[{}]", ranks.join(", "))
        };
        let groups: Vec<String> = (0..self.count).map(|i| group(i * self.size)).collect();
        format!("dense<[{}]> : tensor<{}x{}xi64>", groups.join(", "), self.count, self.size)
    }
}

impl Attr for ReplicaGroups {
    fn print(&self, out: &mut String) {
        let _ = write!(out, "[{},{}]", self.count, self.size);
    }
    fn parse(cursor: &mut Cursor<'_>) -> Result<Self, String> {
        match Vec::<i64>::parse(cursor)?[..] {
            [count, size] => Ok(ReplicaGroups { count, size }),
            _ => Err("replica groups are [count, size]".into()),
        }
    }
}
