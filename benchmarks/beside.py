"""What a training on the CPU keeps of its speed beside other processes that compute.

    python benchmarks/beside.py
    python benchmarks/beside.py --busy 2 --recipes demo

Whole runs of `lgd train`, plain and with LGD: on the quiet machine, beside others with the number of threads
that the run chooses, and beside others with a thread for each core; in turns. A run's figure is the median of
its log lines' images a second, but for the first line. Nothing else may compute meanwhile.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import report
from small_step import METHODS, others_computing

from lgd.bench.machine import take_turns
from lgd.ranks.cores import count_cores

COLUMNS = ("recipe", "method", "quiet", "beside others", "kept", "a thread a core", "kept")


def main() -> None:
    """Measure and print."""
    parser = report.make_parser(__doc__)
    parser.add_argument("--recipes", nargs="+", default=["demo"], metavar="RECIPE", help="(demo)")
    parser.add_argument("--busy", type=int, default=1, metavar="N", help="other processes (1)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of all (3)")
    parser.add_argument("--steps", type=int, default=40, metavar="N", help="of a run (40)")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for recipe in options.recipes:
            for method, enabled in METHODS.items():

                def run(
                    busy: int, threads: int | None = None, recipe: str = recipe, enabled: str = enabled
                ) -> float:
                    return train(recipe, enabled, options.steps, busy, threads, Path(name))

                ways = {
                    "quiet": lambda: run(0),
                    "chosen": lambda: run(options.busy),
                    "all": lambda: run(options.busy, count_cores()),
                }
                seconds = take_turns(ways, num_turns=options.rounds, num_warm_up=0)
                quiet, chosen, every = (1 / seconds[way] for way in ways)
                rows.append((recipe, method, quiet, chosen, chosen / quiet, every, every / quiet))
    title = f"Images a second beside {options.busy} that compute, medians of {options.rounds} rounds"
    report.publish(title, report.describe_machine(), COLUMNS, rows, options.json)


def train(recipe: str, enabled: str, steps: int, busy: int, threads: int | None, folder: Path) -> float:
    """Seconds an image of a run; threads None lets it choose."""
    output = folder / "run"
    settings = {
        "OUTPUT_DIR": output, "SOLVER.MAX_ITER": steps, "LOG_PERIOD": 5, "SEED": 1,
        "MODEL.DISTILLATOR.ENABLED": enabled, "MODEL.DISTILLATOR.PRE_NONDISTILL_ITERS": 0,
    }  # fmt: skip
    words = [str(word) for pair in settings.items() for word in pair]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    environment |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
    with others_computing(busy) if busy else nullcontext():
        subprocess.run(
            [sys.executable, "-m", "lgd.train", "--config-file", recipe, *words],
            cwd=folder, env=environment | {"PYTHONPATH": str(report.ROOT)}, check=True, capture_output=True,
        )  # fmt: skip
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return 1 / statistics.median([line["images_per_second"] for line in lines if "total_loss" in line][1:])


if __name__ == "__main__":
    main()
