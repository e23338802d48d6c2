"""Environments: Python packages that were installed in a sandbox, for the kernels of a kernelspec.

What is in one is a stranger's code. Nothing here imports or runs it.
"""
