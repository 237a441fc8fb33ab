"""One input or many, in every accepted form; what is none is named by its index."""

import collections
import itertools
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gve_jax.errors import UserError
from gve_jax.inputs.user_inputs import read_inputs, split_inputs, warn_of_paths
from gve_jax.media.item import Item
from tests.media.files import picture
from tests.situations import situation

PICTURE = Image.new("RGB", (4, 4))
FRAMES = np.zeros((3, 4, 4, 3), np.uint8)
MESSAGE = {"role": "user", "content": "a"}


def read(inputs, **options):
    values, single = split_inputs(inputs)
    return read_inputs(values, single, **options)


class Column:
    """Ordered, with a length, but no Sequence: as a column of pandas or of datasets."""

    def __init__(self, *values):
        self.values = values

    def __iter__(self):
        return iter(self.values)

    def __len__(self):
        return len(self.values)


@situation(
    "Python API",
    "a single input in place of a list: a text, a mapping, a picture, a path",
    "a single vector [D]; a list of one gives [1, D]",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "one",
    [
        "a",
        {"text": "a"},
        Item("a"),
        PICTURE,
        Path("a.mp4"),
        FRAMES,
        FRAMES[0],
        jnp.asarray(FRAMES),
        [MESSAGE],
        MESSAGE,
        {"type": "text", "text": "a"},
        np.array("a"),
        np.str_("a"),
    ],
)
def test_single_inputs(one):
    assert split_inputs(one)[1]
    assert len(read(one)) == len(read([one])) == 1
    assert not split_inputs([one])[1] or one is MESSAGE


@situation(
    "Python API",
    "inputs as a tuple, a numpy array of texts, a column of a table",
    "read in their order, as a list is",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "many",
    [
        ["a", "b"],
        ("a", "b"),
        np.array(["a", "b"]),
        np.array(["a", "b"], object),
        Column("a", "b"),
        collections.deque(["a", "b"]),
        {"x": "a", "y": "b"}.values(),
        {"a": 0, "b": 0}.keys(),
    ],
)
def test_collections_of_inputs(many):
    assert not split_inputs(many)[1]
    assert [item.text for item in read(many)] == ["a", "b"]


def test_an_empty_list_has_no_inputs():
    for none in ([], (), np.array([], object), Column()):
        assert split_inputs(none) == ([], False)


class Table(dict):
    columns = ["text"]

    def __init__(self):
        super().__init__(text=["a"])


@situation(
    "Python API",
    "a set, a generator or a whole table as inputs",
    "refused by name, with what to give instead",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "bad, named",
    [
        ({"a", "b"}, "must be ordered, and a set is not"),
        (frozenset("a"), "and a frozenset is not"),
        ((x for x in "ab"), "not a generator, which can be read only once"),
        (iter(["a"]), "only once"),
        (map(str, [1]), "not a map"),
        (itertools.count(), "only once"),
        (type("Table", (Column,), {"columns": ["text"]})("text"), "give one of its columns"),
        (None, "not NoneType"),
        (7, "not int"),
        (np.float32(7), "not float32"),
    ],
)
def test_values_without_inputs_are_refused(bad, named):
    with pytest.raises(UserError, match=named):
        read(bad)


@situation(
    "Python API",
    "one empty, blank, None or NaN text among many given to `encode`",
    "refused; the message has its index",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "bad, named",
    [
        ("", "nothing to embed"),
        (" \n", "nothing to embed"),
        (None, r"missing value \(None\)"),
        (float("nan"), r"missing value \(NaN\)"),
        (np.float32("nan"), r"missing value \(NaN\)"),
        ({}, "nothing to embed"),
        ({"text": None}, "nothing to embed"),
        ({"text": " "}, "nothing to"),
        ({"instruction": "a"}, "nothing to embed"),
        (Item(), "nothing to embed"),
        ([], "empty list"),
        ([{"role": "user", "content": []}], "nothing to embed"),
        (7, "not int"),
        (True, "not bool"),
        (b"abc", "bytes may be an image or a video"),
        (["a", "b"], "a list of 2 texts is not an input .pairs"),
        (("a", "b"), "a tuple of 2 texts"),
        ([PICTURE, PICTURE], "pass frames under 'video'"),
        (["a", 7], "a list is not an input"),
        (Path("notes.txt"), "notes.txt: neither a video nor an image"),
        (np.zeros((5, 5), np.uint8), r"not uint8 \[5, 5\]"),
        (np.zeros(9), r"float64 \[9\]"),
        (np.array(["a", "b"]), "not ndarray"),
        ({"txt": "a"}, "unknown key 'txt'"),
        ({"images": ["a.png"]}, "unknown key 'images'"),
        ({"texts": "a"}, "use 'text'"),
        ({"prompt": "a"}, "use 'instruction'"),
        ({"text": "a", "nframes": 8}, "unknown key 'nframes'"),
        ({"text": "a", "audio": "a.wav"}, "audio cannot be embedded"),
        ({"array": [1.0], "sampling_rate": 16_000}, "frames of a video"),
        ({"image": ["a.png", "b.png"]}, "2 values of 'image': pass several images as a video"),
        ({"text": ["a", "b"]}, "2 values of 'text': join them"),
        ({"image": "https://a.b/c.png"}, "image: 'https://a.b/c.png' is a URL"),
        (
            {"video": {"array": FRAMES, "video_metadata": {"fps": 2}}, "fps": 3},
            "fps 3 differs from 2",
        ),
        ({"text": 7}, "text must be a text, not int"),
        ("a\ud800", "not valid Unicode"),
        ([MESSAGE, "a"], "a list is not an input"),
    ],
)
def test_a_bad_input_is_refused_with_its_index(bad, named):
    with pytest.raises(UserError, match=f"^input 2: .*{named}"):
        read_inputs(["a", "b", bad, "c"])
    with pytest.raises(UserError, match=f"^the input: .*{named}"):
        read_inputs([bad], single=True)


@situation(
    "Python API",
    "PIL images, numpy arrays, tensors and pathlib paths as inputs",
    "each is taken as an image, the frames of a video, or a file",
    since="0.2.0",
)
def test_bare_media(tmp_path):
    (item,) = read([PICTURE])
    assert item == Item(image=PICTURE)
    (item,) = read([Path("a/b.PNG")])
    assert item == Item(image=Path("a/b.PNG"))
    (item,) = read([Path("b.mkv")])
    assert item == Item(video=Path("b.mkv"))
    (item,) = read([tmp_path])  # a folder of frames
    assert item == Item(video=tmp_path)
    for frames in (FRAMES, jnp.asarray(FRAMES)):
        (item,) = read([frames])
        assert isinstance(item.video, np.ndarray) and item.video.shape == (3, 4, 4, 3)
        (item,) = read([frames[0]])
        assert isinstance(item.image, np.ndarray) and item.image.shape == (4, 4, 3)
    assert len(read(FRAMES)) == 1 and len(read(list(FRAMES))) == 3


def test_sentence_transformers_mappings():
    (item,) = read([{"text": ["a"], "image": [PICTURE]}])
    assert item == Item("a", image=PICTURE)
    given = {"array": jnp.asarray(FRAMES), "video_metadata": {"fps": 12.0, "total_num_frames": 3}}
    for value in (given, {"video": given}):
        (item,) = read([value])
        assert item.fps == 12.0 and isinstance(item.video, np.ndarray)
    (item,) = read([{"video": {"array": [PICTURE, PICTURE], "video_metadata": None}}])
    assert item.video == [PICTURE, PICTURE] and item.fps is None
    (item,) = read([{"image": bytearray(b"abc")}])
    assert item.image == b"abc"


@situation(
    "Python API",
    "an empty text where empty texts are to be allowed (`allow_empty_text`)",
    "embedded as the reference does it: the chat template around nothing",
    since="0.2.0",
)
@pytest.mark.parametrize("empty", ["", " ", {}, {"text": ""}, {"text": "", "image": None}])
def test_empty_texts_may_be_allowed(empty):
    (item,) = read_inputs([empty], allow_empty=True)
    assert (item.text or "").strip() == "" and item.image is None
    with pytest.raises(UserError, match="missing value"):
        read_inputs([None], allow_empty=True)


@situation(
    "Python API",
    "a text that is the path or URL of a media file",
    "embedded as a text, with one warning that says how the file is given",
    since="0.2.0",
)
def test_a_text_that_is_a_media_file_is_warned_of_once(tmp_path):
    file = tmp_path / "cat.png"
    file.write_bytes(picture(PICTURE))
    (tmp_path / "notes.txt").write_text("a")
    for text, key in (
        (str(file), "image"),
        ("https://a.b/cat.mp4?x=1#t=2", "video"),
        ("file:///cat.mov", "video"),
        ("data:image/png;base64,YWJj" + "A" * 5000, "image"),
    ):
        with pytest.warns(UserWarning, match=f"input 1 is embedded as the text .*'{key}'") as seen:
            warn_of_paths(read(["a", text, str(file), text]), single=False)
        assert len(seen) == 1 and seen[0].filename == __file__
        assert len(str(seen[0].message)) < 300
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        harmless = [
            "a",
            str(tmp_path),
            str(tmp_path / "notes.txt"),
            "missing.png",
            "\0.png",
            "https://[a.png",
            "x" * 5000 + ".png",
            "see https://a.b/cat.png",
            "a\n.png",
            "ab\udcff.png",
        ]
        items = [Item(text) for text in harmless] + [Item(image=str(file))]
        warn_of_paths([*items, Item(str(file), image=str(file))], single=False)
