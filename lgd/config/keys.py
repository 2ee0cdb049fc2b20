"""The settings of the tree by their dotted upper-case keys, and the nearest one to a wrong key."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from lgd.config.schema import ALIASES, Config
from lgd.config.values import ConfigError, coerce, describe


@dataclass(frozen=True)
class Key:
    """A setting.

    Attributes:
        name: "SOLVER.MAX_ITER".
        declared: its type, annotations included.
        default: its value where nothing sets it.
        doc: one line on what it does.
    """

    name: str
    declared: Any
    default: Any
    doc: str

    def coerce(self, value: object, source: str) -> Any:
        """Turn `value`, found at `source`, into a value of this key's type.

        Raises:
            ConfigError: it is none; the message says where, what and what it should be.
        """
        try:
            return coerce(value, self.declared)
        except (ValueError, OverflowError):
            message = f"{source}: {self.name} expects {describe(self.declared)}, got {value!r}"
            raise ConfigError(message) from None


@cache
def known_keys() -> Mapping[str, Key]:
    """Every setting by name, in the order of the tree, with what there is to print about it."""
    return {key.name: key for key in _walk(Config(), "")}


@cache
def known_sections() -> frozenset[str]:
    """The names of the sections: "MODEL", "MODEL.BACKBONE", ..."""
    names = (name.split(".") for name in known_keys())
    return frozenset(".".join(parts[:end]) for parts in names for end in range(1, len(parts)))


def flatten(cfg: Config) -> dict[str, Any]:
    """Every value of the tree by its key, in the order of the tree."""
    return {key.name: key.default for key in _walk(cfg, "")}


def with_values(cfg: Config, values: Mapping[str, Any]) -> Config:
    """A copy of the tree in which `values`, by key, take the place of what was there."""
    assert values.keys() <= known_keys().keys(), values.keys() - known_keys().keys()
    changed: Config = _replace(cfg, "", values)
    return changed


def unknown_key(name: str, source: str) -> ConfigError:
    """The error for a key or section that is not there, with the nearest one that is."""
    near = _nearest(name)
    hint = f"; did you mean {near}?" if near else ""
    return ConfigError(f"{source}: {name} is not a setting{hint}")


def attribute_to_key(attribute: str) -> str:
    """`max_iter` is MAX_ITER, `lambda_` is LAMBDA."""
    return attribute.rstrip("_").upper()


def _walk(section: Any, prefix: str) -> Iterator[Key]:
    hints = get_type_hints(type(section), include_extras=True)
    for field in fields(section):
        name, value = prefix + attribute_to_key(field.name), getattr(section, field.name)
        if is_dataclass(value):
            yield from _walk(value, f"{name}.")
            continue
        declared = hints[field.name]
        assert get_origin(declared) is Annotated, f"{name} has no doc"
        (doc,) = (extra for extra in get_args(declared)[1:] if isinstance(extra, str))
        yield Key(name, declared, value, doc)


def _replace(section: Any, prefix: str, values: Mapping[str, Any]) -> Any:
    changed = {}
    for field in fields(section):
        name, value = prefix + attribute_to_key(field.name), getattr(section, field.name)
        inner = is_dataclass(value)
        changed[field.name] = _replace(value, f"{name}.", values) if inner else values.get(name, value)
    return type(section)(**changed)


def _nearest(name: str) -> str | None:
    """The known key or section most like `name`; to end in the same word counts for something."""
    upper = name.upper()
    word = upper.rpartition(".")[2]

    def likeness(known: str) -> float:
        bonus = 0.15 if known.rpartition(".")[2] == word else 0.0
        return difflib.SequenceMatcher(None, upper, known).ratio() + bonus

    best = max([*known_keys(), *known_sections(), *ALIASES], key=likeness)
    return best if likeness(best) >= 0.6 else None
