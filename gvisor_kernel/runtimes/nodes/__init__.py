"""Kernels on other machines: the host's part. The nodes' part is in ``gvisor_kernel/node``."""
