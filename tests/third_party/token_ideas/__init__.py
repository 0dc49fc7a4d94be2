"""Token-level ideas of somebody else."""
