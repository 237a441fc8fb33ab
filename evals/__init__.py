"""What is measured: `evals.uvrb` scores embedders on UVRB."""
