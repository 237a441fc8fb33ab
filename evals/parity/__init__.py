"""The encoder beside transformers' Qwen2.5-VL, live: see `python -m evals.parity --help`."""
