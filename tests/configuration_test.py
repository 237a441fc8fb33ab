"""Every config field is documented, and the page of the fields is current."""

import sys

import pytest

from gve_jax import plan, train
from gve_jax.fields import field_infos
from gve_jax.running.sections import Settings, base_config
from tests.configuration import PAGE, page

FIELDS = field_infos(Settings)


def test_page_is_current():
    assert PAGE.read_text() == page(), "run python -m tests.configuration"


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.path)
def test_field_has_a_comment(field):
    assert field.help and not field.help.endswith(".")


def test_base_config_holds_no_undeclared_field():
    declared = {field.path for field in FIELDS}

    def paths(config, prefix=""):
        for name, value in config.items():
            path = prefix + name
            yield from [path] if path in declared else paths(value, f"{path}.")

    assert set(paths(base_config())) <= declared


@pytest.mark.parametrize("command", [train, plan])
def test_help_with_a_config_lists_every_field(command, monkeypatch, capsys):
    argv = ["command", "--config", "configs/gve_3b.py:smoke", "--help"]
    monkeypatch.setattr(sys, "argv", argv)
    command.main()
    lines = capsys.readouterr().out.splitlines()
    for field in FIELDS:
        assert any(line.startswith(f"{field.path} = ") for line in lines), field.path
    number = lines.index("batch_size = 8")
    assert lines[number + 1].endswith("(required; at least 1)")
