"""Configuration in and out: YAML with `_BASE_` and `KEY VALUE` pairs to the typed tree, and back."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from typing import Any

import yaml

from lgd.config.check import check_config, find_doubtful
from lgd.config.keys import flatten, with_values
from lgd.config.read import read_file, read_overrides
from lgd.config.recipes import find_recipe
from lgd.config.schema import Config
from lgd.config.values import ConfigError

__all__ = ["ConfigError", "config_hash", "dump_config", "load_config"]

logger = logging.getLogger(__name__)


def load_config(recipe: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """Load a recipe.

    Args:
        recipe: a YAML file, or the name of a recipe of the package (see `find_recipe`). `_BASE_` in it names
            what it builds on likewise, relative to itself.
        overrides: KEY VALUE pairs, which win over the file: ["SOLVER.MAX_ITER", "1000"].

    Returns:
        The checked tree. What is set but will not have the effect it seems to have is logged as a warning.

    Raises:
        ConfigError: one line naming file, key, value and what to write instead.
    """
    settings = {**read_file(find_recipe(recipe)), **read_overrides(overrides)}
    cfg = with_values(Config(), {name: setting.value for name, setting in settings.items()})
    check_config(cfg)
    for line in find_doubtful(cfg, settings):
        logger.warning(line)
    return cfg


def dump_config(cfg: Config) -> str:
    """Write every setting as YAML that `load_config` turns into an equal tree."""
    return yaml.dump(_nest(flatten(cfg)), Dumper=_Dumper, sort_keys=False, width=4096)


def config_hash(cfg: Config) -> str:
    """SHA-256 of all settings, in hexadecimal digits: equal for equal trees."""
    return hashlib.sha256(dump_config(cfg).encode()).hexdigest()


def _nest(values: dict[str, Any]) -> dict[str, Any]:
    """{"A.B": 1} to {"A": {"B": 1}}."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *sections, last = name.split(".")
        section = nested
        for part in sections:
            section = section.setdefault(part, {})
        section[last] = value
    return nested


class _Dumper(yaml.SafeDumper):
    """Sections a line per key, lists in brackets on one."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal lists out each time."""
        return True


_Dumper.add_representer(
    tuple, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)
