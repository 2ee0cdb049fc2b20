"""The reference's recipes as YAML, spelt as it spells; what they say lies in tests/parity/recipes.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from tests.parity.case import nest

_RECORDED = json.loads((Path(__file__).parents[1] / "parity" / "recipes.json").read_text())
_FOLDER = "configs/Distillation/"
_BACKBONES = {
    "R_50": "r50",
    "R_101": "r101",
    "R_101_dcnv2": "r101_dcn",
    "X_101_dcnv2": "x101_dcn",
    "Swin_Tiny": "swin_t",
}

ADDED_KEYS: dict[str, Any] = _RECORDED["added_keys_and_defaults"]
"""Keys that the reference adds to detectron2's, and their defaults."""

BASES = {
    name.removeprefix("configs/"): settings
    for name, settings in _RECORDED["released"].items()
    if not name.startswith(_FOLDER)
}
"""Flattened settings of the reference's base files, by their names, which ours have as well."""


def _recipes(group: str) -> dict[str, dict[str, Any]]:
    """Flattened settings by the recipe's path below configs/Distillation, without the suffix."""
    return {
        name.removeprefix(_FOLDER).removesuffix(".yaml"): settings
        for name, settings in _RECORDED[group].items()
        if name.startswith(_FOLDER)
    }


def _spell(value: Any) -> Any:
    """`1e-04` and `(60000, 80000,)`: to YAML 1.1 both are strings."""
    if isinstance(value, list) and not isinstance(value[0], list):
        return f"({', '.join(map(repr, value))},)"
    return re.sub(r"\.?0*e\+?", "e", f"{value:e}") if isinstance(value, float) else value


def _ours(name: str) -> str:
    """The file below our configs/ that stands for a recipe of the reference."""
    found = re.fullmatch(r"\w+/(\w+?)_([RXS]\w+)_(\dx)(MS|SS)_stuGuided_.*", name)
    assert found, name
    detector, backbone, schedule, scale = found.groups()
    return f"{detector}/{_BACKBONES[backbone]}_{schedule}_{scale.lower()}_lgd.yaml"


SETTINGS = {**_recipes("released"), **_recipes("earlier")}
"""Flattened settings of every recipe, those of its history too."""

REFERENCE_RECIPES = {
    name: yaml.safe_dump(nest({key: _spell(value) for key, value in settings.items()}), sort_keys=False)
    for name, settings in SETTINGS.items()
}
"""YAML text by its path below configs/Distillation, without the suffix."""

RELEASED = {name: _ours(name) for name in _recipes("released")}
"""The released recipes: the reference's path to ours below configs/."""

EARLIER = {
    name: _ours(name)
    for name in _recipes("earlier")
    if re.search(r"1x[MS]S_.*=20k$|2xSS_.*BackboneIters=70k$", name)
}
"""Those of its history with the settings of one of ours."""
