"""INPUT.AUGMENTATIONS from files and the command line; what is wrong with entries is in `test_errors`."""

import re
from dataclasses import fields, replace
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest

from lgd.config.augmentation_schema import KINDS, read_entry
from lgd.config.check import check_config
from lgd.config.load import ConfigError, config_hash, dump_config, load_config
from lgd.config.schema import Config
from tests.training import REPOSITORY

TEXT = "[{NAME: mosaic, PROBABILITY: 1e-1}, {NAME: large_scale_jitter, SIZE: (64, 96), SCALE: [1, 2]}]"


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


def test_files_and_the_command_line_say_the_same(recipe):
    from_file = load_config(recipe(f"INPUT: {{AUGMENTATIONS: {TEXT.replace('(64, 96)', '[64, 96]')}}}"))
    typed = load_config(recipe(""), ["INPUT.AUGMENTATIONS", TEXT.replace("(64, 96)", "[64, 96]")])
    assert from_file == typed
    mosaic, jitter = typed.input.augmentations
    assert mosaic == {
        "NAME": "mosaic", "PROBABILITY": 0.1, "SCALE": (0.5, 1.0), "CENTER": (0.3, 0.7), "MIN_VISIBLE": 0.1,
    }  # fmt: skip
    assert (jitter["SIZE"], jitter["SCALE"], jitter["PROBABILITY"]) == ((64, 96), (1.0, 2.0), 1.0)


def test_an_empty_list_takes_a_recipes_away(recipe):
    path = recipe("INPUT: {AUGMENTATIONS: [{NAME: mosaic}]}")
    assert load_config(path, ["INPUT.AUGMENTATIONS", "[]"]).input.augmentations == ()
    assert Config().input.augmentations == ()


def test_what_is_written_out_is_read_again(recipe):
    plain = load_config(recipe(""))
    cfg = load_config(recipe(""), ["INPUT.AUGMENTATIONS", f"[{', '.join(f'{{NAME: {k}}}' for k in KINDS)}]"])
    assert len(cfg.input.augmentations) == len(KINDS)
    assert load_config(recipe(dump_config(cfg))) == cfg
    assert config_hash(cfg) != config_hash(plain)


def test_a_tree_made_by_hand_is_checked():
    cfg = replace(Config(), input=replace(Config().input, augmentations=({"NAME": "mosaics"},)))
    with pytest.raises(ConfigError, match="did you mean mosaic"):
        check_config(cfg)


def test_no_recipe_of_the_package_has_any():
    assert not [
        path for path in (REPOSITORY / "configs").rglob("*.yaml") if "AUGMENTATIONS" in path.read_text()
    ]


@pytest.mark.parametrize("name", KINDS)
def test_every_key_says_what_it_is_and_has_a_default_that_may_be(name):
    for attribute, declared in get_type_hints(KINDS[name], include_extras=True).items():
        assert get_origin(declared) is Annotated, attribute
        assert [extra for extra in get_args(declared)[1:] if isinstance(extra, str)], attribute
    entry = read_entry({"NAME": name})
    assert read_entry(entry) == entry
    assert entry.keys() == {"NAME", *(field.name.upper() for field in fields(KINDS[name]))}


@pytest.mark.parametrize("name", KINDS)
def test_the_documentation_has_every_key_with_its_default(name):
    (row,) = re.findall(rf"^\| `{name}` \|.*$", (REPOSITORY / "docs/datasets.md").read_text(), re.MULTILINE)
    said = dict(re.findall(r"`([A-Z_]+) ([^`]+)`", row))
    for field in fields(KINDS[name]):
        default = field.default
        text = f"[{', '.join(f'{x:g}' for x in default)}]" if isinstance(default, tuple) else str(default)
        assert said[field.name.upper()].removesuffix(".0") == text.removesuffix(".0")
