"""A file of JSON lines, one for each log period and evaluation, that a resume takes later steps back from."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lgd.evaluation.results import replace_non_finite
from lgd.files import GrowingFile, open_file, replacing
from lgd.words import counted

logger = logging.getLogger(__name__)


class LineFile:
    """metrics.jsonl: a JSON object a line, each on disk before training goes on, if the disk takes it."""

    def __init__(self, path: Path, first_iteration: int, repeats_evaluation: bool) -> None:
        if path.exists():
            _drop_lines_after(path, first_iteration, repeats_evaluation)
        self._file = GrowingFile(path)
        self._held: list[Mapping[str, Any]] | None = None

    def add_missing(self, lines: Sequence[str]) -> None:
        """Append those lines that are not there."""
        present = set(_read(self._file.path).splitlines(keepends=True)) if lines else set()
        for line in lines:
            if line.encode() not in present:
                self._file.append(line.encode())

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append `entry` with every digit of its numbers; NaN and infinity become null."""
        self._file.append((json.dumps(replace_non_finite(entry)) + "\n").encode())

    def write_in_turn(self, entry: Mapping[str, Any]) -> None:
        """Append `entry`, or keep it until the lines before it are there."""
        if self._held is None:
            self.write(entry)
        else:
            self._held.append(entry)

    def hold(self) -> None:
        """Keep what comes in turn."""
        self._held = []

    def release(self) -> None:
        """Append what was kept."""
        held, self._held = self._held or [], None
        for entry in held:
            self.write(entry)

    def waiting(self) -> list[str]:
        """The lines that the disk has refused."""
        return [entry.decode() for entry in self._file.waiting()]

    def flush(self) -> dict[Path, str]:
        """Write what there is; why the disk refuses some of it."""
        self.release()
        reason = self._file.flush()
        return {self._file.path: reason} if reason else {}

    def close(self) -> None:
        """Write what the disk takes, and close."""
        self.release()
        self._file.close()


def _read(path: Path) -> bytes:
    with open_file(path) as file:
        return file.read()


def _drop_lines_after(path: Path, iteration: int, with_evaluation: bool) -> None:
    """Take back the lines of later steps, its own evaluation if asked, and what a crash left half-written."""
    content = _read(path)
    kept, num_damaged = [], 0
    for line in content.split(b"\n"):
        try:
            if line:
                entry = json.loads(line)
                if type(entry["iteration"]) is not int or entry["iteration"] < 0:
                    raise ValueError("no count of steps")
                is_evaluation = "eval" in entry or "eval_losses" in entry
                is_again = with_evaluation and entry["iteration"] == iteration and is_evaluation
                if entry["iteration"] <= iteration and not is_again:
                    kept.append(line + b"\n")
        except (ValueError, KeyError, TypeError, RecursionError):
            num_damaged += 1
    if num_damaged:
        logger.warning("%s: dropped %s", path, counted(num_damaged, "damaged line"))
    text = b"".join(kept)
    if content.startswith(text):  # as ever, but for damage in its middle; needs no room on a full disk
        os.truncate(path, len(text))
    else:
        with replacing(path) as file:
            file.write(text)
