"""Counts the empty chunks at the end of an AVI file, which FFmpeg does not report."""


def chunks(file, stream: int, limit: int) -> int:
    """Number of chunks of a stream in the index of an AVI, including empty ones, which repeat the
    previous frame. 0 without an index, or if the number of its non-empty chunks is not `limit`.

    The position of `file` is restored.
    """
    offset = file.tell()
    try:
        index = _old_index(file)
    finally:
        file.seek(offset)
    number = b"%02d" % stream
    sizes = [
        int.from_bytes(index[at + 12 : at + 16], "little")
        for at in range(0, len(index) - 15, 16)
        if index[at : at + 2] == number and index[at + 2 : at + 4] in (b"dc", b"db")
    ]
    return len(sizes) if sum(size > 0 for size in sizes) == limit else 0


def _old_index(file) -> bytes:
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"AVI ":
        return b""
    at = 12
    while at + 8 <= size:
        file.seek(at)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] == b"idx1":
            return file.read(length) if at + 8 + length <= size else b""
        at += 8 + length + length % 2
    return b""
