"""What LGD's step costs on a CPU by the share of the images that its teacher sees.

    python benchmarks/image_share.py
    python benchmarks/image_share.py --recipes configs/demo.yaml --shares 1 0.5 0.25 --rounds 12

A step on a batch of random pictures: plain, with LGD, and with LGD whose teacher's losses train neither head
nor features ("late", as in recipes for short trainings). They take turns on one thread; times are medians of
the process's own. Each peak is of a process of its own, weights and optimizer states included.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import report
import torch

from lgd.bench.machine import take_turns
from lgd.bench.step import Step, make_batch, make_step
from lgd.config.load import load_config
from lgd.ending import keep_freed_memory

RECIPES = ("configs/examples/bccd_lite0.yaml", "configs/demo.yaml")
CLASSES, OBJECTS = 3, 13
LGD = "MODEL.DISTILLATOR"
LATE = (f"{LGD}.HEAD.MODE", "fixed", f"{LGD}.TEACHER.DETACH_APPEARANCE_EMBED", "True")
COLUMNS = ("recipe", "method", "share of the images", "ms", "of plain", "peak, MiB", "of plain")

Way = tuple[str, float | None]
"""A method, and the share of the images."""


def prepare(recipe: str, way: Way, num_images: int, size: int) -> Step:
    """A step of one way, on one thread."""
    torch.set_num_threads(1)
    method, share = way
    settings = ["NUM_CLASSES", str(CLASSES), "MODEL.WEIGHTS", "", f"{LGD}.ENABLED", str(share is not None)]
    if share is not None:
        settings += [f"{LGD}.IMAGE_SHARE", str(share), *(LATE if method == "late" else ())]
    device = torch.device("cpu")
    batch = make_batch(num_images, size, size, num_boxes=OBJECTS, num_classes=CLASSES, device=device)
    return make_step(load_config(report.ROOT / recipe, settings), batch, device)


def weigh(recipe: str, way: Way, num_images: int, size: int) -> int | None:
    """Bytes at the peak of a step."""
    return prepare(recipe, way, num_images, size).weigh()[1]


def time_step(step: Step) -> float:
    """Seconds of the process in a step."""
    begin = time.process_time()
    step.take()
    return time.process_time() - begin


def measure(
    recipe: str, shares: Sequence[float], num_images: int, size: int, rounds: int
) -> list[tuple[object, ...]]:
    """The rows of a recipe."""
    ways: list[Way] = [("plain", None), *((method, share) for method in ("LGD", "late") for share in shares)]
    peaks = []
    for way in ways:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            peaks.append(process.submit(weigh, recipe, way, num_images, size).result())
    keep_freed_memory()
    steps = {str(way): prepare(recipe, way, num_images, size) for way in ways}
    calls: dict[str, Callable[[], float]] = {name: partial(time_step, step) for name, step in steps.items()}
    seconds = list(take_turns(calls, num_turns=rounds).values())
    return [
        (
            recipe, *way, 1000 * mine, mine / seconds[0], report.mebibytes(peak),
            peak / peaks[0] if peak and peaks[0] else None,
        )
        for way, mine, peak in zip(ways, seconds, peaks, strict=True)
    ]  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = report.make_parser(__doc__)
    parser.add_argument("--recipes", nargs="+", default=RECIPES, metavar="FILE")
    parser.add_argument("--shares", nargs="+", type=float, default=[1.0, 0.5, 0.25], metavar="X")
    parser.add_argument("--batch", type=int, default=4, help="images of a step")
    parser.add_argument("--size", type=int, default=256, help="of their sides")
    parser.add_argument("--rounds", type=int, default=8, metavar="N")
    options = parser.parse_args()
    rows = [
        row
        for recipe in options.recipes
        for row in measure(recipe, options.shares, options.batch, options.size, options.rounds)
    ]
    title = (
        f"Steps of {options.batch} x {options.size} x {options.size}, the teacher seeing some of the images"
    )
    report.publish(title, report.describe_machine(), COLUMNS, rows, options.json)


if __name__ == "__main__":
    main()
