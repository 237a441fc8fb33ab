"""How items are sent to a server."""

from dataclasses import dataclass

API_NAMES = ("openai", "cohere", "voyage")
MEDIA = ("video", "frames")
INSTRUCTIONS = ("system", "text", "none")


@dataclass(frozen=True)
class Options:
    """How items are sent.

    Attributes:
      api: a key of `apis.APIS`.
      media: "video" sends files as they are, "frames" `frames` frames of them as images.
      instruction_as: "system" message, before the "text", or "none".
      batch: texts of a request.
      concurrency: requests at once.
      dimensions: asked of the server; None for its default.
    """

    api: str = "openai"
    media: str = "video"
    frames: int = 8
    instruction_as: str = "system"
    batch: int = 1
    concurrency: int = 8
    dimensions: int | None = None
