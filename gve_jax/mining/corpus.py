"""The distinct queries and documents of training pairs, and the corpus searched for negatives."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

import numpy as np

from gve_jax.errors import UserError
from gve_jax.inputs.entries import read_entries
from gve_jax.media.item import Item
from gve_jax.media.walk import list_folder
from gve_jax.streams.pairs import PairSources

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
    _taken: dict[str, int] = field(default_factory=dict)  # the next number of an id that is used

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
    """Pairs by the numbers of their query and positive, and the corpus their negatives come from.

    Attributes:
      sources: of the pairs.
      queries, positives: distinct ones.
      corpus: `positives` itself, or another set of documents.
      query, positive: by source int64 [n], the number of each pair's query and positive.
      pair_ids: by source, the ids of its pairs.
    """

    sources: PairSources
    queries: UniqueItems
    positives: UniqueItems
    corpus: UniqueItems
    query: dict[str, np.ndarray]
    positive: dict[str, np.ndarray]
    pair_ids: dict[str, list[str]]

    @property
    def own_corpus(self) -> bool:
        return self.corpus is self.positives

    def digest(self) -> str:
        """Digest of all pairs and the corpus."""
        digest = hashlib.sha256()
        for items in (self.queries, self.positives, self.corpus):
            digest.update(items.digest().encode())
        for name in self.query:
            digest.update(f"{name} {len(self.query[name])} ".encode())
            digest.update(self.query[name].tobytes() + self.positive[name].tobytes())
        return digest.hexdigest()[:16]

    def groups(self, within: str) -> list["Group"]:
        """Who looks for negatives where; `within` is one of WITHIN.

        Raises:
          UserError: sources of an external corpus.
        """
        if within == "source" and not self.own_corpus:
            raise UserError("--within source is for the pairs' own positives, not for a --corpus")
        asked: dict[str, list[np.ndarray]] = {}
        found: dict[str, list[np.ndarray]] = {}
        kinds = np.array(self.positives.kinds)
        for name, query in self.query.items():
            names = np.full(len(query), {"source": name}.get(within, "all"), object)
            if within == "modality":
                names = kinds[self.positive[name]]
            for group in dict.fromkeys(names.tolist()):
                asked.setdefault(group, []).append(query[names == group])
                found.setdefault(group, []).append(self.positive[name][names == group])
        groups = []
        for group in sorted(asked):
            if self.own_corpus:
                documents = np.unique(np.concatenate(found[group]))
            elif within == "modality":
                documents = np.flatnonzero(np.array(self.corpus.kinds) == group)
            else:
                documents = np.arange(len(self.corpus))
            groups.append(Group(group, np.unique(np.concatenate(asked[group])), documents))
        return groups

    def group_of(self, source: str, index: int, within: str) -> str:
        if within == "modality":
            return self.positives.kinds[self.positive[source][index]]
        return source if within == "source" else "all"

    def positives_by_query(self) -> dict[bytes, set[int]]:
        """Maps the content of each query to the positives of all pairs with that query."""
        found: dict[bytes, set[int]] = {}
        for name, query in self.query.items():
            for q, p in zip(query.tolist(), self.positive[name].tolist(), strict=True):
                found.setdefault(self.queries.contents[q], set()).add(p)
        return found

    def positive_ids(self) -> dict[int, set[str]]:
        """Maps each query to the ids under which a corpus may list its positives."""
        found: dict[int, set[str]] = {}
        for name, query in self.query.items():
            for q, id in zip(query.tolist(), self.pair_ids[name], strict=True):
                found.setdefault(q, set()).update((id, f"{name}/{id}"))
        return found


@dataclass(frozen=True)
class Group:
    """Queries int64 [Q] and the documents int64 [C] of the corpus that they may get."""

    name: str
    queries: np.ndarray
    documents: np.ndarray


def read_mining_corpus(
    pairs: Path, corpus: Path | None, advance: Callable[[int], None]
) -> MiningCorpus:
    """Reads all pairs once, to know which of their items are the same.

    Raises:
      UserError: directories that hold no pairs, damaged records, a corpus without documents.
    """
    sources = PairSources(pairs)
    sources.check({name: 1 for name, size in sources.sizes.items() if size})
    queries, positives = UniqueItems(), UniqueItems()
    world = MiningCorpus(sources, queries, positives, positives, {}, {}, {})
    for name, size in sources.sizes.items():
        query, positive, ids = np.zeros(size, np.int64), np.zeros(size, np.int64), []
        for index, pair in _records(sources, name):
            ids.append(pair["id"])
            id, item = f"{name}/{pair['id']}", pair["query"]
            inside = content(item)
            key = inside + (item.instruction or "").encode()
            query[index] = queries.add(
                id, key, item, inside, _reader(sources, name, index, "query")
            )
            positive[index] = _add(positives, sources, name, index, pair)
            advance(1)
        world.query[name], world.positive[name], world.pair_ids[name] = query, positive, ids
    if corpus is not None:
        world.corpus = _read_corpus(corpus)
    return world


def _read_corpus(path: Path) -> UniqueItems:
    items = UniqueItems()
    if path.is_dir() and (path / "dataset_info.json").is_file():
        sources = PairSources(path)
        for name in sources.sizes:
            for index, pair in _records(sources, name):
                _add(items, sources, name, index, pair)
    else:
        for entry in read_entries(path):
            inside = content(entry.item)
            items.add(entry.id, inside, entry.item, inside, lambda item=entry.item: item)
    if not len(items):
        raise UserError(f"{path}: no documents")
    return items


def _add(items: UniqueItems, sources: PairSources, name: str, index: int, pair: dict) -> int:
    inside = content(pair["positive"])
    read = _reader(sources, name, index, "positive")
    return items.add(f"{name}/{pair['id']}", inside, pair["positive"], inside, read)


def _records(sources: PairSources, name: str) -> Iterator[tuple[int, dict]]:
    for start in range(0, sources.sizes[name], BLOCK):
        indices = np.arange(start, min(start + BLOCK, sources.sizes[name]))
        yield from zip(indices.tolist(), sources.read(name, indices), strict=True)


def _reader(sources: PairSources, name: str, index: int, side: str) -> Callable[[], Item]:
    return lambda: sources.read(name, np.array([index]))[0][side]


def kind(item: Item) -> str:
    """The modalities of an item, as in the names of sources: `TV`."""
    given = {"T": item.text, "I": item.image, "V": item.video}
    return "".join(letter for letter, part in given.items() if part is not None)


def content(item: Item) -> bytes:
    """A hash of what an item shows: text, media by their bytes, sampling; not the instruction."""
    digest = hashlib.blake2b(digest_size=16)

    def add(part) -> None:
        if isinstance(part, list):
            for each in part:
                add(each)
            return
        if isinstance(part, str):
            path = Path(part)
            if path.is_dir():
                return add(list_folder(path))
            try:
                part = path.read_bytes()
            except OSError:
                part = os.fsencode(part)  # embedding will say that it cannot be read
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
