"""Specifications made from settings and facts: pure functions, no sandbox."""
