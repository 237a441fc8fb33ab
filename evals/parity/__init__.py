"""Inputs and encoder beside the references, live: see `python -m evals.parity --help`."""
