"""A recipe as YAML that people read and edit: sections, values on a line, and why behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from lgd.recipe.choices import Choice

_WIDEST = 120


def to_yaml(choices: Sequence[Choice], heading: Sequence[str]) -> str:
    """Write the choices, those of a section together, in the order in which sections first come.

    Args:
        choices: each key once.
        heading: lines of the comment at the top.
    """
    tree: dict[str, Any] = {}
    for choice in choices:
        *sections, last = choice.key.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = choice
    return "\n".join([*(f"# {line}" for line in heading), *_lines(tree, "")]) + "\n"


def _lines(tree: dict[str, Any], indent: str) -> list[str]:
    lines = []
    for key, value in tree.items():
        if isinstance(value, Choice):
            lines += _setting(f"{indent}{key}: {_flow(value.value)}", value.why, indent)
        else:
            lines += [f"{indent}{key}:", *_lines(value, indent + "  ")]
    return lines


def _setting(line: str, why: str, indent: str) -> list[str]:
    if not why:
        return [line]
    behind = f"{line}  # {why}"
    return [behind] if len(behind) <= _WIDEST else [f"{indent}# {why}", line]


def _flow(value: Any) -> str:
    text = yaml.safe_dump(_plain(value), default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("...").rstrip("\n")


def _plain(value: Any) -> Any:
    """Lists in place of tuples, which YAML would tag."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
