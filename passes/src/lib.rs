//! Passes over the IR and the manager that runs them.
