"""Snapshots of live, idle kernels: which one fits a start, what it depends on, where it is stored.

A runtime makes and restores a snapshot. This package decides whether one may be used, and starts
no sandbox.
"""
