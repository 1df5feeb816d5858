"""Training: optimizer, schedule, loop, checkpoints and logs."""
