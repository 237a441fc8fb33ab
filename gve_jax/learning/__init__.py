"""What a training step learns: loss, optimizer, state, curriculum."""
