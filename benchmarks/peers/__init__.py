"""What the kernels of others need: a Docker engine that is up, and an image made on this host."""
