"""Entries that are not compared element by element as they are, each with the cause.

Nothing here loosens a tolerance: what takes the results' place is compared like all others."""

from __future__ import annotations

VECTORS = (
    "A singular vector or an eigenvector is defined up to a sign, a complex one up to a phase, and the algorithms "
    "differ in them. OpInfo's own function of the results, which is free of it, is compared: magnitudes, `U Vh`."
)

PROCESSED = dict.fromkeys(("svd", "linalg.svd", "linalg.eigh", "linalg.eig"), VECTORS)
"""Compared after the sample's `output_process_fn_grad`."""
