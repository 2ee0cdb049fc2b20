"""What a setting may hold: number ranges as types, and the way from YAML or command-line text to a value."""

from __future__ import annotations

import ast
import math
import os
import reprlib
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from lgd.ending import BREAKING

UNUSED = "Accepted for the reference's files; has no effect."
"""What a key says of itself that the reference declares and reads nowhere."""


class ConfigError(ValueError):
    """A configuration that a user can mend; the message names file, key and way out."""


class ReadingError(ValueError):
    """What is wrong with a value; the message goes on from the key's name."""


@dataclass(frozen=True)
class ReadBy:
    """Marks maps that a function of their own checks, all in them taken letter by letter.

    Attributes:
        function: from what was written to the value; raises ReadingError.
        what: the value in words.
    """

    function: Callable[[object], Any]
    what: str


@dataclass(frozen=True)
class Interval:
    """The numbers from `low` to `high`, both included unless `above_low` leaves `low` out."""

    low: float
    high: float = math.inf
    above_low: bool = False

    def __contains__(self, number: float) -> bool:
        """Whether a finite number, or an integer of 64 bits, lies in the interval."""
        over = number > self.low if self.above_low else number >= self.low
        is_bounded = abs(number) < 2**63 if isinstance(number, int) else math.isfinite(number)
        return over and number <= self.high and is_bounded

    def __str__(self) -> str:
        """The interval in words: "above 0", "in [0, 1]"."""
        if math.isfinite(self.high):
            high = self.high if isinstance(self.high, int) else f"{self.high:g}"
            return f"in {'(' if self.above_low else '['}{self.low:g}, {high}]"
        return f"above {self.low:g}" if self.above_low else f"of {self.low:g} or more"


@dataclass(frozen=True)
class AsWritten:
    """Marks text that is taken letter by letter: 007 and yes are names, not a number and a flag."""


@dataclass(frozen=True)
class InHome:
    """Marks folders, which may begin with ~ for the user's home, or with ~NAME for another's."""


PositiveInt = Annotated[int, Interval(1)]
NonNegativeInt = Annotated[int, Interval(0)]
LayerCount = Annotated[int, Interval(0, 1000)]
BlockCount = Annotated[int, Interval(1, 1000)]
PositiveFloat = Annotated[float, Interval(0, above_low=True)]
NonNegativeFloat = Annotated[float, Interval(0)]
FiniteFloat = Annotated[float, Interval(-1e38, 1e38)]
UnitFloat = Annotated[float, Interval(0, 1)]
PositiveShare = Annotated[float, Interval(0, 1, above_low=True)]
Name = Annotated[str, AsWritten()]
Folder = Annotated[str, InHome()]

_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NONES = ("none", "null", "~")
_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "text", NoneType: "None"}


def coerce(value: object, declared: Any) -> Any:
    """Turn what YAML or the command line gave into a value of the declared type.

    YAML 1.1 reads `1e-4`, `1e03` and `(60000, 80000)` as text, and the command line gives nothing but
    text, so text counts as what it spells. A single value where a list of plain values belongs is a list
    of one.

    Args:
        value: scalar, list, or text.
        declared: type of the setting as its annotation has it: bool, int, float, str, None, Literal, a
            union, tuple or dict of these, each possibly Annotated with an `Interval`,
            `AsWritten`, `InHome` or `ReadBy`.

    Raises:
        ReadingError: a map that is checked by itself, or a folder, cannot be; says why.
        ValueError: `value` is not such a value (without a message: the caller knows the key).
    """
    origin, arguments = get_origin(declared), get_args(declared)
    if origin is Annotated and AsWritten() in arguments:
        return value if isinstance(value, str) and value else _refuse()
    if origin is Annotated and isinstance(arguments[1], ReadBy):
        return arguments[1].function(value)
    if origin is Annotated:
        result = coerce(value, arguments[0])
        if InHome() in arguments:
            return _expand(result)
        intervals = [extra for extra in arguments[1:] if isinstance(extra, Interval)]
        if result is not None and not all(result in interval for interval in intervals):
            raise ValueError
        return result
    if origin in (Union, UnionType):
        return _first(value, sorted(arguments, key=lambda member: member is not NoneType))
    if origin is Literal:
        options = [option for option in arguments if _matches(value, option)]
        return options[0] if options else _refuse()
    if origin is tuple:
        return _coerce_tuple(value, arguments)
    if origin is dict:
        return _coerce_map(value, arguments)
    return _coerce_scalar(value, declared)


def describe(declared: Any) -> str:
    """Say in words what a declared type holds: "an integer of 1 or more"."""
    origin, arguments = get_origin(declared), get_args(declared)
    if origin is Annotated and AsWritten() in arguments:
        return "a name"
    if origin is Annotated and isinstance(arguments[1], ReadBy):
        return arguments[1].what
    if origin is Annotated:
        if InHome() in arguments:
            return "a folder"
        intervals = [f" {extra}" for extra in arguments[1:] if isinstance(extra, Interval)]
        return describe(arguments[0]) + "".join(intervals)
    if origin in (Union, UnionType):
        return " or ".join(describe(member) for member in arguments)
    if origin is Literal:
        options = ", ".join(repr(option) for option in arguments)
        return f"one of {options}" if len(arguments) > 1 else options
    if origin is dict:
        return f"a map (NAME: {describe(arguments[1])})"
    if origin is tuple:
        length = "" if Ellipsis in arguments else f"{len(arguments)} of them, "
        return f"a list ({length}each {describe(arguments[0])})"
    return _NAMES[declared]


def is_as_written(declared: Any) -> bool:
    """Whether a declared type holds text that is taken letter by letter."""
    if declared == AsWritten() or isinstance(declared, ReadBy):
        return True
    return any(map(is_as_written, get_args(declared)))


def read_as_written(node: yaml.Node) -> Any:
    """The texts, lists and maps of a YAML node, with no text taken for a number, a flag or nothing.

    Raises:
        ValueError: a map has a key twice, or one that is no text.
    """
    if isinstance(node, yaml.SequenceNode):
        return [read_as_written(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        pairs = [(key.value, read_as_written(value)) for key, value in node.value]
        names = [name for name, _ in pairs]
        are_names = all(isinstance(name, str) for name in names)
        return dict(pairs) if are_names and len(set(names)) == len(names) else _refuse()
    return node.value


def brief(value: object) -> str:
    """A value as a message quotes it: however large it is, and whatever it holds."""
    text = _BRIEF.repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


class _Brief(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxdict, self.maxset = 4, 12, 12, 12, 12
        self.maxstring = self.maxlong = self.maxother = _LONGEST

    def repr_int(self, x: int, level: int) -> str:
        # Python writes no integer of more than 4,300 digits.
        return repr(x) if x.bit_length() < 4 * _LONGEST else f"an integer of {x.bit_length()} bits"


_LONGEST = 200
_BRIEF = _Brief()


def _refuse() -> Any:
    raise ValueError


def _first(value: object, members: list[Any]) -> Any:
    for member in members:
        try:
            return coerce(value, member)
        except ValueError:
            continue
    raise ValueError


def _matches(value: object, option: object) -> bool:
    try:
        return bool(_coerce_scalar(value, type(option)) == option)
    except ValueError:
        return False


def _coerce_map(value: object, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    items = _parse_as_written(value) if isinstance(value, str) else value
    if not isinstance(items, dict):
        raise ValueError
    return {coerce(key, arguments[0]): coerce(item, arguments[1]) for key, item in items.items()}


def _parse_as_written(text: str) -> object:
    """Read a list as Python or YAML writes it, or a map as YAML does; other text is handed back as it is."""
    if not text.strip():
        return []
    if (text.strip()[0], text.strip()[-1]) == ("(", ")"):
        text = f"[{text.strip()[1:-1]}]"
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        raise ValueError from None
    return [] if node is None else read_as_written(node)


def _coerce_tuple(value: object, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    parse = _parse_as_written if is_as_written(arguments[0]) else _parse_list
    items = parse(value) if isinstance(value, str) else value
    if isinstance(items, dict):
        raise ValueError
    if not isinstance(items, list | tuple):
        items = [items]
    members = arguments[:1] * len(items) if Ellipsis in arguments else arguments
    for item, member in zip(items, members, strict=True):
        if get_origin(member) is tuple and not isinstance(item, list | tuple):
            raise ValueError  # a plain list for a list of lists: which of the two it means is anyone's guess
    return tuple(coerce(item, member) for item, member in zip(items, members, strict=True))


def _parse_list(text: str) -> object:
    """Read a list as Python or YAML writes it, items quoted or not; other text is handed back as it is."""
    if not text.strip():
        return []
    try:
        parsed = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return _parse_unquoted_list(text.strip())
    if isinstance(parsed, str):
        return _parse_list(parsed)
    return parsed if isinstance(parsed, list | tuple) else text


def _parse_unquoted_list(text: str) -> object:
    """Read `[p3, p4]` and `(coco:a:b,)`."""
    if (text[0], text[-1]) not in (("(", ")"), ("[", "]")):
        return text
    try:
        return yaml.safe_load(f"[{text[1:-1]}]")
    except Exception:  # the text is anybody's: PyYAML fails on some in any way it likes
        return text


def _coerce_scalar(value: object, declared: type) -> Any:
    text = value.strip() if isinstance(value, str) else None
    if declared is NoneType:
        return None if value is None or (text is not None and text.lower() in _NONES) else _refuse()
    if declared is str:
        return _coerce_text(text) if text is not None else _refuse()
    if declared is bool:
        result = _BOOLS.get(text.lower()) if text is not None else value
        return result if isinstance(result, bool) else _refuse()
    return _coerce_number(text if text is not None else value, declared)


def _coerce_text(text: str) -> str:
    """Take off the quotes; no name of a file, a set or a device has characters that break a line."""
    if any(unicodedata.category(character) in BREAKING for character in text):
        raise ValueError
    while len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1].strip()  # what is left is read again alike
    return text


def _expand(folder: str) -> str:
    path = os.path.expanduser(folder)  # noqa: PTH111
    if folder.startswith("~") and path == folder:
        raise ReadingError(f"begins with {folder.partition('/')[0]}, whose home is not known here")
    return path


def _coerce_number(value: object, declared: type) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    if declared is int and isinstance(value, str) and value.lstrip("+-").isdigit():
        return int(value)
    if declared is int and isinstance(value, int):
        return value
    number = float(value)
    if math.isnan(number) or (declared is int and not number.is_integer()):
        raise ValueError
    return int(number) if declared is int else number
