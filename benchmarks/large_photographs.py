"""Time making batches of large photographs: this build against an earlier one, in turns on one core.

    python benchmarks/large_photographs.py                               # pictures made for the purpose
    python benchmarks/large_photographs.py --against HEAD~3 --data coco:FOLDER:train --short-side 800

Each build has a process of its own, which makes batches by `train_loader` without workers: files read,
decoded, resized, mirrored and padded. The two take turns, round by round; figures are medians of the rounds.
"Kept" is with DATALOADER.CACHE_DIR, from the second reading on. The clock is the process's own time. The
pictures made for the purpose have 12 megapixels in two qualities, about as many bytes as a telephone's
photographs and a third of that, and COCO's 0.3 megapixels. "Differs by" is the mean difference of the pixels
of a view, of 255, from that of the picture decoded whole.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import report
import torch
from builds import Build, unpack
from PIL import Image

from lgd.bench.machine import take_turns
from lgd.bench.pictures import write_pictures
from lgd.data.catalog import open_dataset
from lgd.data.loader import train_loader

MAX_SIZE = 1333
BATCH_SIZE = 4
QUALITIES = {"12 megapixels": (95, 2.0), "12 megapixels, fewer bytes": (88, 0.0)}
"""JPEG's quality, and the noise of the sensor in levels of 255."""


def write_photographs(root: Path, quality: int, noise: float, num_images: int) -> str:
    """Write a set of photographs of 4000 x 3000 pixels; returns what opens it."""
    small = json.loads(write_pictures(root / "small", "train", num_images=num_images).read_text())
    generator = np.random.default_rng(0)
    (root / "train").mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    for record in small["images"]:
        with Image.open(root / "small/train" / record["file_name"]) as image:
            upright = image.width < image.height
            size = (3000, 4000) if upright else (4000, 3000)
            pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
        record["width"], record["height"] = size
        pixels = pixels + generator.normal(0, noise, pixels.shape[:2])[..., None]
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        picture.save(root / "train" / record["file_name"], quality=quality)
    (root / "annotations/instances_train.json").write_text(json.dumps(small))
    return f"coco:{root}:train"


def serve(spec: str, short_side: int, cache_dir: Path | None) -> None:
    """What the process of a build does: it uses only what every build has, but for the cache."""
    torch.set_num_threads(1)
    index = open_dataset(spec, Path("datasets"))
    options: dict[str, object] = {}
    if cache_dir:
        from lgd.data.decoding import Decoding
        from lgd.data.picture_cache import make_cache

        make_cache(cache_dir)
        options["decoding"] = Decoding(cache_dir=cache_dir)
    loader = train_loader(
        index,
        batch_size=BATCH_SIZE,
        world_size=1,
        rank=0,
        seed=0,
        min_sizes=(short_side,),
        max_size=MAX_SIZE,
        num_workers=0,
        **options,
    )
    batches = iter(loader)
    for line in sys.stdin:
        begin, num_batches = time.process_time(), -(-int(line) // BATCH_SIZE)
        for _ in range(num_batches):
            next(batches)
        print((time.process_time() - begin) / (num_batches * BATCH_SIZE), flush=True)


def difference(spec: str, short_side: int) -> float:
    """How far views of pictures that were decoded smaller are from those decoded whole."""
    from lgd.data.images import Decoding
    from lgd.data.samples import Preparation, SmallImage

    index = open_dataset(spec, Path("datasets"))
    differences = []
    for i in range(min(len(index), 8)):
        views = []
        for scaled in (False, True):
            prepare = Preparation(index, "RGB", MAX_SIZE, torch.float32, decoding=Decoding(scaled=scaled))
            image = prepare(i, min_size=short_side, flip=False).image
            views.append((image.show() if isinstance(image, SmallImage) else image).float())
        differences.append(float((views[1] - views[0]).abs().mean()))
    return float(np.mean(differences))


def measure(name: str, spec: str, before: Path, options: object) -> list[object]:
    """One row of the table."""
    index = open_dataset(spec, Path("datasets"))
    num_bytes = np.mean([index.path(i).stat().st_size for i in range(len(index))])
    words = [__file__, "--serve", spec, "--short-side", str(options.short_side)]
    with tempfile.TemporaryDirectory() as cache_dir:
        builds = [
            Build(before, words),
            Build(report.ROOT, words),
            Build(report.ROOT, [*words, "--cache-dir", cache_dir]),
        ]
        try:
            runs = {str(number): partial(build.ask, options.images) for number, build in enumerate(builds)}
            seconds = take_turns(runs, num_turns=options.rounds, num_warm_up=1)
        finally:
            for build in builds:
                build.close()
    rates = [1 / each for each in seconds.values()]
    more = [rate / rates[0] for rate in rates[1:]]
    return [name, num_bytes / 1e6, *rates, *more, difference(spec, options.short_side)]


def main() -> None:
    """Print the table."""
    parser = report.make_parser(__doc__)
    parser.add_argument("--against", default="HEAD", metavar="REVISION", help="of git, the build before")
    parser.add_argument("--data", metavar="KIND:ROOT:SPLIT", help="as in DATASETS.TRAIN")
    parser.add_argument("--short-side", type=int, default=800, help="pixels")
    parser.add_argument("--images", type=int, default=12, help="pictures of a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--serve", metavar="SPEC", help="for the script itself")
    parser.add_argument("--cache-dir", type=Path, help="likewise")
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.short_side, options.cache_dir)
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = unpack(options.against, folder)
        specs = {"yours": options.data} if options.data else {}
        for number, (kind, quality) in enumerate({} if specs else QUALITIES.items()):
            specs[kind] = write_photographs(folder / str(number), *quality, options.images)
        if not options.data:
            write_pictures(folder / "coco", "train", num_images=options.images)
            specs["0.3 megapixels"] = f"coco:{folder / 'coco'}:train"
        rows = [measure(kind, spec, before, options) for kind, spec in specs.items()]
    more = "times as many"
    columns = [
        "pictures",
        "MB each",
        "images/s per core before",
        "now",
        "kept",
        more,
        f"{more}, kept",
        "differs by",
    ]
    title = f"Photographs to a short side of {options.short_side}, against {options.against}"
    report.publish(title, report.describe_machine(), columns, rows, options.json)


if __name__ == "__main__":
    main()
