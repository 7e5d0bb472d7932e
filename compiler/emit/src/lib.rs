//! IR to StableHLO through MLIR.
