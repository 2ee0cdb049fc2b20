"""The images and targets of torchvision's detectors: what is wrong with them, and their way to ours and back.

Legend: B images, G objects of one image, N object slots per image, H x W one image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

from lgd.ops.polygons import mask_edges, rasterize_on_grid
from lgd.structures import Batch, Outlines, Targets
from lgd.words import counted

TorchvisionTarget = Mapping[str, Tensor]
"""Of one image "boxes" (G, 4) float xyxy pixels, "labels" (G,) int64, and "masks" (G, H, W) where the model
makes some."""

_MOST_VALUE = 8.0
"""Augmentations and normalisations leave less of [0, 1], and more of [0, 255]."""


@dataclass(frozen=True)
class TargetRules:
    """What a model takes as targets.

    Attributes:
        num_classes: K, without the background.
        first_label: the label of our class 0: 1 where 0 is the background.
        with_masks: whether there must be masks.
    """

    num_classes: int
    first_label: int
    with_masks: bool


def check_format(images: Sequence[Tensor], targets: Sequence[TorchvisionTarget], rules: TargetRules) -> None:
    """See that a model can be trained with these; waits once for the device.

    Raises:
        ValueError: what is wrong with which image.
    """
    if len(images) != len(targets) or len(images) == 0:
        raise ValueError(
            f"{counted(len(images), 'image')} and targets of {len(targets)}; give as many of each, one at "
            "least"
        )
    for i, (image, target) in enumerate(zip(images, targets, strict=True)):
        _check_image(i, image)
        _check_shapes(i, image, target, rules)
    boxes = torch.cat([target["boxes"] for target in targets])
    labels = torch.cat([target["labels"] for target in targets]) - rules.first_label
    is_flat = ~(boxes[:, 2:] > boxes[:, :2]).all(dim=1) | ~boxes.isfinite().all(dim=1)
    is_unknown = (labels < 0) | (labels >= rules.num_classes)
    if (is_flat | is_unknown).any():
        _raise_first(targets, is_flat, rules)


def check_values(images: Sequence[Tensor]) -> None:
    """See that the images' values can be meant for 0 to 1; waits for the device.

    Raises:
        ValueError: an image that is surely in another range, such as 0 to 255.
    """
    for i, image in enumerate(images):
        most = image.max().item() if image.numel() else 0.0
        if most > _MOST_VALUE:
            raise ValueError(
                f"image {i} has values up to {most:.4g}; torchvision's detectors take floats in [0, 1]: "
                "divide by 255"
            )


def _check_image(i: int, image: Tensor) -> None:
    if image.dim() != 3 or image.shape[0] != 3:
        raise ValueError(f"image {i} has the shape {tuple(image.shape)}; give (3, height, width)")
    if not image.is_floating_point():
        raise ValueError(f"image {i} is of {image.dtype}; torchvision's detectors take floats in [0, 1]")


def _check_shapes(i: int, image: Tensor, target: TorchvisionTarget, rules: TargetRules) -> None:
    wanted = ("boxes", "labels", "masks") if rules.with_masks else ("boxes", "labels")
    for key in wanted:
        if key not in target:
            raise ValueError(f'the targets of image {i} have no "{key}"; give {", ".join(wanted)}')
    boxes, labels = target["boxes"], target["labels"]
    if boxes.dim() != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
        raise ValueError(
            f"the boxes of image {i} are {tuple(boxes.shape)} of {boxes.dtype}; give floats (objects, 4), "
            "torch.zeros(0, 4) where there is no object"
        )
    if isinstance(boxes, BoundingBoxes) and boxes.format != BoundingBoxFormat.XYXY:
        raise ValueError(f"the boxes of image {i} are {boxes.format.value}; convert them to XYXY")
    if labels.shape != boxes.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"the labels of image {i} are {tuple(labels.shape)} of {labels.dtype}; give one int64 for each "
            f"of its {counted(len(boxes), 'box', 'boxes')}"
        )
    if rules.with_masks and target["masks"].shape != (len(boxes), *image.shape[1:]):
        raise ValueError(
            f"the masks of image {i} are {tuple(target['masks'].shape)}; give {len(boxes)} of the image's "
            f"{image.shape[1]} x {image.shape[2]} pixels"
        )


def _raise_first(targets: Sequence[TorchvisionTarget], is_flat: Tensor, rules: TargetRules) -> None:
    """Say what is wrong with the first box or label that cannot be used."""
    flat = iter(is_flat.tolist())
    last = rules.first_label + rules.num_classes - 1
    for i, target in enumerate(targets):
        for box, label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            if next(flat):
                raise ValueError(f"image {i} has the box {box}: give finite x1 y1 x2 y2, x1 < x2 and y1 < y2")
            if not rules.first_label <= label <= last:
                background = "; 0 is the background" if rules.first_label else ""
                raise ValueError(
                    f"image {i} has the label {label}: this model's labels are {rules.first_label} to {last}"
                    f"{background}"
                )


def to_targets(answers: Sequence[TorchvisionTarget], rules: TargetRules, with_outlines: bool) -> Targets:
    """Pad the objects of B images to N slots.

    Args:
        answers: of each image, on the canvas.
        rules: say which label is class 0.
        with_outlines: whether to make outlines of the masks.
    """
    counts = [len(answer["labels"]) for answer in answers]
    num_slots = max(1, *counts)
    valid = torch.tensor([[slot < count for slot in range(num_slots)] for count in counts])
    boxes = [F.pad(x["boxes"], (0, 0, 0, num_slots - len(x["boxes"]))) for x in answers]
    labels = [F.pad(x["labels"] - rules.first_label, (0, num_slots - len(x["labels"]))) for x in answers]
    return Targets(
        torch.stack(boxes),
        torch.stack(labels),
        valid.to(boxes[0].device),
        _outlines([answer["masks"] for answer in answers], num_slots) if with_outlines else None,
    )


def _outlines(masks: Sequence[Tensor], num_slots: int) -> Outlines:
    """Masks of B images, each (G, H, W), as the borders of their runs."""
    none = masks[0].new_zeros(1, 4, dtype=torch.float32)
    slots = [
        mask_edges(image[slot] != 0).to(none) if slot < len(image) else none
        for image in masks
        for slot in range(num_slots)
    ]
    edges = pad_sequence([none, *slots], batch_first=True)[1:]
    edges = edges.view(len(masks), num_slots, -1, 4)
    return Outlines(edges, torch.zeros_like(edges[..., 0], dtype=torch.int64), num_parts=1)


def from_targets(batch: Batch, rules: TargetRules) -> list[dict[str, Tensor]]:
    """What `to_targets` began with; boxes without extent, which torchvision's models refuse, are left out.

    Raises:
        ValueError: there must be masks, and the targets have no outlines.
    """
    targets, masks = batch.targets, _masks(batch) if rules.with_masks else None
    answers = []
    usable = targets.valid & (targets.boxes[..., 2:] > targets.boxes[..., :2]).all(dim=-1)
    for i, (height, width) in enumerate(batch.sizes.tolist()):
        chosen = usable[i]
        answer = {
            "boxes": targets.boxes[i, chosen],
            "labels": targets.labels[i, chosen] + rules.first_label,
        }
        if masks is not None:
            answer["masks"] = masks[i, chosen, :height, :width].to(torch.uint8)
        answers.append(answer)
    return answers


def _masks(batch: Batch) -> Tensor:
    """(B, N, H, W) bool on the canvas."""
    outlines = batch.targets.outlines
    if outlines is None:
        raise ValueError("this model learns masks and the targets have no outlines; load them too")
    canvas = (batch.images.shape[-2], batch.images.shape[-1])
    return rasterize_on_grid(outlines.edges, outlines.parts, outlines.num_parts, batch.sizes, canvas, canvas)
