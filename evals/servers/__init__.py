"""Embedders behind a server as encoders of `evals.uvrb`: their APIs, the client, the encoder."""
