"""Whether synthesized pairs help: training with and without them, on the generated world."""
