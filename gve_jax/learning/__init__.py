"""What a step learns and what is kept of it: loss, optimizer, curriculum, checkpoints, metrics."""
