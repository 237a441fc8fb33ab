"""Files that were cut off are refused wherever their header, or their last page, tells."""

import struct

import pytest

from gve_jax.media.errors import MediaError
from gve_jax.media.video import load_video
from tests.media.files import clip, encode, numbered, numbers
from tests.situations import situation


def cuts(data: bytes):
    return [data[:end] for end in range(100, len(data), len(data) // 40)]


@situation(
    "Media",
    "download that ended early (WMV, FLV, OGV, MKV, AVI, 3GP)",
    "refused as cut off",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "container, codec",
    [
        ("asf", "wmv2"),
        ("flv", "flv"),
        ("flv", "libx264"),
        ("ogg", "libvpx"),
        ("3gp", "mpeg4"),
        ("matroska", "libx264"),
    ],
)
def test_a_file_cut_anywhere_is_refused(container, codec):
    data = clip(24, container, codec)
    assert numbers(load_video(data, 24).frames) == list(range(24))
    for part in cuts(data):
        with pytest.raises(
            MediaError, match="truncated|not a readable video|no video|no frame|unk"
        ):
            load_video(part, 8)


def metadata(data: bytes, key: bytes, value: float) -> bytes:
    """An FLV with another number in its metadata."""
    at = data.index(len(key).to_bytes(2) + key + b"\0") + len(key) + 3
    return data[:at] + struct.pack(">d", value) + data[at + 8 :]


def test_an_flv_without_a_size_goes_by_its_duration():
    data = metadata(encode(numbered(48), container="flv", codec="flv"), b"filesize", 0)
    assert numbers(load_video(data, 48).frames) == list(range(48))
    for part in cuts(data)[4:-13]:
        with pytest.raises(
            MediaError, match="truncated, .* of 4.8 s .if it plays to its end: ffmpeg"
        ):
            load_video(part, 8)
    live = metadata(data, b"duration", 0)  # states nothing: frames are taken as they come
    assert load_video(live, 8).fps == pytest.approx(8 / 4.8)
    tags = live
    for _ in range(24):
        tags = tags[: -4 - int.from_bytes(tags[-4:])]
    assert numbers(load_video(tags, 24).frames) == list(range(24))


def test_a_live_asf_and_ogg():
    """A broadcast states no length; an Ogg must end with a page that says so (RFC 3533)."""
    data = bytearray(clip(24, "asf", "wmv2"))
    at = data.index(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")) + 24
    assert int.from_bytes(data[at + 16 : at + 24], "little") == len(data)
    data[at + 64] |= 1
    assert load_video(bytes(data), 8).fps == pytest.approx(10 / 3)
    data[at + 16 : at + 24] = (2 * len(data)).to_bytes(8, "little")
    assert load_video(bytes(data), 8).fps == pytest.approx(10 / 3)
    data[at + 64] &= 0xFE
    with pytest.raises(MediaError, match=f"truncated, {len(data)} of {2 * len(data)} bytes"):
        load_video(bytes(data), 8)
    page = bytearray(clip(24, "ogg", "libvpx"))
    last = page.rindex(b"OggS")
    assert page[last + 5] & 4
    page[last + 5] &= 0xFB
    with pytest.raises(MediaError, match="truncated, its last page does not end the stream"):
        load_video(bytes(page), 8)
