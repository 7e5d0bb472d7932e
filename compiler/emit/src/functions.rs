//! The functions that a program calls: each equal region once, under a name of its own.

use crate::symbol_name;
use torchtpu_ir::{Graph, Op, Region};

/// In the order in which they are first called, those inside a function before it.
#[derive(Default)]
pub struct Functions<'g> {
    list: Vec<(String, &'g Region)>,
}

impl<'g> Functions<'g> {
    /// The functions that `graph` calls, at any depth.
    pub fn of(graph: &'g Graph) -> Self {
        let mut functions = Functions::default();
        functions.collect(graph);
        functions
    }

    fn collect(&mut self, graph: &'g Graph) {
        for id in graph.topological() {
            let op = graph.op(id);
            for region in op.regions() {
                let calls = matches!(op, Op::Call(_));
                if calls && self.name(region).is_some() {
                    continue;
                }
                self.collect(region);
                if calls {
                    let name = self.free_name(&symbol_name(&region.name));
                    self.list.push((name, region));
                }
            }
        }
    }

    fn free_name(&self, wanted: &str) -> String {
        let taken = |name: &str| name == "main" || self.list.iter().any(|(other, _)| other == name);
        let mut name = wanted.to_string();
        for number in 1.. {
            if !taken(&name) {
                break;
            }
            name = format!("{wanted}_{number}");
        }
        name
    }

    pub fn name(&self, region: &Region) -> Option<&str> {
        let same = self.list.iter().find(|(_, other)| other.is_same(region));
        same.or_else(|| self.list.iter().find(|(_, other)| *other == region)).map(|(name, _)| name.as_str())
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &'g Region)> {
        self.list.iter().map(|(name, region)| (name.as_str(), *region))
    }
}
