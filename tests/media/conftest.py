import pytest

from gve_jax.inputs.prompt import Prompt
from tests.media.files import small_tokenizer


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    small_tokenizer().save(str(path))
    return path


@pytest.fixture(scope="session")
def prompt(tokenizer_file) -> Prompt:
    return Prompt(tokenizer_file, max_length=512)
