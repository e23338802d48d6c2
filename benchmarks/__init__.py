"""How fast a sandboxed kernel is, beside a local one and beside others': ``python -m benchmarks``.

``variants`` says what is compared, ``figures`` what is measured, ``schedule`` in which order. Each
kind of variant has a process of its own (``worker``), another user's under that user's name, and
one process asks them in turn (``workers``); so all are measured interleaved, in one run.
"""
