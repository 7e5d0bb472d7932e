//! Joins import, lowering, passes, emission and PJRT.
