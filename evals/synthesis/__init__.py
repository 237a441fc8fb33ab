"""Training with and without synthesized pairs, on the generated world."""
