"""Torch only: the training loop, its hooks, checkpoints, schedules and processes.  Knows no detector."""
