"""Sandboxes for programs: run code, exchange files, keep sandboxes ready. No Jupyter needed."""
