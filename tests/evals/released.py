"""The miniature benchmark in archives as released, and hostile archives."""

import io
import os
import tarfile
from pathlib import Path


def pack(root: Path, folder: Path, parts: int = 3, prefix: str = "UVRB/") -> list[Path]:
    """Tars the set in `root` and splits it: `folder`/NAME.tar.gz.part00, ..."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(root, arcname=f"{prefix}{root.name}")
    return split(buffer.getvalue(), folder, root.name, parts)


def split(data: bytes, folder: Path, name: str, parts: int = 3) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(data) // parts)
    paths = [folder / f"{name}.tar.gz.part{number:02}" for number in range(parts)]
    for number, path in enumerate(paths):
        path.write_bytes(data[number * size : (number + 1) * size])
    return paths


def hostile(*members: tuple[str, bytes, str]) -> bytes:
    """An archive of (name, content or link target, type of tarfile)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(content)
            else:
                info.linkname = os.fsdecode(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
