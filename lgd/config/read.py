"""From YAML files and `KEY VALUE` pairs to settings, each with the place it came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lgd.config.keys import known_keys, known_sections, unknown_key
from lgd.config.recipes import find_recipe
from lgd.config.schema import ALIASES
from lgd.config.values import ConfigError, brief, read_as_written
from lgd.files import read_small

COMMAND_LINE = "command line"
_BASE = "_BASE_"
_YAML_TAG = "tag:yaml.org,2002:"
_LARGEST = 2**17
"""Bytes of a recipe: reading more takes seconds, and all settings together have a tenth."""

_PATIENCE = 3.0
"""Seconds for whoever writes a recipe to a pipe."""

_MOST_VALUES = 100_000
_DEEPEST = 30
_MOST_BASES = 50


@dataclass(frozen=True)
class Setting:
    """A value of the declared type, the key as it was written, and where: "configs/demo.yaml:12"."""

    value: Any
    spelling: str
    source: str


def read_file(path: Path) -> dict[str, Setting]:
    """Read a YAML file over its `_BASE_`: one file, or a list of files of which the later wins.

    Returns:
        The settings by key; those of the file itself come before those of its base.

    Raises:
        ConfigError: a file is missing or not YAML, a chain of bases is a ring, a key is unknown or its value
            is of the wrong type.
    """
    return _read(path, (), {})


def _read(path: Path, above: tuple[Path, ...], done: dict[Path, dict[str, Setting]]) -> dict[str, Setting]:
    """Read one file; `above` are those whose `_BASE_` led here, `done` those that are read already."""
    file = path.resolve()
    if file not in done:
        done[file] = _read_over_bases(path, (*above, file), done)
    return done[file]


def _read_over_bases(
    path: Path, above: tuple[Path, ...], done: dict[Path, dict[str, Setting]]
) -> dict[str, Setting]:
    if len(above) > _MOST_BASES:
        raise ConfigError(f"{path}: the {_MOST_BASES}th {_BASE} above another; put some into one file")
    root = _compose(_read_text(path), str(path))
    inherited: dict[str, Setting] = {}
    for key, value in root.value:
        if key.value == _BASE:
            for base in _base_paths(path, key, value, above):
                inherited |= _read(base, above, done)
    return {**inherited, **_collect(_walk(root, "", str(path)))}


def read_overrides(overrides: Sequence[str]) -> dict[str, Setting]:
    """Read the `KEY VALUE` pairs that follow the options on the command line.

    Raises:
        ConfigError: an odd count, an unknown key, a value of the wrong type.
    """
    for word in overrides[::2]:
        if word.startswith("--"):
            raise ConfigError(
                f"{COMMAND_LINE}: {word} stands among KEY VALUE pairs; options come before them"
            )
        if "=" in word:
            raise ConfigError(f"{COMMAND_LINE}: write {word.replace('=', ' ', 1)} instead of {word}")
    if len(overrides) % 2:
        raise ConfigError(f"{COMMAND_LINE}: {overrides[-1]} has no value; settings are KEY VALUE pairs")
    pairs = zip(overrides[::2], overrides[1::2], strict=True)
    return _collect(setting for key, text in pairs for setting in _override(key, text))


def _override(key: str, text: str) -> Iterator[Setting]:
    if key in known_sections():
        yield from _walk(_compose(text, COMMAND_LINE, key), f"{key}.", COMMAND_LINE)
    else:
        yield _setting(key, text, COMMAND_LINE)


def _read_text(path: Path) -> str:
    try:
        return read_small(path, _LARGEST, patience=_PATIENCE).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a YAML file (not text in UTF-8)") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _compose(text: str, source: str, name: str = "the file") -> yaml.MappingNode:
    """The node tree of a YAML text: unlike values, nodes know their lines and keep duplicate keys."""
    if len(text) > _LARGEST:
        raise ConfigError(f"{source}: {name} has {len(text)} characters; at most {_LARGEST} are read")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark and source != COMMAND_LINE else ""
        raise ConfigError(f"{source}{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{source}: nested more than {_DEEPEST} deep") from None
    except Exception as error:  # PyYAML's own stumbles, as over "\\Uffffffff"
        raise ConfigError(f"{source}: not valid YAML: {error}") from None
    if root is None or _is_null(root):
        return yaml.MappingNode(f"{_YAML_TAG}map", [])
    _measure(root, source, {})
    return _as_mapping(root, name, source)


def _measure(node: yaml.Node, source: str, done: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """How many values a node holds, aliases written out, and how deep; both are bounded.

    Raises:
        ConfigError: too many, too deep, or the node holds itself.
    """
    if id(node) not in done:
        done[id(node)] = None
        sizes = [_measure(child, source, done) for child in _children(node)]
        size, depth = 1 + sum(size for size, _ in sizes), 1 + max((depth for _, depth in sizes), default=0)
        if size > _MOST_VALUES:
            raise ConfigError(f"{_place(source, node)}: aliases make more than {_MOST_VALUES} values of this")
        if depth > _DEEPEST:
            raise ConfigError(f"{_place(source, node)}: nested more than {_DEEPEST} deep")
        done[id(node)] = size, depth
    measured = done[id(node)]
    if measured is None:
        raise ConfigError(f"{_place(source, node)}: an alias puts this into itself")
    return measured


def _base_paths(path: Path, key: yaml.Node, value: yaml.Node, above: tuple[Path, ...]) -> Iterator[Path]:
    place = _place(str(path), key)
    named = _construct(value, f"{place}: {_BASE}")
    names = named if isinstance(named, list) else [named]
    if len(names) > _MOST_BASES:
        raise ConfigError(f"{place}: {_BASE} names {len(names)} files; at most {_MOST_BASES} are read")
    for name in names:
        if not isinstance(name, str):
            raise ConfigError(
                f"{place}: {_BASE} expects the path of a YAML file or a list of them, got {brief(named)}"
            )
        try:
            base = find_recipe(name, path.parent)
        except ConfigError as error:
            raise ConfigError(f"{place}: {_BASE} names {name}: {error}") from None
        if base.resolve() in above:
            ring = " -> ".join(file.name for file in (*above, base))
            raise ConfigError(f"{place}: {_BASE} leads in a ring: {ring}")
        yield base


def _walk(section: yaml.MappingNode, prefix: str, source: str) -> Iterator[Setting]:
    seen: set[str] = set()
    for key, value in section.value:
        place = _place(source, key)
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{place}: a list or a section where the name of a setting belongs")
        _require_plain(key, place)
        name = f"{prefix}{key.value}"
        if name in seen:
            raise ConfigError(f"{place}: {name} is given twice")
        seen.add(name)
        if name in known_sections():
            yield from () if _is_null(value) else _walk(_as_mapping(value, name, place), f"{name}.", source)
        elif name != _BASE:
            yield _setting(name, _value(name, value, f"{place}: {name}"), place)


def _collect(settings: Iterable[Setting]) -> dict[str, Setting]:
    """Settings of one source by key; two spellings of one key must not disagree."""
    collected: dict[str, Setting] = {}
    for setting in settings:
        target = ALIASES.get(setting.spelling, setting.spelling)
        earlier = collected.get(target, setting)
        if earlier.spelling != setting.spelling and earlier.value != setting.value:
            raise ConfigError(
                f"{setting.source}: {setting.spelling} {setting.value} contradicts {earlier.spelling} "
                f"{earlier.value} ({earlier.source}); both set {target}, so give one of them"
            )
        collected[target] = setting
    return collected


def _setting(name: str, value: object, source: str) -> Setting:
    key = known_keys().get(ALIASES.get(name, name))
    if key is None:
        raise unknown_key(name, source)
    return Setting(key.coerce(value, f"{source}: {name}"), name, source)


def _value(name: str, node: yaml.Node, where: str) -> object:
    """What a node says, for the setting of this name."""
    key = known_keys().get(name)
    if key is None or not key.is_as_written:
        return _construct(node, where)
    _require_plain_parts(node, where)
    try:
        return read_as_written(node)
    except ValueError:
        raise ConfigError(f"{where} has a key twice, or one that is no name") from None


def _as_mapping(node: yaml.Node, name: str, source: str) -> yaml.MappingNode:
    if isinstance(node, yaml.MappingNode):
        _require_plain(node, f"{source}: {name}")
        return node
    got = brief(node.value) if isinstance(node, yaml.ScalarNode) else "a list"
    raise ConfigError(f"{source}: {name} expects a section (KEY: value lines), got {got}")


def _construct(node: yaml.Node, where: str) -> object:
    """The plain value of a node; tags that would make Python objects are refused."""
    _require_plain_parts(node, where)
    try:
        return yaml.SafeLoader("").construct_document(node)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{where} cannot be read: {' '.join(str(error).split())}") from None
    except Exception:  # what PyYAML makes of "!!int ''", "!!bool perhaps", "!!timestamp soon"
        raise ConfigError(f"{where} cannot be read: not what its tag says") from None


def _require_plain_parts(node: yaml.Node, where: str) -> None:
    for part in _parts(node):
        _require_plain(part, where)


def _require_plain(node: yaml.Node, where: str) -> None:
    tag = str(node.tag)
    if not tag.startswith(_YAML_TAG) or tag.startswith(f"{_YAML_TAG}python/"):
        short = tag.replace(_YAML_TAG, "!!")
        raise ConfigError(
            f"{where} has the tag {short}, refused because it can run code; write the value "
            "itself (numbers, text, a list; configs/Base-RetinaNet.yaml has the anchor sizes as numbers)"
        )


def _parts(node: yaml.Node) -> Iterator[yaml.Node]:
    """The node, and every one within."""
    yield node
    for child in _children(node):
        yield from _parts(child)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    for child in node.value if isinstance(node, yaml.CollectionNode) else ():
        yield from child if isinstance(child, tuple) else (child,)


def _is_null(node: yaml.Node) -> bool:
    return str(node.tag) == f"{_YAML_TAG}null"


def _place(source: str, node: yaml.Node) -> str:
    return source if source == COMMAND_LINE else f"{source}:{node.start_mark.line + 1}"
