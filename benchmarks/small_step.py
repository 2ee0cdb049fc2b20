"""Time training steps of small models on a CPU: this build against an earlier one, in turns.

    python benchmarks/small_step.py --against HEAD~3
    python benchmarks/small_step.py --against HEAD~3 --threads 1,2 --busy 1   # beside a process that computes

Each build has a process of its own for each recipe, plain, with LGD, and with a teacher that sees a quarter
of the images (all of them in a build that knows no shares), which makes and trains on a batch of random
pictures. They take turns, round by round; figures are medians. With --busy so many other processes compute
all the while; with --bfloat16 this build trains under autocast, and the earlier one does not. On one thread
it is the process's own time, else, and with --busy, that of the clock.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import report
import torch
from builds import Build, unpack

from lgd import ending
from lgd.bench.machine import take_turns
from lgd.bench.step import make_batch, make_step
from lgd.config.keys import known_keys
from lgd.config.load import load_config

RECIPES = ("configs/demo.yaml", "configs/examples/bccd_lite0.yaml")
LGD = "MODEL.DISTILLATOR"
METHODS = {
    "plain": {f"{LGD}.ENABLED": "False"},
    "LGD": {f"{LGD}.ENABLED": "True"},
    "quarter": {f"{LGD}.ENABLED": "True", f"{LGD}.IMAGE_SHARE": "0.25"},
}
CLASSES, OBJECTS = 3, 13
COLUMNS = ("recipe", "method", "threads", "before, ms", "now, ms", "share of before", "share of plain now")


def serve(recipe: str, method: str, options: Any) -> None:
    """What the process of a build does: it uses only what every build has, but for what its commands set."""
    getattr(ending, "keep_freed_memory", lambda: None)()
    settings = {"NUM_CLASSES": str(CLASSES), "MODEL.WEIGHTS": "", **METHODS[method]}
    settings["SOLVER.AMP.ENABLED"] = str(options.bfloat16)
    known = [item for key, value in settings.items() if key in known_keys() for item in (key, value)]
    cfg = load_config(report.ROOT / recipe, known)
    device = torch.device("cpu")
    shape = (options.batch, options.size, options.size)
    batch = make_batch(*shape, num_boxes=OBJECTS, num_classes=CLASSES, device=device)
    step = make_step(cfg, batch, device)
    by_clock = options.busy > 0 or torch.get_num_threads() > 1
    clock = time.perf_counter if by_clock else time.process_time
    for line in sys.stdin:
        begin = clock()
        for _ in range(int(line)):
            step.take()
        print((clock() - begin) / int(line), flush=True)


@contextlib.contextmanager
def others_computing(number: int) -> Iterator[None]:
    """Keep so many other processes busy."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def measure(recipe: str, threads: int, trees: dict[str, Path], options: Any) -> list[list[Any]]:
    """Rows of the table, one a method."""
    words = ["--size", str(options.size), "--batch", str(options.batch), "--busy", str(options.busy)]
    extra = {"before": [], "now": ["--bfloat16"] if options.bfloat16 else []}
    builds = {
        (method, key): Build(tree, [__file__, "--serve", recipe, method, *words, *extra[key]], threads)
        for method in METHODS
        for key, tree in trees.items()
    }
    try:
        runs = {key: partial(build.ask, options.steps) for key, build in builds.items()}
        seconds = take_turns(runs, num_turns=options.rounds, num_warm_up=1)
    finally:
        for build in builds.values():
            build.close()
    rows = []
    for method in METHODS:
        before, now = (1000 * seconds[method, key] for key in trees)
        plain = 1000 * seconds["plain", "now"]
        rows.append([Path(recipe).stem, method, threads, before, now, now / before, now / plain])
    return rows


def main() -> None:
    """Print the table."""
    parser = report.make_parser(__doc__)
    parser.add_argument("--against", default="HEAD", metavar="REVISION", help="of git, the build before")
    parser.add_argument("--recipes", nargs="+", default=RECIPES, help="of both builds, below the repository")
    parser.add_argument("--threads", type=report.numbers, default=[1], help="commas between")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="other processes that compute")
    parser.add_argument("--bfloat16", action="store_true", help="train this build under autocast")
    parser.add_argument("--size", type=int, default=256, help="side of the pictures")
    parser.add_argument("--batch", type=int, default=4, help="pictures of a step")
    parser.add_argument("--steps", type=int, default=3, help="of a turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--serve", nargs=2, metavar=("RECIPE", "METHOD"), help="for the script itself")
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve, options)
        return
    with tempfile.TemporaryDirectory() as name, others_computing(options.busy):
        trees = {"before": unpack(options.against, Path(name)), "now": report.ROOT}
        rows = [
            row
            for recipe in options.recipes
            for threads in options.threads
            for row in measure(recipe, threads, trees, options)
        ]
    beside = f", beside {options.busy} busy processes" if options.busy else ""
    kind = ", in bfloat16" if options.bfloat16 else ""
    size = f"{options.batch} x {options.size} x {options.size}"
    title = f"Steps of {size}{kind}{beside}, against {options.against}"
    report.publish(title, report.describe_machine(), COLUMNS, rows, options.json)


if __name__ == "__main__":
    main()
