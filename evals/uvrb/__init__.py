"""UVRB, the Universal Video Retrieval Benchmark (arXiv 2510.27571): sixteen sets, one command.

`python -m evals.uvrb --model M --data DIR --output DIR`
"""
