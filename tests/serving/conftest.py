"""One server process for all files of a worker: starting it takes longer than most tests."""

import pytest

from tests.serving.servers import in_process, write_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="session")
def server(tiny_model):
    """Serves `tiny_model`; file: URIs are allowed below its folder's `media`."""
    media = tiny_model.parent / "media"
    media.mkdir()
    options = ("--media-root", str(media), "--allow-urls", "--limits.seconds", "300")
    with in_process(tiny_model, *options) as live:
        live.media = media
        yield live
