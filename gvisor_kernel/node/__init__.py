"""The part of this package that runs on a node: one process owns one sandbox, and removes it."""
