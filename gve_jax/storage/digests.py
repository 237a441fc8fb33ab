"""SHA-256 digests of files and JSON values, as manifests and caches record them."""

import hashlib
import json
import os


def file_sha256(path: str | os.PathLike) -> str:
    """Reads the file in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_sha256(value: object, *, sort_keys: bool = False) -> str:
    """Digest of `json.dumps(value)`; stored digests depend on whether the keys are sorted."""
    return hashlib.sha256(json.dumps(value, sort_keys=sort_keys).encode()).hexdigest()
