"""Vectors of each profile, compared with MTEB's own wrapper (mteb 2.26.24, transformers 5.23), at
random weights, in float32.

Both sides get the same texts, images of odd sizes, and videos as frames, and do everything else
themselves: instruction, prompt, sizes, resizing, tokens, positions, pooling. Where a wrapper on
this transformers is known to differ from the release, it is set right here, and the page says so.
"""

import dataclasses
import itertools
import json
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evals.parity.compare import FLOAT32, Line
from evals.parity.reference import import_torchvision, write_checkpoint
from gve_jax.gve import GVE
from gve_jax.inputs.profiles import find_profile

KINDS = ("text", "image", "video", "image and video")
INSTRUCTION = "Find the clip. "  # RzenEmbed's end in a space
# VLM2Vec's wrapper has instructions in a table by task: this is a query's.
TASK = ("MSRVTTT2V", "Find a video that contains the following visual content:")
_TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' and default %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c['type'] == 'video' %}{{ video }}"
    "{% elif 'text' in c %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A profile beside its wrapper.

    Attributes:
      profile: its name.
      open: makes the wrapper of a checkpoint directory; returns it and a context for `encode`.
      size: of the checkpoint.
      note: what is set right in the wrapper, or cannot be compared.
      instructions: to compare with; "" for none.
      beside: options of our item for an image beside a video; None if it is not compared.
    """

    profile: str
    open: Callable[[Path], Any]
    size: str = "qwen2vl-small"
    note: str = ""
    instructions: tuple[str, ...] = ("", INSTRUCTION)
    beside: dict | None = None


def _rzen(folder: Path):
    from mteb.models.model_implementations.rzen_embed_model import RzenEmbedWrapper

    return RzenEmbedWrapper(str(folder), device="cpu")


def _gme(folder: Path):
    """GME's own wrapper needs transformers below 4.52; RzenEmbed's computes the same."""
    from mteb.models.model_implementations.rzen_embed_model import RzenEmbedWrapper

    return RzenEmbedWrapper(
        str(folder), device="cpu", max_length=8192, min_video_tokens=4, max_video_tokens=200
    )


def _ops(folder: Path):
    from mteb.models.model_implementations.ops_mm_models import OpsMMEmbeddingWrapper

    return OpsMMEmbeddingWrapper(str(folder), device="cpu")


def _unite(folder: Path):
    from mteb.models.model_implementations.unite_models import UniteWrapper
    from transformers import Qwen2VLForConditionalGeneration

    wrapper = UniteWrapper(str(folder), None, device="cpu")
    # transformers 5 lets these, meant for images, override the wrapper's limits of videos.
    for name in ("min_pixels", "max_pixels"):
        wrapper.processor.tokenizer.init_kwargs.pop(name)
    model = wrapper.model.float()
    # transformers 5 renames the tensors of a checkpoint for its own classes only.
    plain = Qwen2VLForConditionalGeneration.from_pretrained(folder)
    model.load_state_dict(plain.state_dict())
    tower = model.model.visual

    class Visual:  # transformers 4's attribute, which returned the merged tokens
        get_dtype = staticmethod(lambda: tower.dtype)

        def __call__(self, pixels, grid_thw):
            return tower(pixels, grid_thw=grid_thw).pooler_output

    object.__setattr__(model, "visual", Visual())
    return wrapper


def _vlm2vec(folder: Path):
    import peft
    import torch
    from mteb.models.model_implementations.vlm2vec_models import VLM2VEC2Wrapper
    from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

    adapter = folder.parent / "VLM2Vec"
    base = Qwen2VLForConditionalGeneration.from_pretrained(folder)
    targets = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=targets, use_dora=True, init_lora_weights=False
    )
    torch.manual_seed(0)  # of the adapter's weights
    peft.get_peft_model(base, config).save_pretrained(adapter)
    AutoProcessor.from_pretrained(folder).save_pretrained(adapter)
    load = Qwen2VLForConditionalGeneration.from_pretrained.__func__

    def from_folder(cls, name, *args, **kwargs):
        return load(cls, str(folder), *args, **kwargs)  # the wrapper names the Hub's

    Qwen2VLForConditionalGeneration.from_pretrained = classmethod(from_folder)
    try:
        wrapper = VLM2VEC2Wrapper(
            model=str(adapter), revision=None, device="cpu", torch_dtype="float32"
        )
    finally:
        Qwen2VLForConditionalGeneration.from_pretrained = classmethod(load)
    wrapper.model.model.compute_3d_position_ids = lambda *args, **kwargs: None
    return wrapper


def _qwen3(folder: Path):
    from mteb.models.model_implementations.qwen3_vl_embedding_models import Qwen3VLEmbeddingWrapper

    names = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{name}"}
        for n, (path, name) in enumerate(names.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    width = json.loads((folder / "config.json").read_text())["text_config"]["hidden_size"]
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": width, "pooling_mode_lasttoken": True}
    pooling |= {"pooling_mode_mean_tokens": False, "include_prompt": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    forward = {"method": "forward", "method_output_name": "last_hidden_state"}
    modalities = {name: forward for name in ("text", "image", "video")}
    modalities["message"] = forward | {"format": "structured"}
    settings = {
        "transformer_task": "feature-extraction",
        "modality_config": modalities,
        "module_output_name": "token_embeddings",
        "processing_kwargs": {"chat_template": {"add_generation_prompt": True}},
    }
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    return Qwen3VLEmbeddingWrapper(str(folder), device="cpu")


_RZEN_VIDEO = dict(min_pixels=160 * 28**2, max_pixels=180 * 28**2)
CASES = (
    Case("gme", _gme, note="by RzenEmbed's wrapper, with GME's place of the instruction"),
    Case(
        "unite",
        _unite,
        note="tower's output and limits of videos as on transformers 4; clips resized in uint8",
        instructions=("",),
    ),
    Case(
        "vlm2vec-v2",
        _vlm2vec,
        note="positions in sequence, as on transformers 4; DoRA adapter; media with text only "
        "with an instruction, without which MTEB writes a second space",
        instructions=("", TASK[1]),
        beside={},
    ),
    Case(
        "rzenembed",
        _rzen,
        note="an image beside a video has the video's limits in MTEB: given to our item",
        beside=_RZEN_VIDEO,
    ),
    Case("ops-mm", _ops, beside={}),
    Case(
        "qwen3-vl-embedding",
        _qwen3,
        "qwen3vl-small",
        note="no vision tokens around a video's, which transformers 5.10 leaves there; keys in the "
        "release's order; frames at MTEB's 24 a second, with sides that its first resizing keeps",
        beside={},
    ),
)


def draw_items() -> list[tuple[str, dict]]:
    """(kind, item) with the keys of MTEB's batches; frames are uint8 [T, H, W, 3]."""
    rng = np.random.default_rng(0)

    def pixels(*shape):
        return rng.integers(0, 256, (*shape, 3)).astype(np.uint8)

    # Smooth pictures, as photographs are: of noise, resizing by two libraries differs most.
    def picture(height, width):
        from PIL import Image

        return Image.fromarray(pixels(height // 12, width // 12)).resize((width, height))

    def video(count, height, width):
        return np.stack([np.asarray(picture(height, width)) for _ in range(count)])

    # Sides of videos are multiples of 32: MTEB resizes Qwen3-VL's twice, first to such sides.
    few = video(4, 96, 128)
    return [
        ("text", {"text": "a wheel"}),
        ("text", {"text": "a longer text, naïve 日本, read by a byte at a time\n\n with lines"}),
        ("image", {"image": picture(90, 70)}),
        ("image", {"image": picture(640, 360)}),
        ("image", {"image": picture(1400, 1100)}),
        ("image", {"image": picture(24, 36)}),
        ("image", {"image": picture(211, 333), "text": "what is it?"}),
        ("video", {"video": video(8, 96, 128)}),
        ("video", {"video": video(5, 160, 224)}),
        ("video", {"video": video(2, 800, 1408)}),
        ("video", {"text": "it moves", "video": video(4, 192, 320)}),
        ("image and video", {"image": picture(96, 160), "video": few}),
        ("image and video", {"image": picture(96, 160), "video": few, "text": "both"}),
    ]


def compare_profiles(folder: Path, names: Sequence[str]) -> Iterator[Line]:
    """The smallest cosine of each of the profiles, by kind of item."""
    import_torchvision()
    import transformers

    transformers.logging.set_verbosity_error()
    for case in (case for case in CASES if case.profile in names):
        source = folder / f"profile-{case.profile}" / "model"
        write_checkpoint(source, case.size)
        _write_processor(source, case.size)
        wrapper = case.open(source)
        adapter = source.parent / "VLM2Vec"
        ours = GVE.from_pretrained(
            source,
            profile=case.profile,
            dtype=FLOAT32,
            adapter=adapter if adapter.is_dir() else None,
        )
        worst: dict[str, float] = {}
        for (kind, item), instruction in itertools.product(draw_items(), case.instructions):
            options = {"num_frames": "all", "fps": 24.0} if "video" in item else {}
            if kind == KINDS[-1]:
                if case.beside is None:
                    continue
                options |= case.beside
            wanted = _encode(wrapper, case, item, instruction)
            if wanted is None:
                continue
            found = ours.encode(item | options, prompt=instruction or None)
            worst[kind] = min(worst.get(kind, 1.0), float(np.sum(found * wanted)))
        for kind, value in worst.items():
            yield Line(case.profile, kind, FLOAT32, "cosine", value, 0.99999)


def _encode(wrapper, case: Case, item: dict, instruction: str) -> np.ndarray | None:
    """The wrapper's vector; None if its prompt is known to differ."""
    import torch
    from mteb.types import PromptType

    # Sentence Transformers writes an item in the order of its keys.
    order = [key for key in find_profile(case.profile).user if key in item]
    batch = {key: [item[key]] for key in order}
    if "video" in batch:
        batch["video"] = [torch.from_numpy(item["video"]).permute(0, 3, 1, 2)]

    class Loader:
        dataset = types.SimpleNamespace(features=dict.fromkeys(batch))
        collate_fn = None

        def __iter__(self):
            yield dict(batch)

    task, side = "any", PromptType.query
    if case.profile == "vlm2vec-v2":
        if instruction or order == ["video"]:  # a video alone has a document's instruction
            task, side = TASK[0], PromptType.query if instruction else PromptType.document
        elif len(order) > 1:
            return None
    prompt = {"query": instruction} if instruction else None
    if case.profile == "gme":  # RzenEmbed's wrapper writes instructions into the user turn
        wrapper.default_instruction = instruction or "You are a helpful assistant."
        prompt = None
    metadata = types.SimpleNamespace(name=task, prompt=prompt, type="Retrieval")
    vectors = wrapper.encode(
        Loader(),
        task_metadata=metadata,
        hf_split="",
        hf_subset="",
        prompt_type=side,
        show_progress_bar=False,
    )
    return np.asarray(vectors, np.float32)[0]


def _write_processor(folder: Path, size: str) -> None:
    """The files beside the weights from which transformers makes a processor, as released."""
    config = json.loads((folder / "config.json").read_text())
    if size.startswith("qwen3"):
        base = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
        base |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        base["processor_class"] = "Qwen3VLProcessor"
        image = {"size": {"longest_edge": 16_777_216, "shortest_edge": 65_536}}
        video = {"size": {"longest_edge": 25_165_824, "shortest_edge": 4096}}
        image["image_processor_type"] = "Qwen2VLImageProcessorFast"
        video["video_processor_type"] = "Qwen3VLVideoProcessor"
        (folder / "video_preprocessor_config.json").write_text(json.dumps(base | video))
        (folder / "preprocessor_config.json").write_text(json.dumps(base | image))
    else:
        fields = dict(min_pixels=3136, max_pixels=1_003_520, patch_size=14, temporal_patch_size=2)
        fields |= dict(merge_size=2, image_processor_type="Qwen2VLImageProcessor")
        fields |= dict(processor_class="Qwen2VLProcessor")
        fields |= dict(image_mean=[0.48145466, 0.4578275, 0.40821073])
        fields |= dict(image_std=[0.26862954, 0.26130258, 0.27577711])
        (folder / "preprocessor_config.json").write_text(json.dumps(fields))
    tokenizer = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 32_768,
        "padding_side": "left",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    is_qwen3 = config["model_type"] == "qwen3_vl"
    video = "<|video_pad|>" if is_qwen3 else "<|vision_start|><|video_pad|><|vision_end|>"
    default = "false" if is_qwen3 else "true"
    template = "{% set default = " + default + " %}{% set video = '" + video + "' %}" + _TEMPLATE
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
