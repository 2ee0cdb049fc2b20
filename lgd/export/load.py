"""Trained models that do not run as torch runs them: exported files, and compiled detectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

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
from lgd.inference.model import Backend, TrainedModel
from lgd.structures import Batch, Detections, PaddedDetections
from lgd.weights.report import WeightsError

Opener = Callable[[Path, torch.device], tuple[Function, Mapping[str, str]]]

RUNTIMES: Mapping[str, Mapping[str, Opener]] = {
    ".onnx": {"onnx": open_with_onnxruntime, "openvino": open_with_openvino},
    ".pt2": {"torch": open_with_torch},
}
"""By ending and name what opens a file; the first is the one that is meant where none is named."""


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
    return TrainedModel(
        run_exported(run, about, path),
        about.rule,
        class_names=about.classes.names,
        category_ids=about.classes.category_ids,
        with_masks=about.with_masks,
        device=device,
    )


def run_compiled(detector: Detector, device: torch.device, *, mixed_precision: bool) -> Backend:
    """Run a detector, on `device`, as torch.compile makes it: for canvases and batches of any size."""
    model = ExportedDetector(detector, flips_channels=False)
    compiled = torch.compile(model, dynamic=True)

    def run(batch: Batch) -> list[Detections]:
        tensors = (x.to(device) for x in (batch.images, batch.sizes, batch.original_sizes))
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision):
            return PaddedDetections(*compiled(*tensors)).cut()

    return run
