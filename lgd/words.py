"""Words of messages that depend on what they stand beside."""

from __future__ import annotations


def counted(number: int | str, one: str, many: str = "") -> str:
    """A number and what it counts: "1 image", "2 images".

    Args:
        number: of things; a text where it is written in a way of its own, such as "1,000".
        one: what to call a single thing, with a verb where one follows: "class is".
        many: likewise of several, or none; `one` with an s unless given.
    """
    return f"{number} {one if str(number) == '1' else many or one + 's'}"


def with_article(word: str) -> str:
    """A word behind "a" or "an", as it is spoken: "a list", "an int", "an ndarray"."""
    lower = word.lower()
    return f"{'an' if lower[:1] in tuple('aeiou') or lower.startswith('nd') else 'a'} {word}"


def say_type(value: object) -> str:
    """What a value is: "a list", "an int"; "nothing" for None, the null of JSON and an empty YAML."""
    return "nothing" if value is None else with_article(type(value).__name__)
