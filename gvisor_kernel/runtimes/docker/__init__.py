"""Sandboxes by a Docker engine."""
