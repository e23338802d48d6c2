"""What Jupyter calls: the provisioner, the launcher for front ends without one, kernelspecs."""
