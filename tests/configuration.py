"""Writes docs/configuration.md, the table of every config field: python -m tests.configuration"""

import dataclasses

from gve_jax.fields import field_infos
from gve_jax.running.sections import Settings
from tests.conftest import ROOT

PAGE = ROOT / "docs/configuration.md"
HEAD = """# Configuration

Generated from the dataclasses of the config by `python -m tests.configuration`; do not edit.

A config file returns the defaults with its differences (`configs/quickstart.py`). A command line
overrides a field with `--config.FIELD=VALUE`; `--config FILE --help` also shows the values of FILE.
"Resume" marks fields that may change when a run is resumed. Fields without a default are required.

## Training

| field | type | default | range | resume | meaning |
| --- | --- | --- | --- | --- | --- |
"""


def page() -> str:
    rows = []
    for field in field_infos(Settings):
        required = field.default is dataclasses.MISSING
        default = "" if required else f"`{field.default!r}`"
        resume = "yes" if field.resume else ""
        kind = f"`{field.type}`"
        cells = (f"`{field.path}`", kind, default, field.range, resume, field.help)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page())
