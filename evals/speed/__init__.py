"""Benchmarks beside the best known other way, outputs compared before times."""
