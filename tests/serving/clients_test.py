"""Clients of other vendors, unmodified, against a server process.

Those that are not installed are skipped: docs/serving.md says what to install.
"""

import base64
import io

import jax
import numpy as np
import pytest
from PIL import Image

from gve_jax import GVE
from gve_jax.distributed.sharding import make_mesh
from tests.media.files import clip, numbered
from tests.serving.servers import NAME

TEXTS = ["a red circle moves left", "a blue square", "it leaves"]


@pytest.fixture(scope="module")
def model(tiny_model):
    return GVE.from_pretrained(tiny_model, mesh=make_mesh({"data": 1}, jax.devices()[:1]))


@pytest.fixture(scope="module")
def expected(model):
    return model.encode(TEXTS)


@pytest.fixture(scope="module")
def openai(server):
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def png() -> bytes:
    Image.fromarray(numbered(1)[0]).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}, {"dimensions": 48}])
def test_openai(openai, expected, options):
    answer = openai.embeddings.create(model=NAME, input=TEXTS, **options)
    np.testing.assert_array_equal(np.float32([each.embedding for each in answer.data]), expected)
    assert [each.index for each in answer.data] == [0, 1, 2] and answer.usage.total_tokens > 3
    assert [model.id for model in openai.models.list()] == [NAME]


def test_openai_errors(openai):
    import openai as package

    with pytest.raises(package.NotFoundError, match="served: tiny"):
        openai.embeddings.create(model="text-embedding-3-small", input="a")
    with pytest.raises(package.BadRequestError, match="token ids are refused"):
        openai.embeddings.create(model=NAME, input=[1, 2, 3])
    with pytest.raises(package.BadRequestError, match="was not trained for shorter vectors"):
        openai.embeddings.create(model=NAME, input="a", dimensions=8)


def test_openai_with_messages_of_vllm(openai, model):
    """As vLLM's examples do: the path by `post`, since the SDK's own method has no messages."""
    from openai.types.create_embedding_response import CreateEmbeddingResponse

    content = [
        {"type": "video_url", "video_url": {"url": uri(clip(8), "video/mp4")}},
        {"type": "image_url", "image_url": {"url": uri(png(), "image/png")}},
        {"type": "text", "text": "a red circle"},
    ]
    messages = [{"role": "user", "content": content}]
    body = {"model": NAME, "messages": messages, "encoding_format": "float"}
    answer = openai.post("/embeddings", cast_to=CreateEmbeddingResponse, body=body)
    item = {"video": clip(8), "image": png(), "text": "a red circle"}
    np.testing.assert_array_equal(np.float32(answer.data[0].embedding), model.encode([item])[0])
    batch = body | {"messages": [messages, [{"role": "user", "content": TEXTS[0]}]]}
    answer = openai.post("/embeddings", cast_to=CreateEmbeddingResponse, body=batch)
    np.testing.assert_array_equal(
        np.float32([each.embedding for each in answer.data]), model.encode([item, TEXTS[0]])
    )


def test_cohere(server, model, expected):
    cohere = pytest.importorskip("cohere")
    client = cohere.ClientV2(api_key="none", base_url=server.url)
    answer = client.embed(
        model=NAME,
        input_type="search_document",
        texts=TEXTS,
        embedding_types=["float", "base64", "ubinary"],
    )
    np.testing.assert_array_equal(np.float32(answer.embeddings.float_), expected)
    data = [np.frombuffer(base64.b64decode(each), "<f4") for each in answer.embeddings.base64]
    np.testing.assert_array_equal(data, expected)
    np.testing.assert_array_equal(answer.embeddings.ubinary, np.packbits(expected > 0, axis=1))
    image = {"type": "image_url", "image_url": {"url": uri(png(), "image/png")}}
    answer = client.embed(
        model=NAME,
        input_type="search_document",
        inputs=[{"content": [{"type": "text", "text": "it leaves"}, image]}],
        embedding_types=["float"],
    )
    wanted = model.encode([{"text": "it leaves", "image": png()}])
    np.testing.assert_array_equal(np.float32(answer.embeddings.float_), wanted)
    with pytest.raises(cohere.NotFoundError, match="served: tiny"):
        client.embed(model="embed-v4.0", input_type="search_query", texts=["a"])


def test_voyage(server, model, expected, tmp_path):
    voyageai = pytest.importorskip("voyageai")
    from voyageai.video_utils import Video

    client = voyageai.Client(api_key="none", base_url=f"{server.url}/v1")
    answer = client.multimodal_embed([[text] for text in TEXTS], model=NAME)
    np.testing.assert_array_equal(np.float32(answer.embeddings), expected)
    (tmp_path / "a.mp4").write_bytes(clip(8))
    video = Video.from_path(str(tmp_path / "a.mp4"), model=NAME, optimize=False)
    picture = Image.fromarray(numbered(1)[0])  # sent as lossless WebP
    answer = client.multimodal_embed([["then", picture], [video]], model=NAME)
    wanted = model.encode([{"text": "then", "image": picture}, {"video": clip(8)}])
    np.testing.assert_array_equal(np.float32(answer.embeddings), wanted)
    answer = client.embed(TEXTS, model=NAME, input_type="document")
    np.testing.assert_array_equal(np.float32(answer.embeddings), expected)
    with pytest.raises(voyageai.error.InvalidRequestError, match="ranges"):
        client.multimodal_embed([["a"]], model=NAME, output_dtype="int8")


@pytest.fixture
def tiktoken(monkeypatch):
    """tiktoken downloads its vocabularies: here each byte is a token."""
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {bytes([value]): value for value in range(256)}
    encoding = tiktoken.Encoding("bytes", pat_str=r".", mergeable_ranks=ranks, special_tokens={})
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "cl100k_base", encoding)
    return tiktoken


def test_langchain(server, expected, tiktoken):
    langchain = pytest.importorskip("langchain_openai")
    import openai

    options = {"model": NAME, "base_url": f"{server.url}/v1", "api_key": "none"}
    client = langchain.OpenAIEmbeddings(**options, check_embedding_ctx_length=False)
    np.testing.assert_array_equal(np.float32(client.embed_documents(TEXTS)), expected)
    np.testing.assert_allclose(client.embed_query(TEXTS[0]), expected[0], atol=1e-6)
    by_ids = langchain.OpenAIEmbeddings(**options, max_retries=0)  # sends tiktoken's ids
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        by_ids.embed_documents(TEXTS)


def test_llama_index(server, expected):
    module = pytest.importorskip("llama_index.embeddings.openai")
    client = module.OpenAIEmbedding(
        model_name=NAME, api_base=f"{server.url}/v1", api_key="none", max_retries=0
    )
    np.testing.assert_array_equal(np.float32(client.get_text_embedding_batch(TEXTS)), expected)
    one = np.float32(client.get_query_embedding(TEXTS[0]))
    np.testing.assert_allclose(one, expected[0], atol=1e-6)


def test_mteb(openai, expected, tiktoken):
    pytest.importorskip("mteb", reason="MTEB brings torch: run where `make parity` installs it")
    from mteb.models.model_implementations.openai_models import OpenAIModel

    wrapper = OpenAIModel(NAME, max_tokens=8191, embed_dim=48, client=openai)
    batches = [{"text": TEXTS[:2]}, {"text": [TEXTS[2], " "]}]
    found = wrapper.encode(batches, task_metadata=None, hf_split="test", hf_subset="default")
    np.testing.assert_array_equal(found, [*expected, np.zeros(48)])


def test_tei(server, expected):
    status, answer, _ = server.post("/embed", {"inputs": TEXTS, "truncate": True})
    assert status == 200
    np.testing.assert_array_equal(np.float32(answer), expected)
    assert server.get("/info")[1]["max_input_length"] == 8192
    assert server.get("/health")[0] == 200
