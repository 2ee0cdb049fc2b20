"""`--json`: what a command does as JSON objects, one a line on stdout, while its words go to stderr.

What is said goes through the log; what programs want of it travels along as a record's `extra`.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lgd.files import typed_path

_FACTS = "facts"
"""The attribute of a log record that holds an event."""


def event(kind: str, /, **facts: Any) -> dict[str, Any]:
    """What a line of the log means, for its argument `extra`.

    Args:
        kind: of event.
        facts: what JSON can hold; NaN and infinity become null.
    """
    return {_FACTS: {"event": kind, **facts}}


def write_event(kind: str, /, **facts: Any) -> None:
    """Write an event that has no line in the log to stdout, at once."""
    sys.stdout.write(json.dumps(_plain({"event": kind, **facts})) + "\n")
    sys.stdout.flush()


class _Events(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes the events among the records."""

    def emit(self, record: logging.LogRecord) -> None:
        facts = getattr(record, _FACTS, None)
        if facts is not None:
            try:
                self.stream.write(json.dumps(_plain(facts)) + "\n")
                self.flush()
            except OSError:  # whoever reads has gone: who watches stdout speaks of it
                pass


def send_events() -> None:
    """Write the events of the library's log to stdout from now on."""
    log = logging.getLogger("lgd")
    log.addHandler(_Events(sys.stdout))
    log.setLevel(logging.INFO)


def sends_events() -> bool:
    """Whether `send_events` was called."""
    return any(isinstance(handler, _Events) for handler in logging.getLogger("lgd").handlers)


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    """Give a command the flag --json."""
    parser.add_argument(
        "--json", action="store_true", help="a JSON object a line on stdout; words go to stderr"
    )


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Give a command --json, or --json FILE for what comes out at the end: `wants_events`, `json_file`."""
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", type=_file_name,
        help="a JSON object a line on stdout, words on stderr; with FILE what comes out there, in one object",
    )  # fmt: skip


def _file_name(text: str) -> str:
    if re.fullmatch(r"[A-Z][A-Z0-9_.]*", text):
        raise argparse.ArgumentTypeError(f"{text} looks like a setting: give --json behind the settings")
    return str(typed_path(text))


def wants_events(arguments: argparse.Namespace) -> bool:
    """Whether the option of `add_json_option` asks for lines on stdout."""
    return bool(arguments.json == "-")


def json_file(arguments: argparse.Namespace) -> Path | None:
    """The file that the option of `add_json_option` names."""
    return None if arguments.json in (None, "-") else Path(arguments.json)


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)
