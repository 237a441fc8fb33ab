"""Hard negatives for training pairs: corpus.py reads the distinct queries and documents, search.py
finds and stores the best documents of each query, write.py selects negatives and writes pairs."""
