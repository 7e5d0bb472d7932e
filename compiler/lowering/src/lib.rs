//! ATen to IR: one table row and one function per ATen target.
