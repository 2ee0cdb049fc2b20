"""Text of users and of broken files, kept on one line."""

from __future__ import annotations

import unicodedata

_BREAKING = ("Cc", "Zl", "Zp", "Cs")
"""Control characters, separators of lines and of paragraphs, bytes that are no text."""


def require_one_line(what: str, text: str | None) -> None:
    """Refuse text that would become several lines of a batch script, of which each may be an option.

    Args:
        what: the option, for the message.
        text: its value; None where it was not given.

    Raises:
        ValueError: a line break or another control character.
    """
    for character in text or "":
        if unicodedata.category(character) in _BREAKING:
            raise ValueError(
                f"{what} has the character {character!a} in it, which would break the line: {text!a}; "
                "take it out"
            )


def on_one_line(text: str) -> str:
    r"""The text with its line breaks and control characters written out, such as "\n"."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _BREAKING
        else character
        for character in text
    )
