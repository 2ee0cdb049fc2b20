"""What is exported: a detector from raw pixels to detections, as one function of three tensors.

Legend: B images on a canvas H x W, D slots of each for detections, M the side of a mask.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

from lgd.detectors.protocol import Detector
from lgd.structures import Batch, Targets

INPUTS = ("images", "sizes", "original_sizes")
OUTPUTS = ("boxes", "scores", "labels", "valid", "masks")
"""The last of detectors with masks only."""


class ExportedDetector(nn.Module):
    """A detector as a function of tensors.

    Args:
        detector: it; a copy is taken, in evaluation mode, that orders equal scores in the documented way.
        flips_channels: whether the detector wants BGR, and the RGB images are turned around.
    """

    def __init__(self, detector: Detector, *, flips_channels: bool) -> None:
        super().__init__()
        module = copy.deepcopy(cast(nn.Module, detector)).eval().requires_grad_(False)
        for part in module.modules():
            for name in ("reference_order", "reference_normalizer"):
                if hasattr(part, name):
                    setattr(part, name, False)
        self.detector = module
        self.flips_channels = flips_channels

    def forward(self, images: Tensor, sizes: Tensor, original_sizes: Tensor) -> tuple[Tensor, ...]:
        """Detect.

        Args:
            images: (B, 3, H, W) uint8 RGB, resized by `lgd.data.transforms.resized_size` and padded with
                zeros at the bottom and on the right, H and W multiples of the coarsest stride.
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
        found = detector.decode(detector.extract_features(batch), batch)
        columns = (found.boxes, found.scores, found.labels, found.valid)
        return columns if found.masks is None else (*columns, found.masks)


def export_program(
    model: ExportedDetector, *, batch_size: int | None, size: tuple[int, int] | None
) -> torch.export.ExportedProgram:
    """Record what the model does.

    Args:
        model: the model, on the CPU.
        batch_size: B; None for any.
        size: H and W; None for any.
    """
    num_images = batch_size or 2
    coarsest = max(cast(Detector, model.detector).strides.values())
    # Torch makes a constant of what is 1 in the example: every level has more cells than that.
    height, width = size or (2 * coarsest, 3 * coarsest)
    images = torch.zeros(num_images, 3, height, width, dtype=torch.uint8)
    sizes = torch.tensor([[height, width]] * num_images)
    dynamic = torch.export.Dim.DYNAMIC
    batch_axis = {} if batch_size else {0: dynamic}
    size_axes = {} if size else {2: dynamic, 3: dynamic}
    shapes = {"images": batch_axis | size_axes, "sizes": batch_axis, "original_sizes": batch_axis}
    with torch.no_grad():
        return torch.export.export(model, (images, sizes, sizes.clone()), dynamic_shapes=shapes, strict=False)
