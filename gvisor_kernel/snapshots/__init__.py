"""Images of live, idle kernels: which one fits a start, what it depends on, where they are kept.

An image is made and restored by a runtime. Here is decided whether it may be; nothing in this
package starts a sandbox.
"""
