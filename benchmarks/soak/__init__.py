"""A soak test: many starts, cells, floods and kills in one process, and a check for leaks."""
