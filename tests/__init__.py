"""The tests. ``leaks`` and ``world`` serve all of them; the rest is one folder for each part."""
