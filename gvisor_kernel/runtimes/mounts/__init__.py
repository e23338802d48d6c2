"""The files of the host that a sandbox is shown."""
