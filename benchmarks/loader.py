"""Time making images ready for training: ours against a plain Pillow pipeline that does the same, in one run.

    python benchmarks/loader.py                                        # COCO's pictures beside this checkout
    python benchmarks/loader.py --data coco:FOLDER:train --short-side 800
    python benchmarks/loader.py --data pictures                         # JPEGs made for the purpose

Both decode, resize the short side, mirror half of the pictures and give a tensor (3, h, w); ours uint8, which
the device normalises, the plain pipeline float32 in [0, 1]. They take turns on one core, picture by picture
in the same order; figures are the medians of the rounds. The clock is the process's own time, so that other
processes on the same cores count only as far as they take caches and memory from it. "In a worker" is all
that one loading process does for an image, padding it into a batch and handing that to the trainer included.
Then the parts of ours, each by itself, and what is left for the loader to do where the GPU decodes
(DATALOADER.DECODE_ON_GPU).
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from lgd.data.collate import Layout
from lgd.data.images import read_image
from lgd.data.index import AnnotationIndex
from lgd.data.loader import train_loader
from lgd.data.samples import Preparation, SmallImage
from lgd.data.transforms import View, Window, resized_size

BESIDE = report.ROOT.parent / "shared/data/coco_mini"
MAX_SIZE = 1333
BATCH_SIZE = 8


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


def load(prepare: Preparation, i: int, short_side: int) -> object:
    """What ours does before images are padded into a batch."""
    image = prepare(i, min_size=short_side, flip=bool(i % 2)).image
    return image.show() if isinstance(image, SmallImage) else image


def time_epoch(make: Callable[[int], object], num_images: int) -> float:
    """Make every picture once; returns seconds per picture."""
    begin = time.process_time()
    for i in range(num_images):
        make(i)
    return (time.process_time() - begin) / num_images


@contextmanager
def working(index: AnnotationIndex, short_side: int, num_batches: int) -> Iterator[Callable[[], float]]:
    """Start a worker; gives what lets it make some batches and returns its seconds per picture."""
    loader = train_loader(
        index,
        batch_size=BATCH_SIZE,
        world_size=1,
        rank=0,
        seed=0,
        min_sizes=(short_side,),
        max_size=MAX_SIZE,
        num_workers=1,
        layout=Layout(channels_last=True),
    )
    batches = iter(loader)
    next(batches)
    (worker,) = multiprocessing.active_children()
    tasks = Path(f"/proc/{worker.pid}/task")

    def busy() -> int:
        """Nanoseconds that its threads have run for, once it has made all that was asked of it."""
        before = -1
        while (now := sum(int(x.read_text().split()[0]) for x in tasks.glob("*/schedstat"))) != before:
            before = now
            time.sleep(0.1)
        return now

    def work() -> float:
        begin = busy()
        for _ in range(num_batches):
            next(batches)
        return (busy() - begin) / 1e9 / (num_batches * BATCH_SIZE)

    try:
        yield work
    finally:
        batches.close()


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
    spared = replace(prepare, decodes=False)
    return {
        "Pillow: read and decode": lambda i: decode_plainly(paths[i]),
        "ours: read and decode": lambda i: read_image(paths[i]),
        "ours: resize, mirror, BGR": lambda i: views[i](images[i]),
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
        ours, shipped, plain = "ours, uint8", "ours, in a worker", "Pillow, float32"
        loads: dict[str, Callable[[int], object]] = {
            plain: lambda i: load_plainly(index.path(i), sizes[i], flip=bool(i % 2)),
            ours: lambda i: load(prepare, i, arguments.short_side),
            **time_parts(prepare, sizes, arguments.short_side),
        }
        timed: dict[str, Callable[[], float]] = {
            name: partial(time_epoch, make, num_images) for name, make in loads.items()
        }
        with working(index, arguments.short_side, -(-num_images // BATCH_SIZE)) as work:
            timed = {plain: timed[plain], ours: timed[ours], shipped: work, **timed}
            seconds = take_turns(timed, num_turns=arguments.rounds, num_warm_up=1)
        megapixels = float(np.mean(index.heights[:num_images] * index.widths[:num_images])) / 1e6
        source = (
            "pictures made for the purpose" if str(folder) in index.name else index.json_path.parents[1].name
        )
    area = float(np.mean([height * width for height, width in sizes]))
    bytes_of = {plain: 12 * area, ours: 3 * area, shipped: 3 * area}
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
