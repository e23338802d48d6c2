"""Archives that strangers made: read within bounds, written to a tree and nowhere else."""
