"""Makes lora.npz: adapter directories as PEFT writes them, and the vectors PEFT gives with them.

    pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2
    python -m tests.goldens.lora

The base is the model of goldens/qwen25vl.py under its language-model head, so that modules have the
names they have in a real checkpoint. Adapters are drawn from a seed by numpy, by name, like the
base; inputs are the same items.
"""

import pathlib
import tempfile

import numpy as np

from tests.goldens import qwen25vl as base

DECODER = r"model\.language_model\.layers\.\d+\.(self_attn\.[qkv]_proj|mlp\.(gate|up|down)_proj)"
CASES = {
    # The paper's modules and, by expression, nothing of the tower.
    "paper": dict(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=DECODER),
    # By name: the tower's MLPs have the decoder's names and are adapted with them.
    "names": dict(
        r=3,
        lora_alpha=6,
        use_rslora=True,
        exclude_modules=["model.visual.merger.mlp.2"],
        target_modules=["q_proj", "o_proj", "gate_proj", "down_proj", "qkv", "mlp.0", "mlp.2"],
    ),
    # Everything but the tower; PEFT turns fan_in_fan_out off for nn.Linear.
    "linear": dict(
        r=2,
        lora_alpha=3,
        target_modules="all-linear",
        exclude_modules=r"model\.visual\..*",
        fan_in_fan_out=True,
        init_lora_weights="orthogonal",
    ),
}
# Merged when loaded; the magnitudes are the lengths of the base's columns by drawn factors.
DORA = dict(
    r=3,
    lora_alpha=6,
    use_rslora=True,
    use_dora=True,
    target_modules=["q_proj", "o_proj", "gate_proj", "down_proj", "qkv", "mlp.0"],
)


def draw_adapter(name: str, shape) -> np.ndarray:
    return base.draw(name, shape, 0.5 * shape[1] ** -0.5)


def main():
    import peft
    import torch
    import transformers
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config=base.text_config(base.CONFIG["text"], 1_000_000.0),
        vision_config=base.CONFIG["vision"] | {"tokens_per_second": 2},
        **base.TOKEN_IDS,
    )
    config._attn_implementation = "eager"
    used = (transformers, torch, peft)
    out = {"versions": np.array([f"{module.__name__} {module.__version__}" for module in used])}
    for case, settings in (CASES | {"dora": DORA}).items():
        model = Qwen2_5_VLForConditionalGeneration(config).eval()
        weights = {
            name: torch.from_numpy(
                base.draw_weight(name.removeprefix("model."), tuple(value.shape))
            )
            for name, value in model.state_dict().items()
        }
        model.load_state_dict(weights)
        adapted = peft.get_peft_model(model, peft.LoraConfig(**settings)).eval()
        for name, value in adapted.named_parameters():
            if "lora_magnitude_vector" in name:
                value.data *= torch.from_numpy(1 + base.draw(name, tuple(value.shape), 0.3))
            elif "lora_" in name:
                drawn = draw_adapter(name.replace(".default.", "."), tuple(value.shape))
                value.data = torch.from_numpy(drawn)
        with tempfile.TemporaryDirectory() as directory:
            adapted.save_pretrained(directory)
            if case == "dora":
                out["dora/state_dict"] = np.array([n for n in adapted.state_dict() if "lora_" in n])
            out[f"{case}/modules"] = np.array(
                sorted(
                    {
                        name.partition(".lora_A")[0].removeprefix("base_model.model.")
                        for name, _ in adapted.named_parameters()
                        if ".lora_A" in name
                    }
                )
            )
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                data = (pathlib.Path(directory) / name).read_bytes()
                out[f"{case}/{name}"] = np.frombuffer(data, np.uint8)
        out[f"{case}/pooled"] = np.stack([pooled(model.model, n) for n in range(len(base.ITEMS))])
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **out)


def pooled(model, number: int) -> np.ndarray:
    """The unit vector of an item, by torch."""
    import torch

    hidden = base.hidden_states(model, *base.example(number, base.ITEMS[number]))
    return torch.nn.functional.normalize(hidden[-1], dim=-1).numpy()


if __name__ == "__main__":
    main()
