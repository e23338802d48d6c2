"""What a kernel has changed in /workspace, against the folder on disk, and applying it to that."""
