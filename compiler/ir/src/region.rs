//! A graph inside an operation: a branch, a loop's condition or body, a function that is called. It sees its
//! parameters and nothing around it.

use crate::graph::Graph;
use crate::text::{Attr, Cursor, print_graph};
use crate::types::TensorType;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

/// Shared between copies of its operation until one of them is changed.
#[derive(Clone, Debug)]
pub struct Region(Arc<Graph>);

impl Region {
    pub fn new(graph: Graph) -> Self {
        Region(Arc::new(graph))
    }

    pub fn graph_mut(&mut self) -> &mut Graph {
        Arc::make_mut(&mut self.0)
    }

    /// One graph in memory, and so equal without a look into it.
    pub fn is_same(&self, other: &Region) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub fn parameter_types(&self) -> Vec<&TensorType> {
        self.parameters().iter().filter_map(|&id| self.node(id).types.first()).collect()
    }

    pub fn output_types(&self) -> Vec<&TensorType> {
        self.outputs.iter().map(|v| self.ty(*v)).collect()
    }
}

impl Deref for Region {
    type Target = Graph;
    fn deref(&self) -> &Graph {
        &self.0
    }
}

/// Two regions are equal where their text is.
impl PartialEq for Region {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other) || (self.len() == other.len() && print_graph(self) == print_graph(other))
    }
}

impl Eq for Region {}

impl Hash for Region {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.len(), self.parameters().len(), self.outputs.len()).hash(state);
    }
}

impl Attr for Region {
    fn print(&self, out: &mut String) {
        out.push_str(&print_graph(self).trim_end().replace('\n', "\n  "));
    }
    fn parse(cursor: &mut Cursor<'_>) -> Result<Self, String> {
        cursor.graph().map(Region::new)
    }
}
