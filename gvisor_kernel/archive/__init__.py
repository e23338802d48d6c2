"""Untrusted archives: tar is parsed within bounds and unpacked inside one directory."""
