//! Where a node comes from: the FX node's name and the user's stack, innermost frame first.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// Index into `Graph::locations`; 0 is the unknown location.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct LocId(pub u32);

impl LocId {
    pub const UNKNOWN: LocId = LocId(0);
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Frame {
    pub file: Arc<str>,
    pub line: u32,
    pub function: Arc<str>,
}

/// One FX node's origin.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Location {
    pub name: String,
    pub frames: Vec<Frame>,
}

impl Location {
    /// `file:line` of the user's innermost frame.
    pub fn user_line(&self) -> Option<String> {
        self.frames.first().map(|f| format!("{}:{}", f.file, f.line))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.name)?;
        for frame in &self.frames {
            write!(f, " at {:?}:{} in {:?}", frame.file, frame.line, frame.function)?;
        }
        Ok(())
    }
}
