"""The settings of the tree by their dotted upper-case keys, and the nearest one to a wrong key."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from lgd.config.schema import ALIASES, Config
from lgd.config.values import ConfigError, ReadingError, brief, coerce, describe, is_as_written

_LONGEST_NAME = 100
"""Beyond, a name is nothing that somebody mistyped."""


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

    @property
    def is_as_written(self) -> bool:
        """Whether its text is taken letter by letter."""
        return is_as_written(self.declared)

    def coerce(self, value: object, where: str) -> Any:
        """Turn `value`, found at `where` ("configs/demo.yaml:3: SOLVER.STEPS"), into one of this key's type.

        Raises:
            ConfigError: it is none; the message says where, what it should be and what it is.
        """
        try:
            return coerce(value, self.declared)
        except ReadingError as error:
            raise ConfigError(f"{where} {error}") from None
        except (ValueError, OverflowError, RecursionError):
            message = f"{where} expects {describe(self.declared)}, got {brief(value)}"
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
    near = _nearest(name) if len(name) <= _LONGEST_NAME else None
    hint = f"; did you mean {near}?" if near else ""
    shown = name if len(name) <= _LONGEST_NAME else brief(name)
    return ConfigError(f"{source}: {shown} is not a setting{hint}")


def attribute_to_key(attribute: str) -> str:
    """`max_iter` is MAX_ITER, `lambda_` is LAMBDA."""
    return attribute.rstrip("_").upper()


@cache
def _declared_types(section: type) -> dict[str, Any]:
    """The types of a section's fields; resolving the annotations is slow, so once for each section."""
    return get_type_hints(section, include_extras=True)


def _walk(section: Any, prefix: str) -> Iterator[Key]:
    hints = _declared_types(section.__class__)
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
    """The known key or section most like `name`, if one is like it at all; not the section it is in."""
    upper = name.upper()
    known = [*known_keys(), *known_sections(), *ALIASES]
    candidates = [candidate for candidate in known if not upper.startswith(f"{candidate}.")]
    best = max(candidates, key=lambda candidate: _likeness(upper, candidate))
    return ALIASES.get(best, best) if _likeness(upper, best) >= 0.7 else None


def _likeness(name: str, known: str) -> float:
    """From 0 to 1: half for the whole, half for the last word (at least 0.8 if `known` has its parts)."""
    word, known_word = name.rpartition(".")[2], known.rpartition(".")[2]
    likeness = _ratio(word, known_word)
    if set(word.split("_")) <= set(known_word.split("_")):
        likeness = max(likeness, 0.8)
    return 0.5 * (_ratio(name, known) + likeness)


def _ratio(first: str, second: str) -> float:
    return difflib.SequenceMatcher(None, first, second).ratio()
