"""Kernels as pods of a Kubernetes cluster: the host's part. PID 1's is ``guest/pod.py``."""
