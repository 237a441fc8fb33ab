"""An MTEB encoder as an encoder of `evals.uvrb`: `--mteb NAME`.

MTEB's wrappers sample, resize and prompt as their authors do. They get videos as stand-ins for
torchcodec's VideoDecoder, whose frames our sandbox decodes, so torchcodec is not needed.
"""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import mteb
import numpy as np
import torch
from mteb._create_dataloaders import _custom_collate_fn
from mteb.types import PromptType
from PIL import Image
from torch.utils.data import DataLoader

from data.uvrb.tasks import TASKS
from evals.mteb.files import MODALITIES
from evals.mteb.tasks import metadata
from gve_jax.errors import UserError
from gve_jax.inputs.preprocess import reorder
from gve_jax.media.errors import MediaError
from gve_jax.media.item import as_item
from gve_jax.media.quarantine import failure
from gve_jax.media.sandbox import Sandbox
from gve_jax.retrieval.tiles import NORM_TOLERANCE

BATCH = 8


def open_mteb(name: str, sandbox: Sandbox) -> "MTEBEncoder":
    """Loads a model by MTEB's name of it, or by the path of a Sentence Transformers model.

    Raises:
      UserError: an unknown name, weights that cannot be loaded, or a package that is missing.
    """
    try:
        return MTEBEncoder(mteb.get_model(name), name, sandbox)
    except UserError:
        raise
    except Exception as error:  # of MTEB, the model's authors and HTTP libraries: no common base
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"--mteb {name}: {reason[0]}") from error


class MTEBEncoder:
    """Implements `Encoder`.

    Args:
      model: an MTEB encoder.
      name: MTEB's name of it.
      sandbox: reads media.
    """

    chunk = 64  # items that are embedded and stored together

    def __init__(self, model, name: str, sandbox: Sandbox):
        self._model, self._name, self._sandbox = model, name, sandbox
        self.embedding_dim = self._encode([{"text": "a red ball"}], None).shape[1]
        self.fingerprint = {
            "framework": "PyTorch",
            "mteb": name,
            "revision": getattr(getattr(model, "mteb_model_meta", None), "revision", None),
            "mteb_version": mteb.__version__,
        }

    @property
    def sandbox(self) -> dict | None:
        return self._sandbox.held

    def encode_valid(
        self, inputs: Sequence[dict], ids: Sequence[str], quarantine
    ) -> tuple[np.ndarray, np.ndarray]:
        """Unit rows float32 [N valid, D] and valid bool [N]."""
        rows: dict[int, np.ndarray] = {}
        for group in _groups(inputs):
            items = [inputs[index] for index in group]
            try:
                rows |= zip(group, self._vectors(items), strict=True)
                continue
            except MediaError:
                pass  # of which item is seen when each is embedded alone
            for index in group:
                try:
                    rows[index] = self._vectors([inputs[index]])[0]
                except MediaError as error:
                    item = as_item(inputs[index])
                    line = failure(ids[index], item, str(error), 0.0, error.retry)
                    quarantine.record(**line)
        found = np.array([rows[index] for index in sorted(rows)], np.float32)
        valid = np.array([index in rows for index in range(len(inputs))], bool)
        return found.reshape(-1, self.embedding_dim), valid

    def _vectors(self, items: Sequence[dict]) -> np.ndarray:
        """Unit rows of items with the same modalities and instruction."""
        vectors = self._encode(items, items[0].get("instruction"))
        if vectors.shape != (len(items), self.embedding_dim):
            raise UserError(
                f"--mteb {self._name}: vectors {list(vectors.shape)} of {len(items)} items, "
                f"not of {self.embedding_dim} dimensions"
            )
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not (np.isfinite(lengths).all() and lengths.all()):
            raise MediaError("the model: a vector with NaN or infinite numbers, or of zeros")
        unit = np.abs(lengths - 1) <= NORM_TOLERANCE
        return np.where(unit, vectors, vectors / lengths)

    def _encode(self, items: Sequence[dict], instruction: str | None) -> np.ndarray:
        rows = _Rows(items, self._sandbox)
        loader = DataLoader(rows, batch_size=BATCH, collate_fn=_custom_collate_fn)
        kinds = sorted(rows.features.keys() & set(MODALITIES))
        is_query = instruction is not None
        task = metadata(TASKS[0]).model_copy(
            update={
                "name": "UVRB",
                "prompt": {"query": instruction} if instruction else None,
                "modalities": kinds,
                "category": f"{''.join(kind[0] for kind in kinds)}2v",
            }
        )
        vectors = self._model.encode(
            loader,
            task_metadata=task,
            hf_split="test",
            hf_subset="default",
            prompt_type=PromptType.query if is_query else PromptType.document,
            batch_size=BATCH,
            show_progress_bar=False,
        )
        if isinstance(vectors, torch.Tensor):
            vectors = vectors.detach().cpu().float().numpy()
        return np.asarray(vectors, np.float64)


class VideoDecoder:
    """The part of torchcodec's VideoDecoder that MTEB's collators use; decodes in the sandbox.

    order: see `Item.frame_order`; applied to the frames that a collator selects.
    """

    def __init__(self, path: str, order: str, sandbox: Sandbox):
        self._path, self._order, self._sandbox = path, order, sandbox
        self._outline = sandbox.outline(path)
        seconds = self._outline.seconds
        self.metadata = SimpleNamespace(
            num_frames=self._outline.total,
            end_stream_seconds=seconds,
            duration_seconds=seconds,
            average_fps=self._outline.total / seconds if seconds else None,
        )

    def __len__(self) -> int:
        return self.metadata.num_frames

    def get_frames_at(self, indices: Sequence[int]) -> SimpleNamespace:
        """`data` uint8 [T, 3, H, W] of the frames, in the order of the indices."""
        wanted, positions = np.unique(np.asarray(indices), return_inverse=True)
        found = self._sandbox.pictures(self._path, wanted.tolist(), self._outline)
        frames = np.ascontiguousarray(reorder(found[positions], self._order))
        return SimpleNamespace(data=torch.from_numpy(frames).permute(0, 3, 1, 2))


class _Rows:
    """Items as the rows of an MTEB dataset."""

    def __init__(self, items: Sequence[dict], sandbox: Sandbox):
        self._items, self._sandbox = items, sandbox
        kinds = [kind for kind in MODALITIES if items[0].get(kind)]
        self.features = dict.fromkeys(("id", *kinds))
        self.column_names = list(self.features)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict:
        item, row = self._items[index], {"id": str(index)}
        if item.get("text"):
            row |= {"text": item["text"], "query": item["text"]}
        if item.get("image"):
            size = self._sandbox.header(item["image"], "image")
            image = as_item({"image": item["image"]})
            clip = self._sandbox.thumbnails(image, 1, size.height, size.width)  # as it is
            row["image"] = Image.fromarray(clip.frames[0])
        if item.get("video"):
            order = item.get("frame_order", "forward")
            row["video"] = VideoDecoder(item["video"], order, self._sandbox)
        return row


def _groups(inputs: Sequence[dict]) -> Iterator[list[int]]:
    """Indices of the items of each call: columns and instruction of a dataset are the same for all
    of its rows."""
    groups: dict[tuple, list[int]] = {}
    for index, item in enumerate(inputs):
        kinds = tuple(kind for kind in MODALITIES if item.get(kind))
        groups.setdefault((item.get("instruction"), kinds), []).append(index)
    yield from groups.values()
