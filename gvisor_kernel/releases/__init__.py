"""Releases of runsc beside the system's: which are installed and chosen, and where they come from.

Nothing here starts a sandbox, and only ``bucket`` uses the network.
"""
