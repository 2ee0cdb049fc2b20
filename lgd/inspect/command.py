"""`lgd data DATASET... [--json] [--draw N OUT [--augmented]]`: what would be trained on, before it is."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from lgd import exits
from lgd.config.values import ConfigError
from lgd.data.catalog import open_dataset
from lgd.data.errors import DataError
from lgd.data.index import AnnotationIndex
from lgd.files import typed_path
from lgd.inspect.advice import advise
from lgd.inspect.contents import Contents, compare_classes, find_obstacle, read_contents
from lgd.inspect.duplicates import describe_duplicates, find_duplicates
from lgd.inspect.report import to_json, to_words, warnings_of
from lgd.inspect.sets import find_folder, lines_of
from lgd.inspect.sheet import MOST_PICTURES, SUFFIXES, Samples, write_sheet
from lgd.notices import lines_on_stderr


@dataclass(frozen=True)
class _Set:
    """A set that could be opened, and what is worth a look in it."""

    index: AnnotationIndex
    contents: Contents
    warnings: list[str]


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
    parser.add_argument(
        "--root", type=typed_path, default=Path("datasets"), metavar="DIR", help="as DATASETS.ROOT"
    )
    parser.add_argument(
        "--json", action="store_true", help="a JSON object a line for each set on stdout, words on stderr"
    )
    parser.add_argument(
        "--draw", nargs=2, metavar=("N", "OUT"), help="a contact sheet of N pictures: a .jpg or .png"
    )
    parser.add_argument(
        "--augmented",
        nargs="?",
        const="",
        metavar="LIST",
        help="draw them as training sees them: by LIST, written as INPUT.AUGMENTATIONS, or by the recipe's",
    )
    parser.add_argument(
        "--config-file", metavar="RECIPE", help="of --augmented: sizes, flips, crops and augmentations"
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
        try:
            arguments.draw = int(number), typed_path(path)
        except argparse.ArgumentTypeError as error:
            parser.error(f"--draw {error}")
    if arguments.augmented is not None and not arguments.draw:
        parser.error("--augmented goes with --draw N OUT")
    if arguments.augmented == "" and not arguments.config_file:
        parser.error("--augmented needs a LIST ('[{NAME: mosaic}]') or --config-file RECIPE")
    if arguments.config_file and arguments.augmented is None:
        parser.error("--config-file goes with --augmented")
    return arguments


Open = Callable[[AnnotationIndex], Samples]
"""From a set to its samples as training sees them."""


def main(argv: Sequence[str] | None, samples_of: Callable[[str | None, str | None], Open]) -> int:
    """Run the command line; returns the exit code: 0, or 2 for what cannot be trained on.

    Args:
        argv: the words after the command's.
        samples_of: says how the samples of a recipe and a list of augmentations, of which one may be None,
            are opened; this room knows no recipes.
    """
    arguments = parse_arguments(argv)
    with lines_on_stderr():
        try:
            is_wanted = arguments.augmented is not None
            open_samples = (
                samples_of(arguments.config_file, arguments.augmented or None) if is_wanted else None
            )
        except ConfigError as error:
            sys.stderr.write(f"error: {error}\n")
            return exits.USER_ERROR
        return _main(arguments, open_samples)


def _main(arguments: argparse.Namespace, open_samples: Open | None) -> int:
    root = arguments.root
    sets: list[_Set] = []
    errors: list[str] = []
    try:
        for word in arguments.datasets:
            opened, problems = _open(word, root, [each.index.name for each in sets])
            sets += opened
            errors += problems
        if sets:
            _report(sets, arguments, open_samples)
    except KeyboardInterrupt:
        return exits.CTRL_C
    except DataError as error:
        errors.append(str(error))
    for message in errors:
        sys.stderr.write(f"error: {' '.join(message.split())}\n")
    return exits.USER_ERROR if errors else exits.DONE


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


def _open(word: str, root: Path, known: Sequence[str]) -> tuple[list[_Set], list[str]]:
    """Open every set that a word means and that is not known yet; what cannot be opened keeps no other away.

    Returns:
        The sets, and a line for each that cannot be opened or trained on. A folder's splits to test on may
        lack labels where another of its splits has some.
    """
    sets: list[_Set] = []
    errors: list[str] = []
    try:
        lines = [line for line in lines_of(word) if line not in known]
    except DataError as error:
        return [], [str(error)]
    for line in lines:
        try:
            sets.append(_inspect(line, root))
        except DataError as error:
            errors.append(str(error))
    obstacles = [obstacle for each in sets if (obstacle := find_obstacle(each.contents))]
    is_folder = find_folder(word) is not None
    return sets, errors + (obstacles if len(obstacles) == len(sets) or not is_folder else [])


def _inspect(line: str, root: Path) -> _Set:
    with _listening() as listener:
        index = open_dataset(line, root)
    contents = read_contents(index)
    more = [said for said in listener.lines if said not in index.warnings]
    return _Set(index, contents, [*more, *warnings_of(contents)])


def _report(sets: Sequence[_Set], arguments: argparse.Namespace, open_samples: Open | None) -> None:
    words: TextIO = sys.stderr if arguments.json else sys.stdout
    indices, contents = [each.index for each in sets], [each.contents for each in sets]
    duplicates = find_duplicates(indices, compare=arguments.duplicates, look=arguments.duplicates)
    for number, line in describe_duplicates(duplicates):
        sets[number].warnings.append(line)
    to_train_on = next((each for each in contents if each.objects), None)
    for one in sets:
        obstacle = find_obstacle(one.contents)
        lines = [
            *one.warnings,
            *compare_classes(one.contents, contents[0]),
            *([obstacle] if obstacle else []),
        ]
        advice = [] if obstacle else advise(one.contents)
        words.write(to_words(one.contents, lines, advice if one.contents is to_train_on else []) + "\n")
        if arguments.json:
            sys.stdout.write(json.dumps(to_json(one.contents, lines, advice, obstacle is None)) + "\n")
    if duplicates.left_out and arguments.duplicates is None:
        words.write(f"{duplicates.left_out}\n")
    if arguments.draw:
        number, path = arguments.draw
        for line in write_sheet(path, indices, contents, number, open_samples):
            words.write(f"{line}\n")
        words.write(f"{path}: pictures with their labels\n")
