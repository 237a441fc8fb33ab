"""POST /search: the page's search (gve_jax/index/requests.py), also with the server's inputs."""

import dataclasses

from gve_jax.errors import UserError
from gve_jax.index import Index
from gve_jax.index.requests import (
    OPTIONS,
    LiveIndex,
    Options,
    Query,
    item_of_file,
    read_options,
    read_search,
)
from gve_jax.inputs.user_inputs import read_inputs
from gve_jax.media.item import Item
from gve_jax.serving.errors import bad_request
from gve_jax.serving.protocols import ModelInfo, read_inputs_of
from gve_jax.serving.requests import EmbedRequest, InputReader

PATH = "/search"
_INPUTS = ("input", "messages")


@dataclasses.dataclass
class SearchRequest:
    """What a client searches for: `query`, or the only input of `embed`."""

    options: Options
    query: Query | None = None
    embed: EmbedRequest | None = None


def read(body: dict, model: ModelInfo, reader: InputReader) -> SearchRequest:
    """The request of a body.

    Raises:
      RequestError: a field that is malformed or unknown, or nothing to search for.
    """
    body = {name: value for name, value in body.items() if value is not None}
    if "upload" in body:
        raise bad_request("upload is of the page: give the medium as input or messages", "upload")
    try:
        if not any(name in body for name in _INPUTS):
            query, options = read_search(body)
            return SearchRequest(options, query)
        if unknown := sorted(body.keys() - set(OPTIONS) - set(_INPUTS)):
            fields = ", ".join((*_INPUTS, *OPTIONS))
            raise bad_request(f"{unknown[0][:80]!r} does not go with input; fields: {fields}")
        options = read_options({name: body[name] for name in OPTIONS if name in body})
    except UserError as error:
        raise bad_request(str(error)) from None
    inputs = read_inputs_of(body.get("input"), body.get("messages"), model, reader)
    if len(inputs) != 1:
        raise bad_request(f"a search has one input, not {len(inputs)}", "input")
    return SearchRequest(options, embed=EmbedRequest(inputs, references=reader.references))


class Searcher:
    """Searches of an index that was opened with the server's model; its methods may block."""

    def __init__(self, index: Index):
        self.index, self.live = index, LiveIndex(index)

    def describe(self) -> dict:
        return {"name": self.index.folder.name} | self.live.describe()

    def item(self, query: Query) -> Item:
        """What a query without inputs is embedded as. Raises RequestError."""
        self.live.refresh()
        try:
            item = Item(text=query.text)
            if query.path is not None:
                item = item_of_file(self.index, query)[0]
            return read_inputs([item], single=True)[0]
        except UserError as error:
            raise bad_request(str(error)) from None

    def decode(self, item: Item) -> Item:
        """The item with its media decoded, videos as moments are. Raises RequestError."""
        try:
            return self.index.decode_query(item)
        except UserError as error:
            raise bad_request(str(error), "input") from None

    def answer(self, options: Options, vector) -> dict:
        """The response, for the unit vector [D] of the query. Raises RequestError."""
        try:
            return self.live.answer(options, vector)
        except UserError as error:  # a filter on metadata that is malformed
            raise bad_request(str(error), "filters") from None
