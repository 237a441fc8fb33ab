"""Distinct queries and documents of training pairs, and the corpus searched for negatives."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

import numpy as np

from gve_jax.errors import UserError
from gve_jax.inputs.entries import read_entries
from gve_jax.media.item import Item
from gve_jax.media.walk import list_folder
from gve_jax.streams.pairs import PairSources
from gve_jax.streams.sources import Sources, parse

BLOCK = 64  # records read at a time
WITHIN = ("modality", "source", "all")


@dataclass
class UniqueItems:
    """N distinct items in order of first occurrence. Items are read when they are needed.

    Attributes:
      ids: unique.
      others: for each item, the ids of its duplicates.
      contents: a hash of the text and media of each item.
      kinds: modalities, `TV`.
    """

    ids: list[str] = field(default_factory=list)
    others: list[list[str]] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    _readers: list[Callable[[], Item]] = field(default_factory=list)
    _number: dict[bytes, int] = field(default_factory=dict)
    _taken: dict[str, int] = field(default_factory=dict)  # next suffix of each id in use

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, id: str, key: bytes, item: Item, content: bytes, read: Callable) -> int:
        """Returns the number of the item with this key; `read` loads the item again."""
        if key in self._number:
            self.others[self._number[key]].append(id)
        else:
            self._number[key] = len(self.ids)
            again = self._taken.get(id, 0)
            unique = f"{id}#{again}" if again else id
            while unique in self._taken:
                again += 1
                unique = f"{id}#{again}"
            self._taken[id] = again + 1
            self._taken.setdefault(unique, 1)
            self.ids.append(unique)
            self.others.append([])
            self.contents.append(content)
            self.kinds.append(kind(item))
            self._readers.append(read)
        return self._number[key]

    @property
    def total(self) -> int:
        """The number of items, duplicates included."""
        return len(self.ids) + sum(map(len, self.others))

    def find(self, key: bytes) -> int | None:
        return self._number.get(key)

    def read(self, start: int, stop: int) -> list[Item]:
        return [read() for read in self._readers[start:stop]]

    @property
    def stamps(self) -> list[str]:
        """The content digest of each item."""
        return [content.hex() for content in self.contents]

    def digest(self) -> str:
        """Digest of the ids and contents."""
        digest = hashlib.sha256()
        for id, content in zip(self.ids, self.contents, strict=True):
            digest.update(f"{len(id)} {id} ".encode() + content)
        return digest.hexdigest()[:16]


@dataclass
class MiningCorpus:
    """Pairs as indices into their distinct items, and the documents searched for negatives.

    Attributes:
      sources: the sources of the pairs.
      queries, positives: distinct items of the pairs.
      documents: `positives` itself, or the items of another corpus.
      query, positive: for each source, int64 [n]: the query and the positive of each pair.
      pair_ids: for each source, the ids of its pairs.
    """

    sources: Sources
    queries: UniqueItems
    positives: UniqueItems
    documents: UniqueItems
    query: dict[str, np.ndarray]
    positive: dict[str, np.ndarray]
    pair_ids: dict[str, list[str]]

    @property
    def searches_positives(self) -> bool:
        """Whether negatives come from the positives of the pairs, not from another corpus."""
        return self.documents is self.positives

    def digest(self) -> str:
        """Digest of all pairs and the corpus."""
        digest = hashlib.sha256()
        for items in (self.queries, self.positives, self.documents):
            digest.update(items.digest().encode())
        for name in self.query:
            digest.update(f"{name} {len(self.query[name])} ".encode())
            digest.update(self.query[name].tobytes() + self.positive[name].tobytes())
        return digest.hexdigest()[:16]

    def groups(self, within: str) -> list["Group"]:
        """Returns the queries and the documents that are compared; `within` is one of WITHIN.

        Raises:
          UserError: `within` is "source" and the documents are of another corpus.
        """
        if within == "source" and not self.searches_positives:
            raise UserError("--within source cannot be combined with --corpus")
        queries: dict[str, list[np.ndarray]] = {}
        positives: dict[str, list[np.ndarray]] = {}
        kinds = np.array(self.positives.kinds)
        for name, query in self.query.items():
            names = np.full(len(query), {"source": name}.get(within, "all"), object)
            if within == "modality":
                names = kinds[self.positive[name]]
            for group in dict.fromkeys(names.tolist()):
                queries.setdefault(group, []).append(query[names == group])
                positives.setdefault(group, []).append(self.positive[name][names == group])
        groups = []
        for group in sorted(queries):
            if self.searches_positives:
                documents = np.unique(np.concatenate(positives[group]))
            elif within == "modality":
                documents = np.flatnonzero(np.array(self.documents.kinds) == group)
            else:
                documents = np.arange(len(self.documents))
            groups.append(Group(group, np.unique(np.concatenate(queries[group])), documents))
        return groups

    def group_of(self, source: str, index: int, within: str) -> str:
        """The name of the group of a pair."""
        if within == "modality":
            return self.positives.kinds[self.positive[source][index]]
        return source if within == "source" else "all"

    def positives_by_query(self) -> dict[bytes, set[int]]:
        """Maps the content of each query to the positives of all pairs with that query."""
        positives: dict[bytes, set[int]] = {}
        for name, query in self.query.items():
            for q, p in zip(query.tolist(), self.positive[name].tolist(), strict=True):
                positives.setdefault(self.queries.contents[q], set()).add(p)
        return positives

    def positive_ids(self) -> dict[int, set[str]]:
        """Maps each query to the ids under which a corpus may list its positives."""
        ids: dict[int, set[str]] = {}
        for name, query in self.query.items():
            for q, id in zip(query.tolist(), self.pair_ids[name], strict=True):
                ids.setdefault(q, set()).update((id, f"{name}/{id}"))
        return ids


@dataclass(frozen=True)
class Group:
    """Queries int64 [Q] and the documents int64 [C] that they are compared with."""

    name: str
    queries: np.ndarray
    documents: np.ndarray


def read_mining_corpus(
    pairs: str | Sequence[str], corpus: Path | None, advance: Callable[[int], None]
) -> MiningCorpus:
    """Reads all pairs and finds equal items.

    Args:
      pairs: as `config.data.pairs`.
      corpus: pairs, a folder or a JSONL file; None for the positives of the pairs.
      advance: called with 1 for every pair.

    Raises:
      UserError: a directory without pairs, damaged records, a corpus without documents.
    """
    sources = Sources(parse(pairs))
    sources.fetch()
    sources.check({name: 1 for name, size in sources.sizes.items() if size})
    queries, positives = UniqueItems(), UniqueItems()
    mining = MiningCorpus(sources, queries, positives, positives, {}, {}, {})
    for name, size in sources.sizes.items():
        query, positive, ids = np.zeros(size, np.int64), np.zeros(size, np.int64), []
        for index, pair in _records(sources, name):
            ids.append(pair["id"])
            id, item = f"{name}/{pair['id']}", pair["query"]
            digest = content_digest(item)
            key = digest + (item.instruction or "").encode()
            query[index] = queries.add(
                id, key, item, digest, _reader(sources, name, index, "query")
            )
            positive[index] = _add(positives, sources, name, index, pair)
            advance(1)
        mining.query[name], mining.positive[name], mining.pair_ids[name] = query, positive, ids
    if corpus is not None:
        mining.documents = _read_corpus(corpus)
    return mining


def _read_corpus(path: Path) -> UniqueItems:
    items = UniqueItems()
    if path.is_dir() and (path / "dataset_info.json").is_file():
        sources = PairSources(path)
        for name in sources.sizes:
            for index, pair in _records(sources, name):
                _add(items, sources, name, index, pair)
    else:
        for entry in read_entries(path):
            digest = content_digest(entry.item)
            items.add(entry.id, digest, entry.item, digest, lambda item=entry.item: item)
    if not len(items):
        raise UserError(f"{path}: no documents")
    return items


def _add(
    items: UniqueItems, sources: Sources | PairSources, name: str, index: int, pair: dict
) -> int:
    digest = content_digest(pair["positive"])
    read = _reader(sources, name, index, "positive")
    return items.add(f"{name}/{pair['id']}", digest, pair["positive"], digest, read)


def _records(sources: Sources | PairSources, name: str) -> Iterator[tuple[int, dict]]:
    for start in range(0, sources.sizes[name], BLOCK):
        indices = np.arange(start, min(start + BLOCK, sources.sizes[name]))
        yield from zip(indices.tolist(), sources.read(name, indices), strict=True)


def _reader(sources: Sources | PairSources, name: str, index: int, side: str) -> Callable[[], Item]:
    return lambda: sources.read(name, np.array([index]))[0][side]


def kind(item: Item) -> str:
    """The modalities of an item, as in the names of sources: `TV`."""
    parts = {"T": item.text, "I": item.image, "V": item.video}
    return "".join(letter for letter, part in parts.items() if part is not None)


def content_digest(item: Item) -> bytes:
    """Digest of an item's text, bytes of media and sampling options; not of its instruction."""
    digest = hashlib.blake2b(digest_size=16)

    def add(part) -> None:
        if isinstance(part, list):
            for frame in part:
                add(frame)
            return
        if isinstance(part, str):
            path = Path(part)
            if path.is_dir():
                return add(list_folder(path))
            try:
                part = path.read_bytes()
            except OSError:
                part = os.fsencode(part)  # the embedding reports that it cannot be read
        digest.update(b"%d " % len(part) + part)

    add((item.text or "").encode())
    for medium in (item.image, item.video):
        digest.update(b"-" if medium is None else b"+")
        if medium is not None:
            add(medium)
    options = replace(item, text=None, image=None, video=None, instruction=None)
    if options != Item():
        add(repr(astuple(options)).encode())
    return digest.digest()
