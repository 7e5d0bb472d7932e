//! The petgraph IR: graph, ops, types, locations, text form and verifier.
