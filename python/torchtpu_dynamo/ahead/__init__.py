"""Compiling ahead: a module to an artifact (`build`), and an artifact to numbers (`artifact`), which needs no torch."""
