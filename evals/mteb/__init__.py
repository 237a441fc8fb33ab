"""MTEB and this library: GVE models as MTEB encoders, UVRB's sets as MTEB tasks.

    python -m evals.mteb --model M --data DIR --output DIR [--datasets MSRVTT,...]

MTEB brings torch, so it is an extra (`pip install -e '.[mteb]'`), and only
`encoder.py` and `tasks.py` import it.
"""
