"""Sandboxes by the runsc of this host."""
