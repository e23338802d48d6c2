"""Raises what a module may raise."""

raise ZeroDivisionError("a stranger's mistake")
