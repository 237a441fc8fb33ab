"""UVRB's sets as TFDS datasets, read by the evaluator's own readers.

    python -m data.uvrb --data DIR --output DIR [--datasets MSRVTT,...] [--by-reference]

builder.py defines the records and writes sets of any size; its `read` reads them.
"""
