"""Hard negatives for training pairs: world.py reads what asks and what may be found, search.py
finds the best documents of each query and keeps them, write.py chooses and writes pairs."""
