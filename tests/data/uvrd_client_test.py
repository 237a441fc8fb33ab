"""The client and a server with faults: reasons, retries, deadlines, the cache."""

import asyncio
import threading
import time

import pytest

from configs.uvrd import get_config
from data.shapes.render import decode_mp4, encode_png
from data.uvrd import prompts
from data.uvrd.client import ModelClient, parse
from data.uvrd.compose import fault
from data.uvrd.responder import MODEL, Responder
from data.uvrd.settings import Settings
from gve_jax.errors import UserError
from gve_jax.streams.rows import Reject

PROMPT = prompts.load("video_captions")


def settings(**fields) -> Settings:
    config = get_config("world")
    config.calls.seconds = 60.0  # for a busy machine
    config.calls.most_failures = 1.0
    config.update_from_flattened_dict({name.replace("__", "."): v for name, v in fields.items()})
    return Settings.of(config)


_TEXTS = ("summary", "spatio_temporal", "abstract", "partial")
SLOTS = dict.fromkeys(("images", "seconds", "keywords", *_TEXTS), "1")
SLOTS |= {"readability": "plain", "education": "none", "emphasis": "mostly what", "caption": '""'}


@pytest.fixture(scope="module")
def shown(raw) -> list[bytes]:
    frames = decode_mp4((raw / "videos" / "00000.mp4").read_bytes())
    return [encode_png(frame) for frame in frames[::5]]


def ask(raw, cache, images, *, faults=(), count=1, **fields):
    """Results of `count` calls, the client, the server and the pauses; `faults` by call."""
    pauses, checked = [], settings(**fields)

    async def sleep(seconds):
        pauses.append(seconds)

    def why_invalid(value):
        return fault(PROMPT.name, value, checked)

    async def run(url):
        async with ModelClient(url, MODEL, checked, cache, sleep) as client:
            slots = [SLOTS | {"seconds": n} for n in range(count)]
            calls = [client.ask(PROMPT, each, images, why_invalid) for each in slots]
            return await asyncio.gather(*calls, return_exceptions=True), client

    by_call = dict(enumerate(faults))
    with Responder(raw, fault=lambda number: by_call.get(number, "")) as responder:
        results, client = asyncio.run(run(responder.url))
    return results, client, responder, pauses


def test_valid_answer_is_cached_and_counted(raw, tmp_path, shown):
    (first,), client, responder, _ = ask(raw, tmp_path, shown)
    assert set(first.value) == set(PROMPT.schema["required"])
    assert (client.usage.calls, client.usage.cached, client.usage.attempts) == (1, 0, 1)
    assert client.usage.prompt_tokens == 1000 and client.usage.cost(2.0, 0.0) == 0.002
    (again,), client, responder, _ = ask(raw, tmp_path, shown)
    assert again == first and responder.requests == []
    assert (client.usage.calls, client.usage.cached) == (0, 1) and not client.usage.prompt_tokens
    # Another sampling or image is another request.
    for images, more in ((shown, {"server__temperature": 0.1}), (shown[:2], {})):
        _, _, responder, _ = ask(raw, tmp_path, images, **more)
        assert len(responder.requests) == 1


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("prose", "answer: prose"),
        ("echo", "answer: prose"),
        ("half", "answer: half JSON"),
        ("refusal", "answer: refusal"),
        ("schema", "answer: another schema"),
        ("language", "answer: another language"),
    ],
)
def test_invalid_answer_is_retried_then_rejected(raw, tmp_path, shown, kind, reason):
    lengths = {"lengths__keywords": (1, 30)}  # the language fault has one
    (good,), client, _, _ = ask(raw, tmp_path / "a", shown, faults=[kind, kind], **lengths)
    assert good.tries == 3 and client.faults == {reason: 2}
    (bad,), client, responder, _ = ask(raw, tmp_path / "b", shown, faults=[kind] * 3, **lengths)
    assert isinstance(bad, Reject) and bad.reason == reason
    assert [body["seed"] for body in responder.requests] == [0, 1, 2]
    # Rejected answers are cached as well.
    (bad,), _, responder, _ = ask(raw, tmp_path / "b", shown, **lengths)
    assert bad.reason == reason and responder.requests == []


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("down", "no connection"),
        ("slow", "no answer in time"),
        ("error", "status 500"),
        ("busy", "status 429"),
        ("malformed", "malformed response"),
    ],
)
def test_failed_call_is_retried_with_backoff(raw, tmp_path, shown, kind, why):
    # A deadline that the third call, which is answered at once, does not reach.
    patience = {"calls__seconds": 2.5} if kind == "slow" else {}
    (good,), client, _, pauses = ask(raw, tmp_path, shown, faults=[kind, kind], **patience)
    assert good.tries == 1 and client.usage.attempts == 3
    assert client.faults == {f"call: {why}": 2}
    if kind == "busy":  # Retry-After
        assert pauses == [3.0, 3.0]
    else:  # doubled, minus up to half of it
        assert 0.5 <= pauses[0] <= 1.0 <= pauses[1] <= 2.0
    faults = ["error"] * 2
    (bad,), client, responder, _ = ask(raw, tmp_path / "x", shown, faults=faults, calls__attempts=2)
    assert isinstance(bad, Reject) and bad.reason == "server: status 500"
    # Failed calls are not cached.
    (good,), _, _, _ = ask(raw, tmp_path / "x", shown)
    assert good.tries == 1


def test_response_size_is_limited(raw, tmp_path, shown):
    (bad,), client, _, _ = ask(raw, tmp_path, shown, faults=["huge"], calls__attempts=1)
    assert isinstance(bad, Reject) and "above" in bad.reason


def test_too_many_failures_or_a_refusal_stop_the_run(raw, tmp_path, shown):
    results, client, responder, _ = ask(
        raw,
        tmp_path,
        shown,
        faults=["error"] * 60,
        count=30,
        calls__attempts=2,
        calls__most_failures=0.1,
    )
    assert any(isinstance(one, UserError) and "calls failed" in str(one) for one in results)
    assert len(responder.requests) < 60  # the other calls stopped
    (denied,), _, _, _ = ask(raw, tmp_path, shown, faults=["denied"])
    assert isinstance(denied, UserError) and "401" in str(denied) and "no key" in str(denied)


def test_missing_server_or_model_is_one_line(raw, tmp_path):
    async def check(url, model):
        async with ModelClient(url, model, settings(), tmp_path) as client:
            await client.check()

    with Responder(raw) as responder:
        asyncio.run(check(responder.url, MODEL))
        with pytest.raises(UserError, match="--model 'gpt' is not on .* it has shapes"):
            asyncio.run(check(responder.url, "gpt"))
        with pytest.raises(UserError, match="without a list of models"):
            asyncio.run(check(responder.url + "/v2", MODEL))
    with pytest.raises(UserError, match="no answer"):
        asyncio.run(check(responder.url, MODEL))  # closed
    with pytest.raises(UserError, match="must be an http"):
        ModelClient("file:///etc/passwd", MODEL, settings(), tmp_path)


def test_concurrency_is_limited(raw, tmp_path, shown):
    at_once, most, lock = 0, 0, threading.Lock()

    def slowly(number):
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.05)
        with lock:
            at_once -= 1
        return ""

    async def run(url):
        async with ModelClient(url, MODEL, settings(calls__concurrency=3), tmp_path) as client:
            await asyncio.gather(
                *(client.ask(PROMPT, SLOTS | {"seconds": n}, shown) for n in range(9))
            )

    with Responder(raw, fault=slowly) as responder:
        asyncio.run(run(responder.url))
    assert most == 3


def test_api_key_is_sent_and_not_cached(raw, tmp_path, shown, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    _, _, responder, _ = ask(raw, tmp_path / "none", shown)
    assert responder.authorizations == {None}
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    _, _, responder, _ = ask(raw, tmp_path / "key", shown)
    assert responder.authorizations == {"Bearer sk-secret"}
    cached = b"".join(path.read_bytes() for path in tmp_path.rglob("*.json"))
    assert cached and b"sk-secret" not in cached


@pytest.mark.parametrize(
    "said",
    ['{"query": "q"}', '```json\n{"query": "q"}\n```', '<think>hm {</think>\n {"query": "q"} '],
)
def test_fences_and_reasoning_are_removed(said):
    assert parse(said, "stop", prompts.load("image_query")) == {"query": "q"}


@pytest.mark.parametrize(
    "said",
    ["", "null", "[1]", "9" * 5000, "[" * 100_000]
    + ['{"query": 1}', '{"query": "a", "more": 1}', '{"query": ""}'],
)
def test_other_answers_are_rejected(said):
    with pytest.raises(Reject):
        parse(said, "stop", prompts.load("image_query"))


def test_captions_of_the_wrong_length_are_rejected():
    value = dict.fromkeys(_TEXTS, "a red ball rolls") | {"keywords": ["ball"]}
    strict = Settings.of(get_config())
    assert fault("video_captions", value, strict) == "length of summary: 4, not 10 to 25"
    value["summary"] = "a red ball rolls over the green"  # 7 words: within the slack of a quarter
    value["summary"] += " hill"
    assert fault("video_captions", value, strict).startswith("length of spatio_temporal")
