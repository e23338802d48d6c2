"""Many links to one bridge, without sandboxes: what a kernel costs its server.

Three processes: ``bridge`` has the project's bridge with N kernels, ``guests`` is the other end of
their links and answers as a kernel would, ``__main__`` is the clients, and measures ``bridge``.
"""
