"""Chat content as items: what an item can hold is read, all else is refused by name."""

import base64
import warnings

import numpy as np
import pytest

from gve_jax.errors import UserError
from gve_jax.inputs.messages import is_message, is_part, read_content, read_conversation
from tests.situations import situation

TEXT = {"type": "text", "text": "a cat"}
IMAGE = {"type": "image", "image": "cat.png"}
VIDEO = {"type": "video", "video": "cat.mp4"}


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@situation(
    "Python API",
    "chat messages as transformers and qwen-vl-utils take them, as an input",
    "the system message is the instruction, the user's parts are video, image and text",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "messages, fields",
    [
        ([{"role": "user", "content": "a cat"}], {"text": "a cat"}),
        (
            [{"role": "user", "content": [VIDEO, IMAGE, TEXT]}],
            {"video": "cat.mp4", "image": "cat.png", "text": "a cat"},
        ),
        (
            [{"role": "system", "content": "Find it."}, {"role": "user", "content": [TEXT]}],
            {"instruction": "Find it.", "text": "a cat"},
        ),
        (
            [
                {"role": "system", "content": [{"type": "text", "text": "Find "}, "it."]},
                {"role": "user", "content": [VIDEO]},
            ],
            {"instruction": "Find it.", "video": "cat.mp4"},
        ),
    ],
)
def test_conversations(messages, fields):
    assert all(map(is_message, messages))
    assert read_conversation(messages) == fields


@pytest.mark.parametrize(
    "part, fields",
    [
        (
            VIDEO | {"fps": 2.0, "max_frames": 8, "nframes": None},
            {"video": "cat.mp4", "fps": 2.0, "max_frames": 8},
        ),
        (
            VIDEO | {"nframes": 4, "video_start": 1, "video_end": 2.5, "max_pixels": 9_000},
            {
                "video": "cat.mp4",
                "num_frames": 4,
                "video_start": 1,
                "video_end": 2.5,
                "max_pixels": 9_000,
            },
        ),
        ({"type": "video", "path": "cat.mp4"}, {"video": "cat.mp4"}),
        (
            {"type": "video", "video": ["1.png", "file:///2%20.png"]},
            {"video": ["1.png", "/2 .png"]},
        ),
        ({"type": "video_url", "video_url": {"url": "file:///cat.mp4"}}, {"video": "/cat.mp4"}),
        ({"type": "image", "url": "file:///a/cat.png"}, {"image": "/a/cat.png"}),
        ({"type": "image", "base64": "YWJj"}, {"image": b"abc"}),
        ({"type": "image", "image": "data:image;base64,YWJj"}, {"image": b"abc"}),
        ({"type": "image_url", "image_url": "data:image/png;base64,YWJj"}, {"image": b"abc"}),
        (TEXT, {"text": "a cat"}),
    ],
)
def test_parts(part, fields):
    assert is_part(part)
    assert read_content([part]) == read_content(part) == fields


def test_frames_may_carry_their_rate():
    frames = np.zeros((4, 2, 2, 3), np.uint8)
    part = {"type": "video", "video": {"array": frames, "video_metadata": {"fps": 12.0}}}
    fields = read_content([part])
    assert fields["video"] is frames and fields["fps"] == 12.0


def test_texts_side_by_side_are_one_as_in_the_template():
    assert read_content([TEXT, " and", {"type": "text", "text": " a dog"}]) == {
        "text": "a cat and a dog"
    }


@situation(
    "Python API",
    "chat content in another order: text before image, image before video",
    "embedded in the order in which GVE was trained (video, image, text), with a warning",
    since="0.2.0",
)
@pytest.mark.parametrize("parts", [[TEXT, IMAGE], [IMAGE, VIDEO], [TEXT, IMAGE, VIDEO]])
def test_another_order_is_warned_of(parts):
    with pytest.warns(UserWarning, match="order video, image, text.* not as given: ") as found:
        fields = read_content(parts)
    assert len(found) == 1 and fields == {k: v for p in parts for k, v in p.items() if k != "type"}


@situation(
    "Python API",
    "chat content that an input cannot have: two images, an assistant's turn, audio, a URL",
    "refused by name, with the way around it",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "content, named",
    [
        ([IMAGE, IMAGE], "two images: pass several images as a video"),
        ([VIDEO, VIDEO], "two videos: embed each"),
        ([TEXT, IMAGE, TEXT], "two texts: texts must be adjacent"),
        ([{"type": "audio", "audio": "a.wav"}], "of type 'audio'.*audio cannot be embedded"),
        ([{"type": "input_audio", "input_audio": {}}], "of type 'input_audio'.*audio cannot"),
        ([{"type": 3}], "of type 3"),
        ([{"type": ["image"]}], "of type"),
        ([{"image": "cat.png"}], r"with a 'type', not one of \['image'\]"),
        ([7], "with a 'type'"),
        (7, "must be a text or a list of parts, not int"),
        ([{"type": "image"}], "must have one of: image, path, url"),
        ([{"type": "image", "image": ""}], "is empty"),
        ([{"type": "image", "image": "a", "path": "b"}], "must have one of"),
        ([TEXT | {"fps": 1.0}], "unknown key 'fps' in a part of type 'text'"),
        ([VIDEO | {"max_tokens": 9}], "unknown key 'max_tokens'.*known: .*max_pixels"),
        ([{"type": "text", "text": 7}], "must be a text, not int"),
        ([{"type": "image", "image": "https://a.b/cat.png"}], "is a URL: download it"),
        ([{"type": "video", "video": "gs://a/cat.mp4"}], "is a URL: download it"),
        ([{"type": "image", "image": "data:image/png,abc"}], "must be base64"),
        ([{"type": "image", "image": "data:image/png;base64,?"}], "must be base64"),
        ([{"type": "video", "video": {"frames": 3}}], "as a mapping must be"),
        ([VIDEO | {"max_pixels": 9}, IMAGE | {"max_pixels": 8}], "different max_pixels"),
    ],
)
def test_content_that_no_item_has_is_refused(content, named):
    with pytest.raises(UserError, match=named):
        read_content(content)


@pytest.mark.parametrize(
    "roles, named",
    [
        (["assistant"], "role 'assistant'"),
        (["user", "assistant"], "role 'assistant'"),
        (["user", "user"], "another user message"),
        (["system"], "no user message"),
        (["user", "system"], "another system message"),
        (["system", "system", "user"], "another system message"),
        (["tool"], "role 'tool'"),
    ],
)
def test_turns_that_no_item_has_are_refused(roles, named):
    with pytest.raises(UserError, match=named):
        read_conversation([{"role": role, "content": "a cat"} for role in roles])


def test_odd_messages_are_refused():
    with pytest.raises(UserError, match="unknown key 'name'"):
        read_conversation([{"role": "user", "content": "a", "name": "b"}])
    with pytest.raises(UserError, match="a system message must contain texts only"):
        read_conversation([{"role": "system", "content": [IMAGE]}])
    long = base64.b64encode(bytes(range(256))).decode()
    assert read_content([{"type": "image", "base64": long}]) == {"image": bytes(range(256))}
