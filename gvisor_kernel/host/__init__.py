"""Access to this machine: files, mounts, processes, cgroups. Nothing here knows about kernels."""
