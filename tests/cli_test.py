"""Configuration files and command lines: what is wrong with them is one line."""

import re
import sys

import pytest
from absl import flags

from gve_jax.cli import load_config, parse_arguments
from gve_jax.errors import UserError
from gve_jax.fields import field_infos
from gve_jax.running.sections import Settings, read_settings
from tests.conftest import ROOT
from tests.situations import situation

GOOD = (
    "from ml_collections import ConfigDict\ndef get_config(form=''):\n"
    "    return ConfigDict(dict(form=form, rate=0.5, part=dict(size=3)))\n"
)


@situation(
    "Training",
    "a configuration file that does not exist, has no such form, fails, or "
    "whose get_config() returns nothing",
    "one line that names the file, and the line in it",
    since="0.2.0",
)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "def get_config(): pass\n",
            r"must return a ConfigDict, not nothing: it may lack a return",
        ),
        ("def get_config(): return {}\n", "must return a ConfigDict, not dict"),
        ("x = 1\n", r"the file has no function get_config\(\)"),
        ("x = 1\ndef get_config(:\n", "line 2: SyntaxError: invalid syntax"),
        ("def get_config():\n    return y\n", "line 2: NameError: name 'y' is not defined"),
        ("\nimport no_such_module\n", "line 2: ModuleNotFoundError: No module named"),
        ("def get_config():\n    a = 1\n    return 1 / 0\n", "line 3: ZeroDivisionError"),
    ],
)
def test_a_file_that_fails_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "c.py"
    path.write_text(text)
    with pytest.raises(UserError, match=f"^--config {path}: .*{message}") as error:
        load_config(str(path))
    assert "\n" not in str(error.value)


def test_other_files_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=f"--config {tmp_path}/none.py: no such file"):
        load_config(f"{tmp_path}/none.py")
    with pytest.raises(UserError, match="is a folder, not a file"):
        load_config(str(tmp_path))
    with pytest.raises(UserError, match="is empty"):
        load_config("")
    with pytest.raises(UserError, match="gve_3b.py:bogus: this configuration has no form 'bogus'"):
        load_config(f"{ROOT}/configs/gve_3b.py:bogus")


@pytest.mark.parametrize("name", ["a:b.py", "lr=1,{x} [1].py", "config"])
def test_a_file_may_have_any_name(tmp_path, name):
    (tmp_path / name).write_text(GOOD)
    assert load_config(f"{tmp_path}/{name}").form == ""
    assert load_config(f"{tmp_path}/{name}:small").form == "small"


def test_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.py").write_text(GOOD)
    assert load_config("~/c.py").rate == 0.5


def parse(tmp_path, *arguments):
    (tmp_path / "c.py").write_text(GOOD)
    values = flags.FlagValues()
    workdir = flags.DEFINE_string("workdir", None, "", flag_values=values)
    argv = ["train", f"--config={tmp_path}/c.py", *arguments]
    return parse_arguments(argv, values, "python -m it"), workdir.value


def test_fields_are_overridden_and_flags_parsed(tmp_path):
    config, workdir = parse(
        tmp_path, "--config.rate=1e-4", "--workdir", "runs/lr=1e-4", "--config.part.size=7"
    )
    assert (config.rate, config.part.size, workdir) == (1e-4, 7, "runs/lr=1e-4")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.rat=1", "^--config.rat: unknown field 'rat'; did you mean config.rate[?]$"),
        ("--config.rate=None", "--config.rate='None' must be a number"),
        ("--config.foo=1", "^--config.foo: unknown field 'foo'; known: form, part, rate$"),
        ("--config.part.sizes=1", "unknown field 'sizes'; did you mean config.part.size[?]$"),
        ("--config.rate.x=1", "^--config.rate.x: config.rate has no fields$"),
        ("--config.part=3", "--config.part='3' must be a mapping"),
        ("--config.part.size=1.5", "--config.part.size='1.5' must be an integer"),
        ("--nope", "Unknown command line flag 'nope'"),
        ("extra", "unknown argument 'extra'"),
    ],
)
def test_a_wrong_argument_is_one_line(tmp_path, argument, message):
    with pytest.raises(UserError, match=message) as error:
        parse(tmp_path, argument)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["abc", ""])
def test_a_value_of_a_wrong_type_is_one_line_for_every_field(value):
    named = 0
    for info in field_infos(Settings):
        if "str" in info.type and not info.range:  # takes any text
            continue
        flag = f"--config.{info.path}={value}"
        argv = ["train", f"--config={ROOT}/configs/gve_3b.py", flag]
        with pytest.raises(UserError) as error:
            read_settings(parse_arguments(argv, flags.FlagValues(), "python -m it"))
        message = str(error.value)
        assert info.path in message and re.search("must|unknown field", message), (flag, message)
        assert "\n" not in message
        named += 1
    assert named > 60


def test_a_file_finds_what_is_beside_it_and_in_its_checkout(tmp_path, monkeypatch):
    """Wherever the command runs; `sys.path` stays as it was."""
    (tmp_path / "settings").mkdir()
    for name, text in (("base_of_it", "rate = 0.5\n"), ("settings/other_of_it", "step = 3\n")):
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "settings" / "c.py").write_text(
        "import base_of_it, other_of_it\nfrom settings import other_of_it as same\n"
        "from ml_collections import ConfigDict\n"
        "def get_config():\n    return ConfigDict(dict(rate=base_of_it.rate, step=same.step))\n"
    )
    monkeypatch.chdir("/")
    before = list(sys.path)
    config = load_config(f"{tmp_path}/settings/c.py")
    assert (config.rate, config.step, sys.path) == (0.5, 3, before)


def test_without_a_file_the_flag_is_named():
    with pytest.raises(UserError, match="--config is missing; see python -m it --help"):
        parse_arguments(["train"], flags.FlagValues(), "python -m it")
