//! The functions that a program calls: each equal region once, and each custom operator's, under a name of its own.

use crate::symbol_name;
use torchtpu_ir::{CompileError, Graph, Op, Region, StableHlo, Stage};

/// What the names of custom operators' functions start with; no other name does.
const CUSTOM: &str = "custom_";

/// In the order in which they are first called, those inside a function before it.
#[derive(Default)]
pub struct Functions<'g> {
    list: Vec<(String, &'g Region)>,
    customs: Vec<&'g StableHlo>,
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
            if let Op::Custom(custom) = op
                && !self.customs.contains(&&custom.function)
            {
                self.customs.push(&custom.function);
            }
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
        let taken = |name: &str| {
            name == "main" || name.starts_with(CUSTOM) || self.list.iter().any(|(other, _)| other == name)
        };
        let mut name = wanted.to_string();
        for number in 1.. {
            if !taken(&name) {
                break;
            }
            name = format!("{}_{number}", wanted.replacen(CUSTOM, "custom-", 1));
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

    pub fn custom_name(&self, function: &StableHlo) -> Option<String> {
        self.customs.iter().position(|f| *f == function).map(|i| format!("{CUSTOM}{i}"))
    }

    /// The text of each custom operator's functions.
    pub fn customs(&self, locations: bool) -> Result<Vec<String>, CompileError> {
        let text = |(i, f): (usize, &&StableHlo)| f.functions(&format!("{CUSTOM}{i}"), locations);
        let texts: Result<_, String> = self.customs.iter().enumerate().map(text).collect();
        texts.map_err(|e| CompileError::new(Stage::Emit, e))
    }
}
