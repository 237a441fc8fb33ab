"""file: URIs stay below the root."""

import os

import pytest

from gve_jax.serving.errors import RequestError
from gve_jax.serving.media import Resolver
from gve_jax.serving.requests import Reference


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a b.mp4").write_bytes(b"v")
    (tmp_path / "secret.mp4").write_bytes(b"s")
    (root / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (root / "inner.mp4").symlink_to(root / "sub" / "a b.mp4")
    os.mkfifo(root / "pipe.mp4")
    return root


def resolve(root, uri):
    return Resolver(root, None, 8).resolve(Reference(uri, "video", "input 0"))


def test_files_below_the_root(root):
    real = root / "sub" / "a b.mp4"
    for uri in (f"file://{real}", f"file://localhost{root}/sub/a%20b.mp4", f"FILE:{real}"):
        assert resolve(root, uri) == real
    assert resolve(root, f"file://{root}/inner.mp4") == real


@pytest.mark.parametrize(
    "path",
    """/../secret.mp4 /%2e%2e/secret.mp4 /sub/../../secret.mp4 /link.mp4 /pipe.mp4 /sub /missing.mp4
    /sub/a%00b.mp4 /%ff.mp4 /../root/../../../etc/passwd""".split(),
)
def test_other_paths_are_refused(root, path):
    with pytest.raises(RequestError) as error:
        resolve(root, f"file://{root}{path}")
    assert error.value.status == 400


@pytest.mark.parametrize(
    "uri",
    ["file:///etc/passwd", "file://host/etc/passwd", "file:", "file:///", "file:////proc/self/mem"]
    + ["file:///dev/zero", "file:///" + "a" * 100_000, "gopher://x", "javascript:1", "a.mp4", "//"],
)
def test_other_uris_are_refused(root, uri):
    with pytest.raises(RequestError) as error:
        resolve(root, uri)
    assert error.value.status == 400 and len(error.value.message) < 1000
