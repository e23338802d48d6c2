"""PID 1 of a sandbox, and the adapters that run in the kernel process.

Imports only ``link`` and the standard library, and pyzmq late, in kernel processes. Runs on Python
3.9 and newer, because the interpreter is that of the root image. The host trusts nothing here: a
kernel may end PID 1, but only PID 1 holds the link.
"""
