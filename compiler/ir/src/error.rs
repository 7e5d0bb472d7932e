//! The one error of the compiler, as the user sees it.

use crate::location::Location;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The stage of the line that refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    Import,
    Lowering,
    Verify,
    Pass,
    Emit,
    Compile,
    Load,
    Run,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Import => "import",
            Stage::Lowering => "lowering",
            Stage::Verify => "verify",
            Stage::Pass => "pass",
            Stage::Emit => "emit",
            Stage::Compile => "compile",
            Stage::Load => "load",
            Stage::Run => "run",
        })
    }
}

/// What failed, at which node, on which line of the user's, what would work instead, and how to dump the graph.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompileError {
    pub stage: Stage,
    /// The op as the user's framework names it (`aten.sin.default`), where one is to blame.
    pub op: Option<String>,
    pub location: Location,
    pub message: String,
    /// What is supported instead.
    pub help: Option<Box<str>>,
}

impl CompileError {
    pub fn new(stage: Stage, message: impl Into<String>) -> Self {
        CompileError { stage, op: None, location: Location::default(), message: message.into(), help: None }
    }
    pub fn lowering(message: impl Into<String>) -> Self {
        CompileError::new(Stage::Lowering, message)
    }
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into().into());
        self
    }
    /// Names op and place unless an inner call already has.
    pub fn at(mut self, op: &str, location: &Location) -> Self {
        if self.op.is_none() {
            self.op = Some(op.to_string());
        }
        if self.location.name.is_empty() && self.location.frames.is_empty() {
            self.location = location.clone();
        }
        self
    }
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(op) = &self.op {
            write!(f, "\n  op:    {op}")?;
            if !self.location.name.is_empty() {
                write!(f, " (node {})", self.location.name)?;
            }
        }
        for (i, frame) in self.location.frames.iter().take(3).enumerate() {
            let label = if i == 0 { "at:   " } else { "from: " };
            write!(f, "\n  {label} {}:{} in {}", frame.file, frame.line, frame.function)?;
        }
        write!(f, "\n  stage: {}", self.stage)?;
        if let Some(help) = &self.help {
            write!(f, "\n  help:  {help}")?;
        }
        f.write_str("\n  dump:  set TORCHTPU_DUMP=DIR to write this graph at every stage")
    }
}

impl std::error::Error for CompileError {}
