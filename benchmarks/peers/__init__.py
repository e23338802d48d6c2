"""Peers' kernels: they need a running Docker engine, and an image made from this host."""
