"""Tokenizers of other models are refused: by config.json, by the files beside, by themselves."""

import json

import pytest
from tokenizers import Tokenizer

from gve_jax.errors import UserError
from gve_jax.inputs.prompt import Prompt
from gve_jax.inputs.tokenizer import check_tokenizer, open_tokenizer, token_ids, tokenizer_digest
from tests.media.files import small_tokenizer
from tests.situations import situation

SIZE = 1024


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    small_tokenizer().save(str(path))
    return path.read_text(encoding="utf-8")


@pytest.fixture
def path(tmp_path, saved):
    (tmp_path / "tokenizer.json").write_text(saved, encoding="utf-8")
    return tmp_path / "tokenizer.json"


def edit(path, change):
    fields = json.loads(path.read_text(encoding="utf-8"))
    change(fields)
    path.write_text(json.dumps(fields), encoding="utf-8")


def swap(fields):
    """Two entries change their ids: another tokenizer of the same size."""
    vocab = fields["model"]["vocab"]
    first, second = [token for token in vocab if len(token) > 2][:2]
    vocab[first], vocab[second] = vocab[second], vocab[first]


def files(path):
    """The companions as transformers 4.49 writes them, made of the tokenizer itself."""
    folder, fields = path.parent, json.loads(path.read_text(encoding="utf-8"))
    (folder / "vocab.json").write_text(json.dumps(fields["model"]["vocab"]), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in fields["model"]["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    added = {entry["content"]: entry["id"] for entry in fields["added_tokens"]}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    decoder = {str(index): {"content": token, "special": True} for token, index in added.items()}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "add_bos_token": False,
                "add_prefix_space": False,
                "added_tokens_decoder": decoder,
                "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
                "bos_token": None,
                "eos_token": "<|im_end|>",
                "errors": "replace",
                "extra_special_tokens": {},
                "model_max_length": 131072,
                "pad_token": "<|endoftext|>",
                "split_special_tokens": False,
                "tokenizer_class": "Qwen2Tokenizer",
                "unk_token": None,
            }
        )
    )
    (folder / "special_tokens_map.json").write_text(
        json.dumps(
            {
                "additional_special_tokens": ["<|im_start|>"],
                "eos_token": {"content": "<|im_end|>", "lstrip": False},
                "pad_token": "<|endoftext|>",
            }
        )
    )
    return folder


def ids_of(path):
    return {field: index for field, index in token_ids(path).items()}


def test_the_right_tokenizer_passes_with_all_its_companions(path):
    check_tokenizer(path, SIZE, ids_of(path) | {"eos_token_id": [1, 2], "bos_token_id": 7})
    files(path)
    check_tokenizer(path, SIZE, ids_of(path))


@situation(
    "Models and checkpoints",
    "a tokenizer with an id past the model's embeddings (an added token, a gap in the vocabulary)",
    "refused; the token and its id are named",
    since="0.2.0",
)
def test_an_id_past_the_embeddings_is_named(path):
    with pytest.raises(UserError, match="entries exceed the model's 100"):
        check_tokenizer(path, 100, {})
    edit(path, lambda f: f["model"]["vocab"].update(zzqq=SIZE))
    assert len(Tokenizer.from_file(str(path)).get_vocab()) < SIZE  # fewer entries, and yet
    with pytest.raises(UserError, match=f"'zzqq' has the id {SIZE}; the model has embeddings for"):
        check_tokenizer(path, SIZE, {})
    assert Prompt(path, 64).vocab_size == SIZE + 1


@pytest.mark.parametrize(
    "field", ["image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"]
)
@pytest.mark.parametrize("value", [7, "7", None, [7]])
def test_ids_of_config_json_are_compared(path, field, value):
    if value is None:
        check_tokenizer(path, SIZE, {field: None})
        return
    with pytest.raises(UserError, match=r"<\|\w+\|> is \d+; config.json says \[?'?7"):
        check_tokenizer(path, SIZE, {field: value})


@situation(
    "Models and checkpoints",
    "a tokenizer.json of another model of the same size beside "
    "vocab.json, merges.txt, added_tokens.json or tokenizer_config.json",
    "refused; the file and the token that differ are named",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "change, named",
    [
        (swap, "vocab.json says"),
        (lambda f: f["model"]["merges"].reverse(), "merges are not the .* of merges.txt"),
        (
            lambda f: f["added_tokens"][0].update(content="<|other|>"),
            r"has no '<\|endoftext\|>', which "
            "added_tokens.json names",
        ),
    ],
)
def test_another_tokenizer_beside_the_companions_is_refused(path, change, named):
    files(path)
    edit(path, change)
    with pytest.raises(UserError, match=named):
        check_tokenizer(path, SIZE, {})


@pytest.mark.parametrize(
    "file, change, named",
    [
        ("added_tokens.json", lambda f: f.update({"<|im_end|>": 3}), "added_tokens.json says 3"),
        (
            "added_tokens.json",
            lambda f: f.update({"<|im_end|>": "3"}),
            "added_tokens.json says '3'",
        ),
        (
            "tokenizer_config.json",
            lambda f: f["added_tokens_decoder"].update({"900": {"content": "<|tool|>"}}),
            r"no '<\|tool\|>', which tokenizer_config.json: added",
        ),
        (
            "tokenizer_config.json",
            lambda f: f["added_tokens_decoder"].update({"900": {"content": "<|im_end|>"}}),
            "added_tokens_decoder says 900",
        ),
        ("tokenizer_config.json", lambda f: f.update(added_tokens_decoder=[1]), "must map ids"),
        (
            "tokenizer_config.json",
            lambda f: f.update(added_tokens_decoder={"1": "x"}),
            "must map ids",
        ),
        ("tokenizer_config.json", lambda f: f.update(pad_token="<pad>"), "no '<pad>', .*pad_token"),
        ("tokenizer_config.json", lambda f: f.update(pad_token=3), "pad_token is 3, not a token"),
        (
            "tokenizer_config.json",
            lambda f: f.update(extra_special_tokens={"x": "<x>"}),
            "no '<x>'",
        ),
        (
            "tokenizer_config.json",
            lambda f: f.update(add_prefix_space=True),
            "add_prefix_space = True",
        ),
        (
            "tokenizer_config.json",
            lambda f: f.update(split_special_tokens=True),
            "split_special_token",
        ),
        ("special_tokens_map.json", lambda f: f.update(eos_token={"content": "</s>"}), "no '</s>'"),
        ("vocab.json", lambda f: f.update(a="x"), "vocab.json says 'x'"),
    ],
)
def test_a_companion_of_another_tokenizer_is_refused(path, file, change, named):
    edit(files(path) / file, change)
    with pytest.raises(UserError, match=named):
        check_tokenizer(path, SIZE, {})


@situation(
    "Models and checkpoints",
    "a tokenizer.json without its merges",
    "refused (every text would fall apart into bytes)",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "change, named",
    [
        (lambda f: f["model"].update(merges=[]), "has no merges"),
        (lambda f: f["model"].pop("merges"), "not a tokenizer file"),
        (
            lambda f: f["added_tokens"][-1].update(id=5000),
            "states id 5000 for '<.video_pad.>', which",
        ),
    ],
)
def test_a_tokenizer_that_contradicts_itself_is_refused(path, change, named):
    edit(path, change)
    with pytest.raises(UserError, match=named):
        check_tokenizer(path, SIZE, {})


@situation(
    "Models and checkpoints",
    "tokenizer.json is a Git LFS pointer, begins with a byte "
    "order mark, is empty or not a tokenizer",
    "refused in one line with the reason",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "data, named",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b"", "not a tokenizer file"),
        (b"{}", "not a tokenizer file"),
        (b"[1", "not a tokenizer file"),
    ],
)
def test_a_file_that_is_not_a_tokenizer_is_refused(path, data, named):
    path.write_bytes(data)
    for read in (open_tokenizer, token_ids, lambda path: Prompt(path, 64)):
        with pytest.raises(UserError, match=f"tokenizer.json: .*{named}"):
            read(path)
    path.unlink()
    with pytest.raises(UserError, match="no such tokenizer file"):
        open_tokenizer(path)
    path.mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        open_tokenizer(path)


def test_the_digest_depends_on_ids_and_not_on_formatting(path):
    digest = tokenizer_digest(path)
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(9)
    tokenizer.save(str(path), pretty=False)  # transformers saves both along
    assert tokenizer_digest(path) == digest

    def as_strings(fields):  # as tokenizers wrote merges until 0.20
        fields["model"]["merges"] = [" ".join(pair) for pair in fields["model"]["merges"]]

    edit(path, as_strings)
    assert tokenizer_digest(path) == digest
    found = {digest}
    for change in (
        swap,
        lambda f: f["model"]["merges"].pop(),
        lambda f: f.update(normalizer=None),
        lambda f: f["added_tokens"][0].update(normalized=True),
    ):
        edit(path, change)
        found.add(tokenizer_digest(path))
    assert len(found) == 5
