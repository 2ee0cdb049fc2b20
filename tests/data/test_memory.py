"""What the annotations cost each worker: memory that is its own, not shared with the other processes."""

import multiprocessing
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from lgd.data import samples
from lgd.data.cache import cached_columns
from lgd.data.coco_json import parse_coco
from lgd.data.images import Picture
from lgd.data.index import AnnotationIndex
from lgd.data.loader import train_loader
from tests.data.large import write_large_coco
from tests.data.sets import annotation, image_record, write_coco
from tests.forked import CONTEXT

SMAPS = Path("/proc/self/smaps_rollup")
pytestmark = [
    pytest.mark.skipif(not SMAPS.exists(), reason="the kernel does not tell private memory"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes:UserWarning"),
]

NUM_WORKERS = 4
BATCH_SIZE = 32


def private_bytes(process: int) -> int:
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    return 1024 * sum(
        int(n) for n in re.findall(r"^Private_(?:Clean|Dirty|Hugetlb):\s+(\d+) kB", text, re.MULTILINE)
    )


def open_index(json_path: Path) -> AnnotationIndex:
    path = cached_columns(json_path, lambda content_hash: parse_coco(json_path, content_hash))
    return AnnotationIndex(path, name="large", json_path=json_path, image_dir=json_path.parent)


def use_no_files() -> None:
    """Pictures are made up, and so small that the batches on their way do not disturb the measurement."""
    picture = Picture(torch.zeros(3, 8, 8, dtype=torch.uint8), 8, 8)
    samples.read_picture = lambda *arguments: picture
    samples.Preparation._check_size = lambda self, i, size: None


def worker_memory(index: AnnotationIndex, num_batches: int) -> list[int]:
    """Private bytes of each worker after it has loaded its share of `num_batches` batches."""
    others = multiprocessing.active_children()
    loader = train_loader(
        index,
        batch_size=BATCH_SIZE,
        world_size=1,
        rank=0,
        seed=0,
        min_sizes=(8,),
        max_size=64,
        num_workers=NUM_WORKERS,
    )
    batches: Iterator[object] = iter(loader)
    for _ in range(num_batches):
        next(batches)
    workers = [child for child in multiprocessing.active_children() if child not in others]
    sizes = [private_bytes(worker.pid) for worker in workers if worker.pid]
    batches.close()  # type: ignore[attr-defined]
    assert len(sizes) == NUM_WORKERS
    return sizes


def compare(tmp_path: Path, *, num_images: int, num_boxes: int) -> float:
    """Private bytes that a worker has more on a large set than on a set of two images, after an epoch."""
    write_large_coco(tmp_path / "large", "train", num_images=num_images, num_boxes=num_boxes)
    large = open_index(tmp_path / "large" / "annotations" / "instances_train.json")
    assert (len(large), len(large.columns["labels"])) == (num_images, num_boxes)
    images = [image_record(1), image_record(2, 48, 64)]
    small = open_index(write_coco(tmp_path / "small", images, [annotation(1, 1), annotation(2, 2)]))
    num_batches = num_images // BATCH_SIZE
    return float(np.mean(worker_memory(large, num_batches)) - np.mean(worker_memory(small, num_batches)))


def compare_afresh(tmp_path: Path, **sizes: int) -> float:
    """`compare` in a new process, since workers inherit what the tests before have left in this one."""
    with ProcessPoolExecutor(1, mp_context=CONTEXT, initializer=use_no_files) as pool:
        return pool.submit(compare, tmp_path, **sizes).result()


def test_private_memory_of_a_worker(tmp_path):
    assert compare_afresh(tmp_path, num_images=3_000, num_boxes=22_000) < 5e6


@pytest.mark.slow
def test_private_memory_of_a_worker_at_the_size_of_coco(tmp_path):
    assert compare_afresh(tmp_path, num_images=118_000, num_boxes=860_000) < 5e6
