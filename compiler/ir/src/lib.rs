//! The IR that every stage after import works on: a petgraph dag of StableHLO-level operations.
//!
//! `types` and `literal` are the values' static side, `op` the table of operations, `infer` their result types, `groups` which
//! devices a collective joins,
//! `graph` the dag with its ordered edges, `operands` these of all nodes at once, `build` the typed constructors,
//! `text` the form that people read and tests start from, `verify` the invariants, `error` the one error that a user sees.
//!
//! Shapes are static here. Symbolic sizes live in the FX payload and are bound before lowering, so that no pass
//! and no emitter has to ask whether a dimension is known.
//!
//! Nothing in this crate may know of ATen, of StableHLO's MLIR encoding (but for `stablehlo`, which reads the type of
//! a function that the user wrote) or of a runtime.

pub mod build;
pub mod error;
pub mod graph;
pub mod groups;
pub mod infer;
pub mod literal;
pub mod location;
pub mod op;
pub mod operands;
pub mod region;
pub mod stablehlo;
pub mod text;
pub mod types;
pub mod verify;

pub use build::Builder;
pub use error::{CompileError, Stage};
pub use graph::{Edge, Graph, Node, NodeId, Value};
pub use groups::ReplicaGroups;
pub use literal::{Literal, Scalar};
pub use location::{Frame, LocId, Location};
pub use op::{BinaryOp, Direction, Op, ParamRole, Precision, ReduceKind, RngAlgorithm, ScatterKind, UnaryOp};
pub use operands::Operands;
pub use region::Region;
pub use stablehlo::StableHlo;
pub use types::{DType, Ints, TensorType};
