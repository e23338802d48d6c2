"""The runtime ``docker``: sandboxes in a Docker engine that has gVisor."""
