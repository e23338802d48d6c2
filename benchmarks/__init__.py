"""Compare the speed of sandboxed kernels with local ones and peers: ``python -m benchmarks``.

``variants`` defines what is compared, ``figures`` what is measured, ``schedule`` the order. Each
kind of variant has a separate process (``worker``), which for an ordinary user's variants runs as
that user. One process asks them in turn (``workers``), so all are measured interleaved, in one run.
"""
