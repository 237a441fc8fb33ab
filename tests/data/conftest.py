"""Raw videos of the generated world, for the tests of data.uvrd."""

import pytest

from data.uvrd import world


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    """26 videos, every second one bad: once in each way."""
    folder = tmp_path_factory.mktemp("uvrd") / "raw"
    world.write(folder, videos=26, seed=3, bad=0.5)
    return folder
