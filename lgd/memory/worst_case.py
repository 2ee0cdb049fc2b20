"""Whether the largest batch of a recipe's data fits into the memory, and the largest that would."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from lgd.build.augmentations import build_augmentations
from lgd.build.model import Model, compiles
from lgd.build.training import build_sides, micro_batch_size, reads_masks, training_canvases
from lgd.config.schema import Config
from lgd.config.values import ConfigError
from lgd.data.canvases import augmented_canvases, fit_canvas
from lgd.data.index import AnnotationIndex
from lgd.engine.loop import Side
from lgd.engine.metrics import measure_memory
from lgd.memory.trial_step import fits_memory, largest_batch
from lgd.memory.worst_batch import (
    largest_canvases,
    most_augmented_objects,
    most_edges,
    worst_batch,
)
from lgd.ranks import process_group
from lgd.structures import Batch
from lgd.words import counted

logger = logging.getLogger(__name__)


def tries_worst_shape(cfg: Config, device: torch.device) -> bool:
    """Whether the largest batch is to be tried before training."""
    wanted = cfg.train.try_worst_shape
    return device.type == "cuda" if wanted == "auto" else wanted


def try_worst_shape(cfg: Config, model: Model, index: AnnotationIndex, device: torch.device) -> list[str]:
    """Try a step on the largest batches that the data can give; every rank calls it. It changes nothing.

    Returns:
        A line for each batch that fits.

    Raises:
        ConfigError: on every rank, the memory of some rank did not suffice.
    """
    batch_size = micro_batch_size(cfg)
    model.train()
    sides = build_sides(cfg, model, device)
    lines = []
    for canvas in _canvases(cfg, index, device):
        fits = _fits(cfg, model, sides, index, device, canvas, batch_size, compiled=compiles(cfg, device))
        full = [rank for rank, fitted in enumerate(process_group.all_gather_objects(fits)) if not fitted]
        what = _describe(cfg, index, canvas, batch_size)
        if full:
            where = f" on rank {full[0]}" if process_group.get_world_size() > 1 else ""
            raise ConfigError(
                f"out of memory{where}{_device_memory(device)} with the largest batch of this data, {what}; "
                "lower SOLVER.IMS_PER_BATCH, or keep it and raise TRAIN.ACCUMULATE_STEPS (--find-batch says "
                "how far to go), or lower INPUT.MAX_SIZE_TRAIN, or set TRAIN.CHECKPOINT_TEACHER True or "
                "SOLVER.AMP.ENABLED True"
            )
        lines.append(f"the largest batch fits: {what}; peak {measure_memory(device) / 1024:.1f} GiB")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    return lines


def find_batch(cfg: Config, model: Model, index: AnnotationIndex, device: torch.device) -> str:
    """Find the most images of a forward pass that every rank's memory holds; every rank calls it.

    Returns:
        What was found, one line.

    Raises:
        ConfigError: not even one image fits.
    """
    model.train()
    sides = build_sides(cfg, model, device)
    canvases = _canvases(cfg, index, device)
    peaks = {0: 0.0}

    def fits(batch_size: int) -> bool:
        fitted = all(_fits(cfg, model, sides, index, device, canvas, batch_size) for canvas in canvases)
        if fitted:
            peaks[batch_size] = measure_memory(device) / 1024
        logger.info("%s: %s", counted(batch_size, "image"), "fits" if fitted else "out of memory")
        return fitted

    found = min(process_group.all_gather_objects(largest_batch(fits)))
    canvas = max(canvases, key=lambda sides: sides[0] * sides[1])
    if found == 0:
        raise ConfigError(
            f"out of memory{_device_memory(device)} with {_describe(cfg, index, canvas, 1)}; lower "
            "INPUT.MAX_SIZE_TRAIN, or set TRAIN.CHECKPOINT_TEACHER True or SOLVER.AMP.ENABLED True"
        )
    ranks = process_group.get_world_size()
    peak = f"; peak {peaks[found]:.1f} GiB{_device_memory(device)}" if found in peaks else ""
    return (
        f"the largest batch is {_describe(cfg, index, canvas, found)}{peak}: SOLVER.IMS_PER_BATCH up to "
        f"{found * ranks} with {counted(ranks, 'rank')} and TRAIN.ACCUMULATE_STEPS 1"
    )


def _canvases(cfg: Config, index: AnnotationIndex, device: torch.device) -> list[tuple[int, int]]:
    options, loader = cfg.input, cfg.dataloader
    tight = largest_canvases(
        index,
        min_sizes=options.min_size_train,
        max_size=options.max_size_train,
        crops=options.crop.enabled,
        filter_empty=loader.filter_empty_annotations,
        aspect_ratio_grouping=loader.aspect_ratio_grouping,
    )
    tight = augmented_canvases(tight, build_augmentations(cfg))
    static = training_canvases(cfg, device)
    return list(dict.fromkeys(fit_canvas(canvas, static) for canvas in tight))


def _num_objects(cfg: Config, index: AnnotationIndex) -> int:
    return most_augmented_objects(index, build_augmentations(cfg))


def _mask_edges(cfg: Config, index: AnnotationIndex, canvas: tuple[int, int]) -> tuple[int, int]:
    """Edges and parts of a mask; one that is cut is drawn anew, with an edge above and below each column."""
    edges, parts = most_edges(index)
    return max(edges, 2 * max(canvas)) if cfg.input.augmentations else edges, parts


def _fits(
    cfg: Config,
    model: Model,
    sides: Sequence[Side],
    index: AnnotationIndex,
    device: torch.device,
    canvas: tuple[int, int],
    batch_size: int,
    compiled: bool = False,
) -> bool:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    batch = _make_batch(cfg, index, canvas, batch_size)
    if training_canvases(cfg, device):
        batch = replace(batch, canvas=torch.tensor(canvas))
    return fits_memory(
        model, sides, batch, device=device, mixed_precision=cfg.solver.amp.enabled, compiled=compiled
    )


def _make_batch(cfg: Config, index: AnnotationIndex, canvas: tuple[int, int], batch_size: int) -> Batch:
    batch = worst_batch(
        canvas,
        batch_size=batch_size,
        num_objects=_num_objects(cfg, index),
        num_classes=cfg.num_classes,
        mask_edges=_mask_edges(cfg, index, canvas) if reads_masks(cfg) else None,
    )
    layout = torch.channels_last if cfg.train.channels_last else torch.contiguous_format
    return replace(batch, images=batch.images.contiguous(memory_format=layout))


def _describe(cfg: Config, index: AnnotationIndex, canvas: tuple[int, int], batch_size: int) -> str:
    edges = f" of {_mask_edges(cfg, index, canvas)[0]} mask edges" if reads_masks(cfg) else ""
    return (
        f"{counted(batch_size, 'image')} a rank, {canvas[1]} x {canvas[0]} pixels, "
        f"{counted(_num_objects(cfg, index), 'object')}{edges} each"
    )


def _device_memory(device: torch.device) -> str:
    """Return how much memory a GPU has, for a message."""
    if device.type == "cpu":
        return ""
    return f" ({torch.cuda.get_device_properties(device).total_memory / 2**30:.1f} GiB)"
