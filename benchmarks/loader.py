"""Time making images ready for training: ours against a plain Pillow pipeline that does the same, in one run.

    python benchmarks/loader.py                                        # COCO's pictures beside this checkout
    python benchmarks/loader.py --data coco:FOLDER:train --short-side 800
    python benchmarks/loader.py --data pictures                         # JPEGs made for the purpose

Both decode, resize the short side, mirror half of the pictures and give a tensor (3, h, w); ours uint8, which
the device normalises, the plain pipeline float32 in [0, 1]. They take turns on one core, picture by picture
in the same order; figures are the medians of the rounds. The clock is the process's own time, so that other
processes on the same cores count only as far as they take caches and memory from it. Then the parts of ours,
each by itself, and what is left for the loader to do where the GPU decodes (DATALOADER.DECODE_ON_GPU).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import PIL
import report
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import hflip, pil_to_tensor

from lgd.bench.machine import take_turns
from lgd.bench.pictures import write_pictures
from lgd.data.catalog import open_dataset
from lgd.data.collate import Layout, collate
from lgd.data.images import read_image
from lgd.data.index import AnnotationIndex
from lgd.data.samples import Preparation
from lgd.data.transforms import View, Window, resized_size

BESIDE = report.ROOT.parent / "shared/data/coco_mini"
MAX_SIZE = 1333


def open_data(spec: str | None, folder: Path) -> AnnotationIndex:
    """Open what the user names, or COCO's pictures beside the checkout; else make pictures in `folder`."""
    if spec is None and BESIDE.is_dir():
        spec = f"coco:{BESIDE}:train"
    if spec in (None, "pictures"):
        write_pictures(folder, "train", num_images=32)
        spec = f"coco:{folder}:train"
    return open_dataset(spec, Path("datasets"))


def load_plainly(path: Path, size: tuple[int, int], flip: bool) -> Tensor:
    """What most pipelines do: Pillow decodes and resizes, the tensor is float32."""
    with Image.open(path) as file:
        picture = file.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR)
    image = pil_to_tensor(picture).float() / 255
    return hflip(image) if flip else image


def time_epoch(load: Callable[[int], object], num_images: int) -> float:
    """Load every picture once; returns seconds per picture."""
    begin = time.process_time()
    for i in range(num_images):
        load(i)
    return (time.process_time() - begin) / num_images


def decode_plainly(path: Path) -> None:
    """Pillow's decoding alone."""
    with Image.open(path) as file:
        file.convert("RGB")


def time_parts(prepare: Preparation, sizes: list[tuple[int, int]], short_side: int) -> dict[str, Callable]:
    """What ours consists of, and what it can be spared, each for picture `i`."""
    paths = [prepare.index.path(i) for i in range(len(sizes))]
    images = [read_image(path) for path in paths]
    windows = [Window(0, 0, image.shape[1], image.shape[2]) for image in images]
    views = [View(windows[i], size, bool(i % 2), "BGR") for i, size in enumerate(sizes)]
    samples = [prepare(i, min_size=short_side, flip=bool(i % 2)) for i in range(min(8, len(sizes)))]
    layout = Layout(channels_last=True)
    spared = replace(prepare, decodes=False)
    return {
        "Pillow: read and decode": lambda i: decode_plainly(paths[i]),
        "ours: read and decode": lambda i: read_image(paths[i]),
        "ours: resize, mirror, BGR": lambda i: views[i](images[i]),
        "ours: pad into a batch of 8": lambda i: i % 8 or collate(samples, layout=layout),
        "ours, decoded on the GPU": lambda i: spared(i, min_size=short_side, flip=bool(i % 2)),
    }


def main() -> None:
    """Print the table."""
    parser = report.make_parser(__doc__)
    parser.add_argument("--data", metavar="KIND:ROOT:SPLIT", help="as in DATASETS.TRAIN; or 'pictures'")
    parser.add_argument("--short-side", type=int, default=800, help="pixels")
    parser.add_argument("--images", type=int, default=32, help="pictures of a round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        index = open_data(arguments.data, Path(folder))
        num_images = min(arguments.images, len(index))
        prepare = Preparation(index, "BGR", MAX_SIZE, torch.float32)
        sizes = [
            resized_size(int(h), int(w), arguments.short_side, MAX_SIZE)
            for h, w in zip(index.heights[:num_images], index.widths[:num_images], strict=True)
        ]
        ours, plain = "ours, uint8", "Pillow, float32"
        loads: dict[str, Callable[[int], object]] = {
            plain: lambda i: load_plainly(index.path(i), sizes[i], flip=bool(i % 2)),
            ours: lambda i: prepare(i, min_size=arguments.short_side, flip=bool(i % 2)),
            **time_parts(prepare, sizes, arguments.short_side),
        }
        seconds = take_turns(
            {name: partial(time_epoch, load, num_images) for name, load in loads.items()},
            num_turns=arguments.rounds,
            num_warm_up=1,
        )
        megapixels = float(np.mean(index.heights[:num_images] * index.widths[:num_images])) / 1e6
        source = (
            "pictures made for the purpose" if str(folder) in index.name else index.json_path.parents[1].name
        )
    area = float(np.mean([height * width for height, width in sizes]))
    bytes_of = {plain: 12 * area, ours: 3 * area}
    rows = [
        [
            name,
            1 / value,
            1000 * value,
            seconds[plain] / value if name in bytes_of else "",
            report.mebibytes(round(bytes_of[name])) if name in bytes_of else "",
        ]
        for name, value in seconds.items()
    ]
    report.publish(
        f"Loader: {num_images} pictures of {megapixels:.2f} megapixels on average ({source}) to a short side "
        f"of {arguments.short_side}, one core, medians of {arguments.rounds} rounds",
        report.describe_machine(pillow=PIL.__version__),
        ["pipeline", "images/s per core", "ms", "times Pillow", "MiB per image"],
        rows,
        arguments.json,
    )


if __name__ == "__main__":
    main()
