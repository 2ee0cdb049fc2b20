"""Time what INPUT.AUGMENTATIONS costs the loader: each kind by itself, done to every image, and all of them.

    python benchmarks/augmentations.py                                  # COCO's pictures beside this checkout
    python benchmarks/augmentations.py --data coco:FOLDER:train --short-side 800
    python benchmarks/augmentations.py --data pictures                   # JPEGs made for the purpose

One core, picture by picture in the same order; the lists take turns, figures are the medians of the rounds in
the process's own time. A sample is read, resized, mirrored, augmented and shown, (3, h, w) uint8, with its
boxes and masks. Ranges and counts are the defaults. "All" has each kind at its default probability.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import report
import torch
from loader import MAX_SIZE, open_data

from lgd.bench.machine import take_turns
from lgd.build.samples import samples_of
from lgd.config.augmentation_schema import KINDS
from lgd.data.errors import ImageError
from lgd.data.samples import SmallImage, TrainingImages


def lists() -> dict[str, str]:
    """The lists to time, as on the command line, by what the table calls them."""
    each = {name: f"[{{NAME: {name}, PROBABILITY: 1}}]" for name in KINDS}
    hue = "[{NAME: color_jitter, PROBABILITY: 1, HUE: [-0.05, 0.05]}]"
    order = ("large_scale_jitter", "mosaic", "copy_paste", "quarter_turn", "vertical_flip", "cut_out")
    every = ", ".join(f"{{NAME: {name}}}" for name in (*order, "color_jitter"))
    return {"none": "[]", **each, "color_jitter with hue": hue, "all": f"[{every}]"}


def time_epoch(images: TrainingImages, num_images: int) -> float:
    """Make a sample of every picture; returns seconds per sample."""
    begin = time.process_time()
    for i in range(num_images):
        sample = images[i, i]
        if isinstance(sample, ImageError):
            raise sample
        if isinstance(sample.image, SmallImage):
            sample.image.show()
    return (time.process_time() - begin) / num_images


def main() -> None:
    """Print the table."""
    parser = report.make_parser(__doc__)
    parser.add_argument("--data", metavar="KIND:ROOT:SPLIT", help="as in DATASETS.TRAIN; or 'pictures'")
    parser.add_argument("--short-side", type=int, default=800, help="pixels")
    parser.add_argument("--images", type=int, default=32, help="pictures of a round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        index = open_data(arguments.data, Path(folder))
        num_images = min(arguments.images, len(index))
        recipe = Path(folder) / "recipe.yaml"
        sizes = f"MIN_SIZE_TRAIN: [{arguments.short_side}], MAX_SIZE_TRAIN: {MAX_SIZE}"
        recipe.write_text(f"INPUT: {{{sizes}}}\nSEED: 1\n")
        timed: dict[str, Callable[[], float]] = {
            name: partial(time_epoch, samples_of(str(recipe), text)(index), num_images)
            for name, text in lists().items()
        }
        seconds = take_turns(timed, num_turns=arguments.rounds, num_warm_up=1)
        objects = float(index.counts[:num_images].mean())
    rows = [[name, 1000 * value, 1000 * (value - seconds["none"])] for name, value in seconds.items()]
    report.publish(
        f"Augmentations: {num_images} pictures to a short side of {arguments.short_side}, {objects:.1f} "
        f"objects each, one core, medians of {arguments.rounds} rounds",
        report.describe_machine(),
        ["list", "ms a sample", "of it the list"],
        rows,
        arguments.json,
    )


if __name__ == "__main__":
    main()
