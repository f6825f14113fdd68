"""A training step, the loop around it, optimisers, checkpoints, and what a step costs."""
