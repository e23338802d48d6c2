"""How fast a sandboxed kernel is, beside a local one: ``python -m benchmarks``."""
