"""The life of one kernel: its plan, its session, and the snapshots that it starts from."""
