"""Detect with a trained model: `lgd predict WEIGHTS SOURCE... --out DIR`."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from PIL import Image

from lgd import exits
from lgd.files import clear_leftovers, typed_path
from lgd.inference.model import TrainedModel
from lgd.inference.pictures import Unreadable
from lgd.inference.result import Result
from lgd.inference.save import KINDS, SHOWS_PIXELS, Savers, read_image_ids
from lgd.inference.sources import Source, find_sources
from lgd.inference.tiles import Tiling
from lgd.notices import above_bars, long_work
from lgd.run.complaints import answer, complain
from lgd.run.log import start_logging
from lgd.run.trained import load
from lgd.words import counted

logger = logging.getLogger("lgd.predict")

_BACKENDS = ("torch", "compile", "onnx", "openvino")
"""What runs the model."""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="lgd predict",
        description="Detect in pictures and videos with a trained model.",
        epilog=f"Exit codes: {exits.DONE} done, {exits.USER_ERROR} what you can mend (files that could not "
        f"be read are named and left out, which ends with {exits.USER_ERROR} too), {exits.CTRL_C} Ctrl-C.",
    )
    parser.add_argument(
        "weights", metavar="WEIGHTS", help="a file of weights, the folder of a run, or what lgd export wrote"
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a picture, a video, a folder, a glob, a list of files (.txt)",
    )
    parser.add_argument("--out", type=typed_path, metavar="DIR", help="where to save; needless with --json")
    parser.add_argument(
        "--save",
        type=_kinds,
        metavar="KINDS",
        help=f"some of {','.join(KINDS)}; images,coco if there is --out",
    )
    parser.add_argument("--score", type=float, default=0.5, metavar="S", help="least score (0.5)")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="pictures at a time (8)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:1; CUDA where there is one")
    parser.add_argument(
        "--classes", type=_words, metavar="NAMES", help="look for these alone, with commas between"
    )
    parser.add_argument(
        "--tile", type=int, metavar="SIZE", help="look at large pictures in tiles of so many pixels"
    )
    parser.add_argument("--overlap", type=float, metavar="F", help="share that tiles overlap by (0.2)")
    parser.add_argument(
        "--ids", type=typed_path, metavar="JSON", help="COCO file whose image ids predictions.json takes"
    )
    parser.add_argument(
        "--backend",
        choices=_BACKENDS,
        help="what runs the model: torch or compile for weights; onnx or openvino for ONNX files",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        help="of weights; bfloat16 takes half the time where the device multiplies it",
    )
    parser.add_argument("--json", action="store_true", help="a line of JSON for each picture on stdout")
    arguments = parser.parse_args(argv)
    if arguments.out is None and not arguments.json:
        parser.error("give --out DIR, or --json for lines on stdout")
    if arguments.out is None and arguments.save:
        parser.error("--save needs --out DIR")
    if arguments.save is None:
        arguments.save = [] if arguments.out is None else ["images", "coco"]
    if arguments.ids is not None and "coco" not in arguments.save:
        parser.error("--ids is for predictions.json: it goes with --out and coco among --save")
    _check_numbers(parser, arguments)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, one of `lgd.exits`."""
    arguments = parse_arguments(argv)
    start_logging(rank=0, stream=sys.stderr)
    # Large pictures are what tiles are for; those beyond Pillow's limit are refused by name.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    # A ValueError: a class that there is not.
    return answer(partial(_predict, arguments), arguments.out, also=(ValueError,))


def _predict(arguments: argparse.Namespace) -> int:
    sources = find_sources(arguments.sources, leave_out=arguments.out)
    image_ids = read_image_ids(arguments.ids, [each.name for each in sources]) if arguments.ids else None
    model = load(arguments.weights, arguments.device, arguments.backend, arguments.precision)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        clear_leftovers(arguments.out)
    unreadable: list[str] = []
    started, pictures, objects = time.monotonic(), 0, 0
    with (
        Savers(arguments.save, arguments.out, model, image_ids) as savers,
        long_work("predicting", _count(sources)) as advance,
    ):
        for result in _stream(model, sources, arguments, partial(_skip, unreadable, arguments.json)):
            savers.add(result)
            if arguments.json:
                _write_line(result.to_dict())
            pictures, objects = pictures + 1, objects + len(result)
            advance(1)
    seconds = time.monotonic() - started
    where = f"; saved in {arguments.out}" if arguments.out else ""
    logger.info(
        "%s, %s, %.1f images/s%s",
        counted(pictures, "picture"),
        counted(objects, "object"),
        pictures / seconds,
        where,
    )
    if unreadable:
        return complain(
            f"{len(unreadable)} of {counted(len(sources), 'file')} could not be read; see the lines above"
        )
    return exits.DONE


def _stream(
    model: TrainedModel,
    sources: Sequence[Source],
    arguments: argparse.Namespace,
    on_unreadable: Callable[[Unreadable], None],
) -> Iterator[Result]:
    return model.stream(
        sources,
        arguments.score,
        arguments.batch,
        classes=arguments.classes,
        tile=arguments.tile,
        overlap=arguments.overlap,
        keep_pixels=bool(SHOWS_PIXELS & set(arguments.save)),
        on_unreadable=on_unreadable,
    )


def _skip(unreadable: list[str], as_json: bool, found: Unreadable) -> None:
    """Name what cannot be read."""
    unreadable.append(found.source.name)
    logger.warning("%s", found.error)
    if as_json:
        _write_line({"file": str(found.source.path), "name": found.source.name, "error": str(found.error)})


def _count(sources: Sequence[Source]) -> int | None:
    """How many pictures there will be; nobody knows of videos."""
    return None if any(source.is_video for source in sources) else len(sources)


def _write_line(content: dict[str, object]) -> None:
    with above_bars(sys.stdout):
        sys.stdout.write(json.dumps(content) + "\n")
        sys.stdout.flush()


def _words(text: str) -> list[str]:
    return [word for word in map(str.strip, text.split(",")) if word]


def _kinds(text: str) -> list[str]:
    kinds = _words(text)
    if not kinds:
        raise argparse.ArgumentTypeError(f"{text!r} names none of {', '.join(KINDS)}")
    for kind in kinds:
        if kind not in KINDS:
            raise argparse.ArgumentTypeError(f"{kind!r} is none of {', '.join(KINDS)}")
    return kinds


def _check_numbers(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if not 0 <= arguments.score <= 1:
        parser.error("--score must be from 0 to 1")
    if arguments.batch < 1:
        parser.error("--batch must be at least 1")
    try:
        Tiling.of(arguments.tile, arguments.overlap)
    except ValueError as error:
        parser.error(f"--tile, --overlap: {error}")


if __name__ == "__main__":
    sys.exit(main())
