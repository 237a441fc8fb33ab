"""Search over long generated films: recall of moments and its cost, and shot cuts."""
