"""The parts that Jupyter uses: the provisioner, the launcher for other front ends, kernelspecs."""
