"""Damage to files and values, drawn from a seeded generator."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from typing import Any

Generator = random.Random
"""Python's own: its draws are the same on every machine."""

_NAN, _INFINITE = float("nan"), float("inf")


def nested(depth: int) -> list[Any]:
    """A list in a list in a list."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 2**31, 2**32, 2**53 + 1, 2**62, 2**63 - 1, 2**63, -(2**63), 10**30),
    *(10**400, -(10**400), 0.5, -0.5, -0.0, 1e-320, 1e15, 1e308, -1e308, _NAN, _INFINITE, -_INFINITE),
    *("", " ", "0", "7", "1e3", "nan", "a\nb", "\0", "\ud800", "\x1b[31m", "ü" * 300, "x" * 10_000),
    *("../x.png", "/etc/passwd", "C:\\x", "a/../../x", ".", "..", "%s%n{0}", "é"),
    *([], [[]], {}, {"a": 1}, {"id": 1}, [0, 0, 1, 1], [1e308] * 4, [-5, -5, 3, 3], [0] * 1000),
    *([None] * 4, [[1, 2, 3, 4, 5, 6]], [[_NAN] * 6], [["1"] * 6], [[1e9] * 6], nested(50)),
    *(
        {"size": [48, 64], "counts": [3072]},
        {"size": [48, 64], "counts": "PPYo1"},
        {"size": None, "counts": 1},
    ),
    *({"size": [48, 64], "counts": [-1, 3073]}, {"size": [48, 64], "counts": "o" * 3000}),
)
"""Values that programs stumble over."""

_TOKENS = (
    *(
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"9" * 5000,
        b"[" * 3000,
        b"{" * 20,
        b'"',
        b",",
        b":",
        b"\\u0000",
        b"-",
    ),
    *(b"\0", b"\xff", b"\xef\xbb\xbf", b"\n", b"\r\n", b" ", b"null", b"true", b"..", b"/", b"0x10", b"1_0"),
    *(
        b"<",
        b">",
        b"</object>",
        b"<object>",
        b"<!DOCTYPE a [<!ENTITY b 'c'>]>",
        b"&b;",
        b"&#0;",
        b"<![CDATA[",
    ),
    *(b"<?xml version='1.0' encoding='utf-16'?>", b"<a>" * 2000, b"<!--", b"xmlns:a='b'"),
)


def damage_bytes(generator: Generator, content: bytes) -> bytes:
    """Flip, cut out, double, put in or cut off, once or a few times."""
    damaged = bytearray(content)
    for _ in range(generator.choice((1, 1, 1, 2, 5))):
        place = generator.randrange(len(damaged) + 1)
        end = min(len(damaged), place + generator.choice((1, 2, 8, 64)))
        kind = generator.randrange(6)
        if kind == 0 and place < len(damaged):
            damaged[place] ^= 1 << generator.randrange(8)
        elif kind == 1:
            del damaged[place:end]
        elif kind == 2:
            damaged[place:place] = damaged[place:end]
        elif kind == 3:
            damaged[place:place] = generator.choice(_TOKENS)
        elif kind == 4:
            damaged[place:end] = generator.randbytes(end - place)
        else:
            del damaged[place:]
    return bytes(damaged)


def damage_value(generator: Generator, value: Any) -> Any:
    """A copy of nested lists and dictionaries with something in it replaced, removed, doubled or renamed."""
    holder = [copy.deepcopy(value)]
    for _ in range(generator.choice((1, 1, 1, 2, 4))):
        container, key = generator.choice(list(_places(holder)))
        kind = generator.randrange(8)
        if kind < 5 or container is holder:
            alike = [each for each in NASTY if type(each) is type(container[key])]
            container[key] = copy.deepcopy(generator.choice(alike if alike and kind < 3 else NASTY))
        elif kind == 5:
            del container[key]
        elif isinstance(container, list):
            container.insert(key, copy.deepcopy(container[key]))
        else:
            container[generator.choice((key.upper(), key + "s", "id", "name", "bbox"))] = container.pop(key)
    return holder[0]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a value in its container."""
    entries: Sequence[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value))
    for key, entry in entries:
        yield value, key
        yield from _places(entry)
