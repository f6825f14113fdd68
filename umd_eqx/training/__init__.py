"""The training step and loop, optimisers, checkpoints, and the cost of a step."""
