"""Changes of a kernel in /workspace, against the folder on disk, and applying them to that."""
