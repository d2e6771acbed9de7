"""The loop, the run directory, checkpoints and random streams."""
