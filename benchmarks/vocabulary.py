"""Weigh a training step by the number of classes: the student, and LGD by how it is told the classes.

    python benchmarks/vocabulary.py                                       # 80 and 1203 classes on the CPU
    python benchmarks/vocabulary.py --classes 80,200,365,1203 --formats auto,one_hot --json FILE

The peak is what one model takes while it trains: weights, gradients, optimizer states and all that a step
adds, on the CPU by the process's resident memory (VmHWM), on CUDA by torch's allocator. Models of one recipe
and number of classes take turns for the seconds, of which the medians are shown.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import report
import torch

from lgd.bench.machine import take_turns
from lgd.bench.step import Step, make_batch, make_step
from lgd.config.load import load_config

STUDENT = "student"
FORMAT = "MODEL.DISTILLATOR.LABEL_ENCODER.CATEGORY_FORMAT"
COLUMNS = (
    "recipe", "classes", "model", "million weights", "s/step", "of the student's", "peak MiB",
    "of the student's peak",
)  # fmt: skip


def make_model(recipe: str, num_classes: int, category_format: str, work: argparse.Namespace) -> Step:
    """The step of a recipe's student, or of LGD with a category format."""
    device = torch.device(work.device)
    settings = {
        "MODEL.WEIGHTS": "",
        "NUM_CLASSES": num_classes,
        "MODEL.DISTILLATOR.ENABLED": category_format != STUDENT,
        "TRAIN.COMPILE": False,
    }
    if category_format != STUDENT:
        settings[FORMAT] = category_format
    cfg = load_config(
        report.ROOT / f"configs/{recipe}.yaml", [str(x) for pair in settings.items() for x in pair]
    )
    batch = make_batch(work.batch, *work.size, num_boxes=work.boxes, num_classes=num_classes, device=device)
    return make_step(cfg, batch, device)


def compare(recipe: str, num_classes: int, work: argparse.Namespace) -> Iterator[list[Any]]:
    """The table's rows of a recipe at a number of classes."""
    names = (STUDENT, *work.formats.split(","))
    steps = {name: make_model(recipe, num_classes, name, work) for name in names}
    peaks = {name: report.mebibytes(step.weigh()[1]) for name, step in steps.items()}
    seconds = take_turns(
        {name: step.time for name, step in steps.items()}, num_turns=work.steps, num_warm_up=0
    )
    for name, step in steps.items():
        weights = sum(parameter.numel() for parameter in step.model.parameters()) / 1e6
        peak = peaks[name]
        yield [
            recipe,
            num_classes,
            name if name == STUDENT else f"LGD, {name}",
            weights,
            seconds[name],
            seconds[name] / seconds[STUDENT],
            peak,
            peak and peak / peaks[STUDENT],
        ]


def main() -> None:
    """Print the table, and write it as JSON where asked."""
    parser = report.make_parser(__doc__)
    parser.add_argument(
        "--recipes", default="retinanet/r50_2x_ms_lgd,demo", help="files in configs/, commas between"
    )
    parser.add_argument("--classes", type=report.numbers, default=[80, 1203])
    parser.add_argument("--formats", default="auto", help=f"values of {FORMAT}, commas between")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, default=2, help="images of a step")
    parser.add_argument("--size", type=int, nargs=2, default=[320, 320], metavar=("H", "W"))
    parser.add_argument("--boxes", type=int, default=5, help="objects of an image")
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    rows = [
        row
        for recipe in arguments.recipes.split(",")
        for num_classes in arguments.classes
        for row in compare(recipe, num_classes, arguments)
    ]
    height, width = arguments.size
    report.publish(
        f"Vocabulary: {arguments.batch} images of {height} x {width}, {arguments.boxes} boxes each, "
        f"medians of {arguments.steps}",
        report.describe_machine(arguments.device),
        COLUMNS,
        rows,
        arguments.json,
    )


if __name__ == "__main__":
    main()
