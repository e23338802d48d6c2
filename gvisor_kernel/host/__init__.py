"""This machine: files by descriptor, mounts by system call. Nothing here knows what a kernel is."""
