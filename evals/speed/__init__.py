"""Benchmarks that compare with the best alternative; outputs are compared before times."""
