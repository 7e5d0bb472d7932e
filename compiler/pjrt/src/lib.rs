//! The PJRT C API: plugins, clients, buffers, executables.
