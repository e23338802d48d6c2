"""A Jupyter server with less to lose: sandboxes alone, one folder, a list of routes."""
