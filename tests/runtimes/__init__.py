"""Sandboxes of each runtime, real ones, without kernel or bridge: a stand-in is PID 1."""
