"""One kernel's life: its plan, its session, snapshots that it starts from."""
