//! The functions that a program calls: each equal region once, and each custom operator's, under a name of its own.

use crate::symbol_name;
use torchtpu_ir::{CompileError, Graph, Op, Region, StableHlo, Stage};

/// What the names of custom operators' functions start with; no other name does.
const CUSTOM: &str = "custom_";

/// In the order in which they are first called, those inside a function before it.
#[derive(Default)]
pub struct Functions<'g> {
    list: Vec<Function<'g>>,
    customs: Vec<&'g StableHlo>,
    inline: bool,
}

struct Function<'g> {
    name: String,
    body: &'g Region,
    /// How many calls name it.
    calls: usize,
}

/// What tells XLA to leave a call as it is.
pub const STAYS: (&str, &str, &str) = ("mhlo.frontend_attributes", "inlineable", "false");

impl<'g> Functions<'g> {
    /// The functions that `graph` calls, at any depth.
    pub fn of(graph: &'g Graph, inline: bool) -> Self {
        let mut functions = Functions { inline, ..Functions::default() };
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
                if calls && let Some(at) = self.position(region) {
                    self.list[at].calls += 1;
                    continue;
                }
                self.collect(region);
                if calls {
                    let name = self.free_name(&symbol_name(&region.name));
                    self.list.push(Function { name, body: region, calls: 1 });
                }
            }
        }
    }

    fn free_name(&self, wanted: &str) -> String {
        let taken = |name: &str| {
            name == "main" || name.starts_with(CUSTOM) || self.list.iter().any(|other| other.name == name)
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

    fn position(&self, region: &Region) -> Option<usize> {
        let same = self.list.iter().position(|other| other.body.is_same(region));
        same.or_else(|| self.list.iter().position(|other| other.body == region))
    }

    pub fn name(&self, region: &Region) -> Option<&str> {
        self.position(region).map(|at| &*self.list[at].name)
    }

    /// Whether calls of it are left as they are.
    pub fn stays(&self, region: &Region) -> bool {
        !self.inline && self.position(region).is_some_and(|at| self.list[at].calls > 1)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &'g Region)> {
        self.list.iter().map(|function| (&*function.name, function.body))
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
