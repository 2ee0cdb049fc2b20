"""Data sets, the output folder and shared memory, as one node sees them."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lgd.build import build_average, build_model
from lgd.config.schema import Config
from lgd.config.solver import resolve_solver
from lgd.config.values import ConfigError
from lgd.data.catalog import open_dataset
from lgd.data.errors import DataError
from lgd.data.images import read_image

SHARED_MEMORY = Path("/dev/shm")

_BATCHES_PER_WORKER = 3
"""What a loader's worker keeps in shared memory: two that wait, one in the making."""

_SECONDS_TO_SEE = 5.0
"""Network file systems may show a new file late."""


@dataclass(frozen=True)
class Dataset:
    """A data set as one node finds it.

    Attributes:
        num_images: listed.
        num_objects: annotated, without crowds.
        content_hash: of the annotations.
        sample_hash: of the first, the middle and the last image's files.
        error: why it cannot be read, "" if it can.
    """

    num_images: int = 0
    num_objects: int = 0
    content_hash: str = ""
    sample_hash: str = ""
    error: str = ""


@dataclass(frozen=True)
class Storage:
    """What a node has.

    Attributes:
        rank: that looked.
        datasets: by name.
        shared_free: bytes free in /dev/shm; -1 unknown.
        shared_needed: bytes that the node's loaders may want there.
        output: OUTPUT_DIR, or the folder above it that exists.
        output_error: why rank 0 cannot write there, or why another node does not see what it wrote.
        output_free: bytes free there.
        output_needed: bytes that the run's checkpoints and models will take; 0 unknown.
        gradient_bytes: that every step all-reduces; 0 unknown.
        error: what stopped the look-around, "" nothing.
    """

    rank: int
    datasets: Mapping[str, Dataset]
    shared_free: int = -1
    shared_needed: int = 0
    output: str = ""
    output_error: str = ""
    output_free: int = 0
    output_needed: int = 0
    gradient_bytes: int = 0
    error: str = ""


def read_datasets(cfg: Config) -> tuple[dict[str, Dataset], int]:
    """Open the data sets of DATASETS.TRAIN and DATASETS.TEST; also the number of their classes, 0 unknown."""
    found: dict[str, Dataset] = {}
    num_classes = len(cfg.datasets.classes)
    for name in dict.fromkeys((*cfg.datasets.train, *cfg.datasets.test)):
        try:
            index = open_dataset(name, Path(cfg.datasets.root))
            num_classes = num_classes or len(index.class_names)
            samples = sorted({0, len(index) // 2, len(index) - 1}) if len(index) else []
            digest = hashlib.sha256()
            for i in samples:
                read_image(index.path(i), None if cfg.input.range == "auto" else cfg.input.range)
                digest.update(index.path(i).read_bytes())
            found[name] = Dataset(len(index), int(index.counts.sum()), index.content_hash, digest.hexdigest())
        except (DataError, OSError) as error:
            found[name] = Dataset(error=str(error))
    return found, num_classes


def shared_memory(cfg: Config, local_world_size: int, world_size: int) -> tuple[int, int]:
    """Bytes free in /dev/shm (-1 unknown), and bytes that the loaders of one node may fill there."""
    images = -(-cfg.solver.ims_per_batch // (world_size * cfg.train.accumulate_steps))
    short, long = max(cfg.input.min_size_train), cfg.input.max_size_train
    batch = images * 3 * short * max(long, short)
    needed = batch * cfg.dataloader.num_workers * _BATCHES_PER_WORKER * local_world_size
    try:
        return shutil.disk_usage(SHARED_MEMORY).free, needed
    except OSError:
        return -1, needed


def measure_model(cfg: Config, num_classes: int) -> tuple[int, int, int]:
    """Build the recipe's model without memory for it.

    Returns:
        Bytes of a checkpoint, of a model file, and of the gradients of one step. Estimates: parameters and
        buffers, their moving average if there is one, and what the optimizer keeps of each parameter.
    """
    if cfg.num_classes == 0:
        cfg = replace(cfg, num_classes=num_classes)
    with torch.device("meta"):
        model = build_model(cfg)
    states = {"SGD": 1, "ADAMW": 2}.get(resolve_solver(cfg, "student").optimizer.upper(), 2)
    model_bytes = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    average = build_average(cfg, model)
    averages = sum(tensor.nbytes for tensor in average.tensors.values()) if average else 0
    return model_bytes + averages + states * trained, model_bytes, trained


def try_output(folder: Path) -> tuple[str, str, str]:
    """Write to `folder`, or, where it is not there yet, to the one above it that is.

    Returns:
        The folder written to; a mark left there for the other nodes, "" where that failed; and why.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        mark = Path(tempfile.mkdtemp(prefix=".lgd-preflight-", dir=existing))
        (mark / "written").write_bytes(b"x" * 2**20)
    except OSError as error:
        return str(existing), "", f"{existing} cannot be written to: {error.strerror}"
    return str(existing), str(mark.absolute()), ""


def sees(mark: str, seconds: float = _SECONDS_TO_SEE) -> bool:
    """Whether this node sees what rank 0 wrote."""
    deadline = time.monotonic() + seconds
    while not (Path(mark) / "written").is_file():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def remove_mark(mark: str) -> None:
    """Take away what `try_output` left."""
    shutil.rmtree(mark, ignore_errors=True)


def look_around(
    cfg: Config, rank: int, *, local_world_size: int, world_size: int, mark: Callable[[], str]
) -> tuple[Storage, str]:
    """Look at one node's data, shared memory and output folder.

    Args:
        cfg: the recipe, scaled to the ranks at hand.
        rank: the rank that looks, the first of its node.
        local_world_size: ranks of this node.
        world_size: all ranks.
        mark: on other nodes than rank 0's, waits for what rank 0 wrote and returns it, "" for nothing.

    Returns:
        What was found, and on rank 0 the mark that it left.
    """
    left = mark() if rank else ""  # rank 0 goes first: what it caches, the others need not
    datasets, num_classes = read_datasets(cfg)
    free, needed = shared_memory(cfg, local_world_size, world_size)
    found: dict[str, Any] = {"datasets": datasets, "shared_free": free, "shared_needed": needed}
    if rank:
        unseen = bool(left) and not sees(left)
        return Storage(rank, output=left, output_error=_unshared(cfg) if unseen else "", **found), ""
    folder, left, problem = try_output(Path(cfg.output_dir))
    found |= {"output": folder, "output_error": problem, "output_free": shutil.disk_usage(folder).free}
    if cfg.num_classes or num_classes:
        try:
            checkpoint, model_bytes, gradients = measure_model(cfg, num_classes)
        except ConfigError as error:
            return Storage(rank, error=str(error), **found), left
        # A new checkpoint is written before the oldest goes; the best and the final model lie beside them.
        total = checkpoint * (cfg.train.keep_checkpoints + 1) + 2 * model_bytes
        found |= {"output_needed": total, "gradient_bytes": gradients}
    return Storage(rank, **found), left


def _unshared(cfg: Config) -> str:
    return f"OUTPUT_DIR {cfg.output_dir} is not the one that rank 0 writes to"
