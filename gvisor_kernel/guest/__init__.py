"""What runs inside a sandbox: PID 1. Imports ``link``, the standard library, and pyzmq late.

Python 3.9 and newer, since the interpreter is that of the image. Nothing here is trusted by the
host: a kernel can end PID 1, but PID 1 is the only process that holds the link.
"""
