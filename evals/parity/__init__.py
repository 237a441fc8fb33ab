"""Compares inputs and encoder with the references: see `python -m evals.parity --help`."""
