"""What is exported: a detector from raw pixels to detections, as one function of three tensors.

Legend: B images on a canvas H x W, T candidates of each, D slots of each for detections, M a mask's side.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import cast

import torch
import torch.fx.experimental._config
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop
from torch.utils._sympy.value_ranges import ValueRanges

from lgd.detectors.protocol import Detector
from lgd.files import replacing
from lgd.layers.prediction import for_prediction
from lgd.structures import Batch, Targets

INPUTS = ("images", "sizes", "original_sizes")
OUTPUTS = ("boxes", "scores", "labels", "valid", "masks")
"""The last of detectors with masks only."""

METADATA_FILE = "lgd.json"
"""What a file of torch.export says of itself, within it."""

_LAYERS_OF_HALF = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


class ExportedDetector(nn.Module):
    """A detector as a function of tensors.

    Args:
        detector: it; a copy is taken, in evaluation mode, that orders equal scores in the documented way and
            has frozen norms in its weights.
        flips_channels: whether the detector wants BGR, and the RGB images are turned around.
        half: whether weights are kept and layers computed in float16; boxes and scores are float32.
    """

    def __init__(self, detector: Detector, *, flips_channels: bool, half: bool = False) -> None:
        super().__init__()
        module = for_prediction(cast(nn.Module, detector))
        for part in module.modules():
            for name in ("reference_order", "reference_normalizer"):
                if hasattr(part, name):
                    setattr(part, name, False)
            if half and isinstance(part, _LAYERS_OF_HALF):
                part.half()
        self.detector = module
        self.flips_channels = flips_channels
        self.half_precision = half

    def forward(self, images: Tensor, sizes: Tensor, original_sizes: Tensor) -> tuple[Tensor, ...]:
        """Detect.

        Args:
            images: (B, 3, H, W) uint8 RGB, resized by `lgd.data.transforms.resized_size` and padded with
                zeros at the bottom and on the right, H and W as the file's description says.
            sizes: (B, 2) int64 (height, width) of each image on the canvas.
            original_sizes: (B, 2) int64 (height, width) of each before it was resized.

        Returns:
            boxes (B, D, 4), scores (B, D), labels (B, D), valid (B, D) and, of a detector with masks, masks
            (B, D, M, M): see `lgd.structures.PaddedDetections`.
        """
        detector = cast(Detector, self.detector)
        nothing = original_sizes.new_zeros(1, 1)
        batch = Batch(
            images=images.flip(1) if self.flips_channels else images,
            sizes=sizes,
            original_sizes=original_sizes,
            image_ids=nothing[0],
            targets=Targets(nothing[..., None].expand(-1, -1, 4), nothing, nothing.bool()),
        )
        with self._precision():
            found = detector.decode(detector.extract_features(batch), batch)
        columns = (found.boxes, found.scores, found.labels, found.valid)
        return columns if found.masks is None else (*columns, found.masks)

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast("cpu", torch.float16) if self.half_precision else nullcontext()


def export_program(
    model: ExportedDetector, *, batch_size: int | None, size: tuple[int, int] | None, multiple: int = 32
) -> torch.export.ExportedProgram:
    """Record what the model does.

    Args:
        model: the model, on the CPU.
        batch_size: B; None for any.
        size: H and W; None for any.
        multiple: of which H and W are.
    """
    num_images = batch_size or 2
    coarsest = max(cast(Detector, model.detector).strides.values())
    height, width = size or (2 * coarsest + multiple, 3 * coarsest + multiple)
    images = torch.zeros(num_images, 3, height, width, dtype=torch.uint8)
    sizes = torch.tensor([[height, width]] * num_images)
    dynamic = torch.export.Dim.DYNAMIC
    batch_axis = {} if batch_size else {0: dynamic}
    size_axes = {} if size else {2: dynamic, 3: dynamic}
    shapes = {"images": batch_axis | size_axes, "sizes": batch_axis, "original_sizes": batch_axis}
    # Else the program refuses canvases on which a level has a single cell, for which it is as good.
    with torch.no_grad(), torch.fx.experimental._config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        program = torch.export.export(
            model, (images, sizes, sizes.clone()), dynamic_shapes=shapes, strict=False
        )
    for symbol, bounds in program.range_constraints.items():
        program.range_constraints[symbol] = ValueRanges(min(bounds.lower, multiple), bounds.upper)
    return program


def write_program(program: torch.export.ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a program that torch loads without this library, as one file.

    Args:
        program: from `export_program`.
        path: the file.
        metadata: what is put beside the program, as JSON under `METADATA_FILE`.

    Raises:
        OSError: the disk is full or the folder read-only.
    """
    table = {
        torch.ops.lgd.find_survivors.default: _find_survivors,
        torch.ops.aten.topk.default: _take_best,
    }
    plain = program.run_decompositions(table)
    with replacing(path) as file, warnings.catch_warnings():
        # Of constants of which parts are used; the parts are written.
        warnings.filterwarnings("ignore", message="No complete tensor found in the group")
        torch.export.save(plain, file, extra_files={METADATA_FILE: json.dumps(metadata)})


def _take_best(scores: Tensor, limit: int, dim: int = -1) -> tuple[Tensor, Tensor]:
    """`topk` that takes the first of equals, as ONNX's does."""
    best, indices = scores.sort(dim=dim, descending=True, stable=True)
    return best.narrow(dim, 0, limit), indices.narrow(dim, 0, limit)


def _find_survivors(
    boxes: Tensor, scores: Tensor, groups: Tensor, num_groups: int, iou_threshold: float, limit: int
) -> Tensor:
    """`lgd.ops.nms.find_survivors` of torch's own operators: the best box is taken again and again."""
    boxes = boxes.double()
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)
    places = torch.arange(scores.shape[1], device=scores.device)
    # As tensors: numbers that differ from one call to the next would become inputs, which torch cannot write.
    most, threshold = places.new_full((), limit), boxes.new_full((), iou_threshold)

    def is_on(count: Tensor, waiting: Tensor, survives: Tensor) -> Tensor:
        return (count < most) & (waiting > -torch.inf).any()

    def take_best(count: Tensor, waiting: Tensor, survives: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        best = waiting.argmax(dim=1, keepdim=True)
        box = boxes.gather(1, best[..., None].expand(-1, -1, 4))
        sides = torch.minimum(boxes[..., 2:], box[..., 2:]) - torch.maximum(boxes[..., :2], box[..., :2])
        shared = sides.clamp(min=0).prod(dim=-1)
        overlaps = shared / (areas + areas.gather(1, best) - shared)
        chosen = (places == best) & (waiting > -torch.inf)
        gone = chosen | ((overlaps > threshold) & (groups == groups.gather(1, best)))
        return count + 1, torch.where(gone, -torch.inf, waiting), survives | chosen

    start = (scores.new_zeros((), dtype=torch.int64), scores.clone(), torch.zeros_like(scores).bool())
    _, _, survives = while_loop(is_on, take_best, start)  # type: ignore[no-untyped-call]
    return cast(Tensor, survives)
