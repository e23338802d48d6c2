"""JupyterLab in a real browser: what a person sees when a kernel runs in a sandbox."""
