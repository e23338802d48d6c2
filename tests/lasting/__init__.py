"""Kernels that hibernate, branch and go back, in any state and at any moment."""
