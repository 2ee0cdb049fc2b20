"""`lgd data DATASET... [--json] [--draw N OUT]`: what would be trained on, before anything is."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from lgd import exits
from lgd.data.catalog import open_dataset
from lgd.data.errors import DataError
from lgd.data.index import AnnotationIndex
from lgd.inspect.advice import advise
from lgd.inspect.contents import Contents, find_obstacle, read_contents
from lgd.inspect.duplicates import describe_duplicates, find_duplicates
from lgd.inspect.report import to_json, to_words, warnings_of
from lgd.inspect.sets import find_folder, lines_of
from lgd.inspect.sheet import MOST_PICTURES, SUFFIXES, write_sheet


@dataclass
class _Found:
    """The sets that could be opened, and what ends with exit code 2."""

    indices: list[AnnotationIndex] = field(default_factory=list)
    contents: list[Contents] = field(default_factory=list)
    warnings: list[list[str]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="lgd data",
        description="Say what is in data sets: classes, sizes, what is dropped, the same picture twice, and "
        "what to set to train on them. Exit code 2 where nothing can be trained on.",
    )
    parser.add_argument(
        "datasets",
        nargs="+",
        metavar="DATASET",
        help="a line as in DATASETS.TRAIN, such as coco:FOLDER:train, or a folder: all its splits",
    )
    parser.add_argument("--root", default="datasets", metavar="DIR", help="as DATASETS.ROOT")
    parser.add_argument(
        "--json", action="store_true", help="a JSON object a line for each set on stdout, words on stderr"
    )
    parser.add_argument(
        "--draw", nargs=2, metavar=("N", "OUT"), help="a contact sheet of N pictures: a .jpg or .png"
    )
    parser.add_argument(
        "--duplicates",
        action=argparse.BooleanOptionalAction,
        help="look for the same picture twice, or not; by default unless there are many",
    )
    arguments = parser.parse_args(argv)
    if arguments.draw:
        number, path = arguments.draw
        if not number.isdecimal() or not 1 <= int(number) <= MOST_PICTURES:
            parser.error(f"--draw {number}: N is a number of pictures from 1 to {MOST_PICTURES}")
        if Path(path).suffix.lower() not in SUFFIXES:
            parser.error(f"--draw {path}: OUT ends in {', '.join(SUFFIXES)}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 for what cannot be trained on."""
    arguments = parse_arguments(argv)
    try:
        found = _open(arguments.datasets, Path(arguments.root).expanduser())
        if found.indices:
            _report(found, arguments)
    except KeyboardInterrupt:
        return exits.CTRL_C
    except DataError as error:
        found = _Found(errors=[str(error)])
    for message in found.errors:
        sys.stderr.write(f"error: {' '.join(message.split())}\n")
    return exits.USER_ERROR if found.errors else exits.DONE


class _Listener(logging.Handler):
    """Keeps what the readers warn of, which the report says in its own place."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def _listening() -> Iterator[_Listener]:
    library, listener = logging.getLogger("lgd"), _Listener()
    handlers, propagates = library.handlers[:], library.propagate
    library.handlers[:], library.propagate = [listener], False
    try:
        yield listener
    finally:
        library.handlers[:], library.propagate = handlers, propagates


def _open(words: Sequence[str], root: Path) -> _Found:
    """Open every set that is meant, each once; one that cannot be opened keeps no other from being shown."""
    found = _Found()
    for word in words:
        try:
            lines = lines_of(word)
        except DataError as error:
            found.errors.append(str(error))
            continue
        obstacles, fine = [], 0
        for line in lines:
            if any(index.name == line for index in found.indices):
                continue
            try:
                with _listening() as listener:
                    index = open_dataset(line, root)
            except DataError as error:
                found.errors.append(str(error))
                continue
            contents = read_contents(index)
            found.indices.append(index)
            found.contents.append(contents)
            more = [line for line in listener.lines if line not in index.warnings]
            found.warnings.append([*more, *warnings_of(contents)])
            obstacle = find_obstacle(contents)
            fine += obstacle is None
            obstacles += [obstacle] if obstacle else []
        # A split to test on may lack labels where its folder has others to train on.
        found.errors += obstacles if fine == 0 or find_folder(word) is None else []
    return found


def _report(found: _Found, arguments: argparse.Namespace) -> None:
    words: TextIO = sys.stderr if arguments.json else sys.stdout
    warnings = found.warnings
    duplicates = find_duplicates(found.indices, compare=arguments.duplicates, look=arguments.duplicates)
    for number, line in describe_duplicates(duplicates):
        warnings[number].append(line)
    to_train_on = next((each for each in found.contents if each.objects), None)
    for contents, lines in zip(found.contents, warnings, strict=True):
        obstacle = find_obstacle(contents)
        lines += [obstacle] if obstacle else []
        advice = [] if obstacle else advise(contents)
        words.write(to_words(contents, lines, advice if contents is to_train_on else []) + "\n")
        if arguments.json:
            sys.stdout.write(json.dumps(to_json(contents, lines, advice, obstacle is None)) + "\n")
    if duplicates.left_out and arguments.duplicates is None:
        words.write(f"{duplicates.left_out}\n")
    if arguments.draw:
        number, path = int(arguments.draw[0]), Path(arguments.draw[1]).expanduser()
        for line in write_sheet(path, found.indices, found.contents, number):
            words.write(f"{line}\n")
        words.write(f"{path}: {number} pictures with their labels\n")
