"""Real sandboxes of each runtime, without kernel and bridge: a stand-in runs as PID 1."""
