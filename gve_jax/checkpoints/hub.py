"""Finds models: local directories, gs:// paths, and repositories on the Hugging Face Hub.

Errors for other names (a training run, an adapter, a cache, a file) say what to pass instead.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from gve_jax.checkpoints.peft_config import CONFIG as ADAPTER_CONFIG
from gve_jax.errors import UserError
from gve_jax.storage.files import read_json
from gve_jax.storage.filesystem import as_path, is_gcs_path, local_copy

CONFIG = "config.json"
# ORG/NAME, or ORG/NAME@REVISION.
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w./-]+))?")
_FILE_KINDS = {
    ".gguf": " in GGUF format, which is not supported",
    ".safetensors": " of tensors",
    ".bin": ", a pickle, which is not supported",
}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5")


def find_directory(
    name: str | os.PathLike,
    patterns: Sequence[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """Returns a local directory, downloading from GCS or the Hub if needed.

    Args:
      name: a path, `gs://bucket/folder`, `org/name`, or `org/name@revision`.
      patterns: names of the files to download; subfolders of a gs:// path are skipped.
      revision: branch, tag or commit of a Hub id.
      token: for a private repository; by default that of `hf auth login` or HF_TOKEN.
      local_files_only: use the Hub's cache only.

    Raises:
      UserError: neither a directory nor an id that can be downloaded; a revision of a directory.
    """
    if is_gcs_path(name):
        _refuse_revision(name, revision)
        return local_copy(as_path(name), patterns)
    directory = as_path(name)
    if directory.is_dir():
        _refuse_revision(name, revision)
        return directory
    if directory.is_file():
        kind = _FILE_KINDS.get(directory.suffix, "")
        raise UserError(f"{name}: a file{kind}; give the directory of the model")
    match = _HUB_ID.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise UserError(f"{name}: no such directory")
    repository, named = match.groups()
    if named and revision and named != revision:
        raise UserError(f"{name}: differs from revision={revision!r}; give one of them")
    return _download(repository, named or revision, token, local_files_only, patterns)


def split_revision(name: str) -> tuple[str, str | None]:
    """Splits `org/name@revision`; the revision of any other name is None."""
    match = None if Path(name).exists() else _HUB_ID.fullmatch(name)
    return match.groups() if match else (name, None)


def hub_source(directory: Path) -> dict[str, str] | None:
    """Repository and commit of a directory in the Hub's cache; None for other directories."""
    snapshots, repository = directory.parent, directory.parent.parent
    if snapshots.name != "snapshots" or not repository.name.startswith("models--"):
        return None
    name = repository.name.removeprefix("models--").replace("--", "/")
    return {"repository": name, "revision": directory.name}


def check_model_directory(directory: Path) -> None:
    """Raises UserError, saying what to pass instead, unless the directory has a config.json."""
    if (directory / CONFIG).is_file():
        return
    reason = f"no {CONFIG}"
    if (directory / ADAPTER_CONFIG).is_file():
        base = read_json(directory / ADAPTER_CONFIG).get("base_model_name_or_path")
        named = repr(base) if base else "the model that it was trained from"
        reason = f"an adapter; load {named} and pass this directory as adapter="
    elif (directory / "model" / CONFIG).is_file():
        reason = f"the folder of a training run; give {directory / 'model'}"
    elif (directory / "checkpoints").is_dir():
        reason = "the folder of a training run that has not exported its model yet"
    elif (directory / "snapshots").is_dir():
        names = sorted(path.name for path in (directory / "snapshots").iterdir())
        reason = "an empty folder of the Hub's cache"
        if names:
            give = f"the repository's id or snapshots/{names[0]}"
            reason = f"a folder of the Hub's cache; give {give}"
    elif directory.name == "params" and (directory.parent / CONFIG).is_file():
        reason = f"the parameters of a model; give {directory.parent}"
    elif others := sorted(directory.glob("*.gguf")):
        reason = f"{others[0].name} is GGUF, which is not supported; give the original safetensors"
    elif hub_source(directory):
        reason = f"no {CONFIG} in the cache; load the model once without local_files_only"
    raise UserError(f"{directory}: not a model directory ({reason})")


def why_no_weights(directory: Path) -> str:
    """Explains missing safetensors and what to do, starting with "; "; "" if unknown."""
    for path in sorted(directory.glob("model*.safetensors*")):
        if path.is_symlink() and not path.exists():
            return f"; {path.name} is a broken link: download it again"
    found = sorted(path.name for kind in _PICKLES for path in directory.glob(kind))
    if found:
        return (
            f"; {found[0]} is a pickle or of another framework, which is not supported: load "
            "it with transformers and save it with save_pretrained(..., safe_serialization=True)"
        )
    if found := sorted(path.name for path in directory.glob("*.gguf")):
        return f"; {found[0]} is GGUF, which is not supported: give the original safetensors"
    if found := sorted(path.name for path in directory.glob("*.safetensors")):
        return f"; {found[0]} exists, but sharded checkpoints need their index"
    if hub_source(directory):
        return (
            "; the repository has no safetensors, or the cache is incomplete: load it once without "
            "local_files_only"
        )
    return ""


def _refuse_revision(name: str | os.PathLike, revision: str | None) -> None:
    if revision is not None:
        raise UserError(f"{name}: a directory has no revision {revision!r}; only Hub ids have one")


def _download(
    repository: str,
    revision: str | None,
    token: str | bool | None,
    local_files_only: bool,
    patterns: Sequence[str],
) -> Path:
    import huggingface_hub  # takes half a second
    from huggingface_hub import errors

    named = f"{repository}@{revision}" if revision else repository
    options = {"revision": revision, "token": token, "local_files_only": local_files_only}
    try:
        directory = huggingface_hub.snapshot_download(
            repository,
            allow_patterns=list(patterns),
            **{key: value for key, value in options.items() if value},
        )
    except errors.GatedRepoError as error:
        raise UserError(
            f"{named}: accept the repository's terms at "
            f"https://huggingface.co/{repository}, then give token= or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{named}: no such revision on the Hugging Face Hub") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{named}: no such directory, and no such repository on the Hugging Face Hub; if it is "
            "private, give token= or set HF_TOKEN"
        ) from error
    except Exception as error:  # errors of Hub, HTTP client and disk have no common base
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        where = (
            "it is not in the cache of the Hugging Face Hub"
            if local_files_only
            else "the download from the Hugging Face Hub failed"
        )
        raise UserError(f"{named}: no such directory, and {where} ({reason})") from error
    return Path(directory)
