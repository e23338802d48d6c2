"""Real notebooks, local and in a sandbox: ``python -m benchmarks.notebooks FOLDER…``.

``cells`` reads them, ``execution`` runs them in a worker's process, ``runs`` has the order and what
is counted, ``tables`` the text. ``own`` has twenty of ours, for which ``data`` makes files; those
are a figure of ``python -m benchmarks``, too.
"""
