"""Counts the empty chunks at the end of an AVI file, which FFmpeg does not report."""


def chunks(file, stream: int, limit: int) -> int:
    """How many chunks the index of an AVI names for a stream, those at the end included that are
    empty: the frame before is shown on. 0 where there is no index, or where it does not name
    `limit` chunks that hold something.

    `file` is left where it was.
    """
    place = file.tell()
    try:
        index = _old_index(file)
    finally:
        file.seek(place)
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
