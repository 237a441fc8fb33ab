"""Media that a request refers to: bytes of `data:` and `http(s):` URIs, paths of `file:` URIs."""

import os
import stat
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from gve_jax.errors import UserError
from gve_jax.inputs.media_values import as_medium
from gve_jax.media.dataset_paths import inside
from gve_jax.serving.errors import bad_request
from gve_jax.serving.fetch import Fetcher, schemes
from gve_jax.serving.requests import Reference

_FRAMES = "data:video/jpeg;base64,"  # vLLM's form of frames, separated by commas


class Resolver:
    """Reads what references refer to.

    Args:
      media_root: folder of `file:` URIs; None refuses them.
      fetcher: of `http(s):` URIs; None refuses them.
      most_frames: of a video that is given as frames.
    """

    def __init__(self, media_root: Path | None, fetcher: Fetcher | None, most_frames: int):
        self._root, self.fetcher, self._most_frames = media_root, fetcher, most_frames

    def is_remote(self, reference: Reference) -> bool:
        """Whether resolving downloads something."""
        scheme = _scheme(reference.uri)
        return self.fetcher is not None and scheme in ("http", "https")

    def resolve(self, reference: Reference) -> Any:
        """Bytes, a list of frames or a path, as `Item` takes them.

        Raises:
          RequestError: a URI that is malformed or not allowed, or cannot be downloaded.
        """
        uri, where = reference.uri, reference.where
        scheme = _scheme(uri)
        try:
            if scheme == "data":
                return self._from_data(f"data:{uri[5:]}", reference)
            if scheme == "file" and self._root is not None:
                return self._from_file(uri, where)
            if self.is_remote(reference):
                return self.fetcher.fetch(uri)
        except UserError as error:
            raise bad_request(f"{where}: {error}", where) from None
        known = ", ".join(schemes(self.fetcher is not None, self._root is not None))
        raise bad_request(
            f"{where}: {reference.kind} is {uri[:40]!r}; this server accepts URIs of {known}", where
        )

    def _from_data(self, uri: str, reference: Reference) -> bytes | list[bytes]:
        if reference.kind == "video" and uri[: len(_FRAMES)].lower() == _FRAMES:
            count = uri.count(",", len(_FRAMES)) + 1
            if count > self._most_frames:
                raise UserError(
                    f"a video of {count:,} frames; at most {self._most_frames} are accepted"
                )
            frames = uri[len(_FRAMES) :].split(",")
            return [as_medium(f"data:;base64,{frame}", "video") for frame in frames]
        return as_medium(uri, reference.kind)

    def _from_file(self, uri: str, where: str) -> Path:
        path = uri[5:]
        if path.startswith("//"):
            host, _, path = path[2:].partition("/")
            if host not in ("", "localhost"):
                raise UserError("a file: URI must be file:///PATH, below the server's --media-root")
            path = f"/{path}"
        try:
            path = unquote(path, errors="strict")
        except UnicodeDecodeError:
            raise UserError("the path of a file: URI is not UTF-8") from None
        try:
            real = inside(self._root, path, "the path")
        except UserError:  # its message names the root
            raise UserError(f"{path[:200]!r} is not a path below the server's media root") from None
        try:
            mode = os.stat(real).st_mode
        except OSError:
            raise bad_request(f"{where}: no such file: {path[:200]!r}", where) from None
        if not stat.S_ISREG(mode):  # a pipe would wait for ever
            raise UserError(f"{path[:200]!r} is not a file")
        return real


def _scheme(uri: str) -> str:
    return uri[:8].partition(":")[0].lower()
