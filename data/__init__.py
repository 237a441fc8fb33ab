"""Datasets: TFDS builders and makers of pairs. They may import `gve_jax`; it never imports them."""
