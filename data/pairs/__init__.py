"""Importers of other toolkits' training rows: any of them -> ArrayRecord pairs, one split a source.

    python -m data.pairs import --format swift --input T2V_mine=rows.jsonl --output DIR
    python -m data.pairs show DIR
    python -m data.pairs check DIR --batch-size 64

rows.py reads files row by row, formats.py knows what a row of each format says, media.py finds the
media it names, reader.py looks at their headers, importer.py turns a row into stored pairs or a
reject, builder.py writes them (beam.py by Apache Beam), card.py says what came of it. See
docs/pairs.md.
"""
