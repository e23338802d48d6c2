"""Kernels driven through Jupyter's own front ends and clients."""
