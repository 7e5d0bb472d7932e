//! The FX payload: the versioned schema in which Python hands over a graph.
