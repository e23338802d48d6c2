"""Copies of files into sandboxes and out of them, where nothing of this machine is mounted."""
