"""What a sandbox is shown of the host."""
