"""The SLURM scripts under a real SLURM: its daemons on this machine, two of them playing two nodes."""
