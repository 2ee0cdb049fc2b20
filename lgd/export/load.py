"""Trained models that do not run as torch runs them: exported files, and compiled detectors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lgd.data.canvases import Canvas
from lgd.detectors.protocol import Detector
from lgd.export.about import About
from lgd.export.detector import ExportedDetector
from lgd.export.runtimes import (
    Function,
    open_with_onnxruntime,
    open_with_openvino,
    open_with_torch,
    run_exported,
)
from lgd.inference.model import Backend, TrainedModel, run_eagerly
from lgd.inference.side_by_side import Parts
from lgd.structures import Batch, Detections, PaddedDetections
from lgd.weights.report import WeightsError

Opener = Callable[[Path, torch.device], tuple[Function, Mapping[str, str]]]

RUNTIMES: Mapping[str, Mapping[str, Opener]] = {
    ".onnx": {"onnx": open_with_onnxruntime, "openvino": open_with_openvino},
    ".pt2": {"torch": open_with_torch},
}
"""By ending and name what opens a file; the first is the one that is meant where none is named."""

_OFTEN, _MOST_CANVASES = 32, 4
"""Images of a canvas after which it gets code of its own on a CPU, and so many canvases at most."""


def is_exported(path: Path) -> bool:
    """Whether its name says that it is an exported file."""
    return path.suffix.lower() in RUNTIMES


def load_exported(path: Path, device: torch.device, backend: str | None = None) -> TrainedModel:
    """Open a file that `lgd export` wrote.

    Args:
        path: ends as one of `RUNTIMES`.
        device: where it shall run.
        backend: the name of the runtime; None for the first.

    Raises:
        WeightsError: the file cannot be read or is another's, or `backend` does not run it.
        ConfigError: the runtime cannot use the device.
        ImportError: the runtime is not there; the message names the extra.
    """
    runtimes = RUNTIMES[path.suffix.lower()]
    name = backend or next(iter(runtimes))
    if name not in runtimes:
        raise WeightsError(f"{path}: is run by {' or '.join(runtimes)}, not by {name}")
    try:
        run, texts = runtimes[name](path, device)
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror or error}") from error
    try:
        about = About.of_metadata(texts)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    count = about.num_images or 1  # of a call: maps of more images leave the cache
    return TrainedModel(
        run_exported(run, about, path),
        about.rule,
        class_names=about.classes.names,
        category_ids=about.classes.category_ids,
        with_masks=about.with_masks,
        device=device,
        parts=Parts(count, count) if name == "onnx" else None,
    )


def run_compiled(detector: Detector, device: torch.device, *, mixed_precision: bool) -> Backend:
    """Run a detector, on `device`, as torch.compile makes it.

    On a GPU one code serves canvases and batches of any size. On a CPU that would be no faster than torch
    without it: convolutions are all that costs, and gain where their weights are laid out once for a size. So
    there the first canvas, and a few that come often, have code of their own, image by image (a batch is no
    faster), and others run eagerly.
    """
    import torch._inductor.config as inductor

    model = ExportedDetector(detector, flips_channels=False)
    on_cpu = device.type == "cpu"
    compiled = torch.compile(model, dynamic=not on_cpu)
    eager = run_eagerly(detector, device, mixed_precision=mixed_precision)
    usual = _UsualCanvases()

    def run(batch: Batch) -> list[Detections]:
        if on_cpu and not usual.has(batch):
            return eager(batch)
        images = [batch.image(i) for i in range(len(batch.images))] if on_cpu else [batch]
        found = []
        for each in images:
            tensors = (x.to(device) for x in (each.images, each.sizes, each.original_sizes))
            with (
                torch.no_grad(),
                torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision),
                inductor.patch(freezing=on_cpu),  # as one of compile's `options` it freezes nothing
            ):
                found += PaddedDetections(*compiled(*tensors)).cut()
        return found

    return run


@dataclass
class _UsualCanvases:
    """The canvases that pay for code of their own, which takes a minute or more to make."""

    chosen: set[Canvas] = field(default_factory=set)
    seen: Counter[Canvas] = field(default_factory=Counter)

    def has(self, batch: Batch) -> bool:
        """Whether the batch's is one of them, now that it has come."""
        canvas = (batch.images.shape[2], batch.images.shape[3])
        self.seen[canvas] += len(batch.images)
        if not self.chosen or (self.seen[canvas] >= _OFTEN and len(self.chosen) < _MOST_CANVASES):
            self.chosen.add(canvas)
        return canvas in self.chosen
