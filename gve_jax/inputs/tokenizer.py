"""Opens the tokenizer.json of a model and checks that it belongs to the model.

With the tokenizer of another model, ids stand for other texts, and vectors are meaningless. So the
ids in config.json, the digest in our exports, and the companion files that transformers writes are
compared before a model is used.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from tokenizers import Tokenizer

from gve_jax.errors import UserError
from gve_jax.storage.digests import json_sha256
from gve_jax.storage.files import check_encoding, check_lfs_pointer, read_json

TOKENS = {  # fields of config.json whose ids the tokenizer decides
    "bos_token_id": "<|endoftext|>",
    "eos_token_id": "<|im_end|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}
# Fields that generation may override and that no vector depends on.
_OF_GENERATION = ("bos_token_id", "eos_token_id")
_REMEDY = "the files are of two models; restore the tokenizer that belongs to this one"
# Fields that decide the ids of a text; others concern decoding, padding and added special tokens.
_DECIDING = ("model", "normalizer", "pre_tokenizer", "added_tokens")


def open_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """Opens a tokenizer.json; raises UserError with the file and the reason if it is not one."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            start = file.read(128)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such tokenizer file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    check_lfs_pointer(start, path)
    check_encoding(os.fspath(path), start)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(f"{path}: not a tokenizer file ({error})") from error


def tokenizer_digest(path: Path) -> str:
    """Digest of the fields that decide the ids of a text, independent of formatting."""
    fields = read_json(path)
    deciding = {name: fields.get(name) for name in _DECIDING}
    model = deciding["model"]
    if isinstance(model, dict) and isinstance(model.get("merges"), list):
        # Written as "a b" until tokenizers 0.20, then as ["a", "b"].
        merges = [each.split(" ") if isinstance(each, str) else each for each in model["merges"]]
        deciding["model"] = model | {"merges": merges}
    return json_sha256(deciding, sort_keys=True)[:16]


def check_tokenizer(path: Path, vocab_size: int, fields: Mapping) -> None:
    """Raises UserError if a tokenizer is not that of a model.

    Args:
      path: the tokenizer.json, which is compared with its companions in the same folder.
      vocab_size: number of token embeddings of the model.
      fields: the model's config.json, whose token ids are compared.
    """
    tokenizer = open_tokenizer(path)
    ids = tokenizer.get_vocab(with_added_tokens=True)
    if len(ids) > vocab_size:
        raise UserError(f"{path}: {len(ids)} entries exceed the model's {vocab_size}")
    last = max(ids, key=ids.__getitem__)
    if ids[last] >= vocab_size:
        raise UserError(
            f"{path}: {last!r} has the id {ids[last]}; the model has embeddings for {vocab_size}"
        )
    for field, token in TOKENS.items():
        stated = fields.get(field)
        if field not in _OF_GENERATION and stated is not None and stated != ids.get(token):
            raise UserError(f"{path}: {token} is {ids.get(token)}; config.json says {stated!r}")
    _check_own(path, ids)
    for name, token, stated in _stated_ids(path.parent):
        if token not in ids:
            raise UserError(f"{path}: has no {token!r}, which {name} names; {_REMEDY}")
        if stated is not None and ids[token] != stated:
            raise UserError(f"{path}: {token!r} is {ids[token]}; {name} says {stated!r}; {_REMEDY}")


def _check_own(path: Path, ids: Mapping[str, int]) -> None:
    """Checks the ids of added tokens, and the merges against merges.txt."""
    fields = read_json(path)
    for entry in fields.get("added_tokens") or []:
        # The tokenizers library numbers added tokens after the vocabulary and ignores these ids.
        if ids.get(entry["content"]) != entry["id"]:
            raise UserError(
                f"{path}: states id {entry['id']} for {entry['content']!r}, which gets "
                f"{ids.get(entry['content'])}; save it again with the tokenizers library"
            )
    merges = fields["model"].get("merges")
    if merges is None:
        return
    if not merges and any(len(token) > 1 for token in fields["model"]["vocab"]):
        raise UserError(f"{path}: has no merges, so that every text is divided into bytes")
    beside = path.parent / "merges.txt"
    if not beside.is_file():
        return
    merges = [each if isinstance(each, str) else " ".join(each) for each in merges]
    lines = _read_text(beside).split("\n")
    lines = [line.removesuffix("\r") for line in lines if line and not line.startswith("#version")]
    if lines != merges:
        raise UserError(
            f"{path}: its {len(merges)} merges are not the {len(lines)} of {beside.name}; {_REMEDY}"
        )


def _stated_ids(folder: Path) -> Iterator[tuple[str, str, int | None]]:
    """Yields (file, token, id or None) of each token in the companion files."""
    for name in ("vocab.json", "added_tokens.json"):
        for token, index in _companion(folder, name).items():
            yield name, token, index
    name = "tokenizer_config.json"
    config = _companion(folder, name)
    decoder = config.get("added_tokens_decoder") or {}
    try:
        for index, entry in decoder.items():
            yield f"{name}: added_tokens_decoder", entry["content"], int(index)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / name}: added_tokens_decoder must map ids to objects with a content"
        ) from error
    for switch in ("add_prefix_space", "split_special_tokens", "do_lower_case"):
        if config.get(switch):
            raise UserError(f"{folder / name}: {switch} = {config[switch]!r} is not implemented")
    for file, fields in ((name, config), ("special_tokens_map.json", None)):
        fields = _companion(folder, file) if fields is None else fields
        for key, value in fields.items():
            if key.endswith("_token") or key.endswith("special_tokens"):
                for token in _tokens(folder / file, key, value):
                    yield f"{file}: {key}", token, None


def _tokens(path: Path, key: str, value: object) -> Iterator[str]:
    """Yields the tokens of a string, an object with `content`, or a list or object of those."""
    if isinstance(value, str):
        yield from [value] if value else []
    elif isinstance(value, dict) and isinstance(value.get("content"), str):
        yield value["content"]
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tokens(path, key, each)
    elif value is not None and not isinstance(value, bool):  # add_bos_token is a switch
        raise UserError(f"{path}: {key} is {value!r}, not a token")


def _companion(folder: Path, name: str) -> dict:
    return read_json(folder / name) if (folder / name).is_file() else {}


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    check_lfs_pointer(data, path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason})") from error


def token_ids(path: Path) -> dict[str, int]:
    """Returns the token ids of a config.json, by field."""
    tokenizer = open_tokenizer(path)
    return {field: tokenizer.token_to_id(token) for field, token in TOKENS.items()}
