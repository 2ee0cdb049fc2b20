"""What a model found in one picture, for people and for other programs.

Legend: H x W the picture, N detections, M x M the grid of a mask over its box.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lgd.data.errors import DataError
from lgd.data.images import read_image
from lgd.evaluation.masks import paste_and_encode, paste_masks
from lgd.inference.draw_result import draw_result
from lgd.structures import Detections
from lgd.words import counted


@dataclass(frozen=True)
class Result:
    """What was found in one picture, best first.

    Attributes:
        detections: N of them, on the CPU, boxes in pixels of the picture, upright.
        size: (H, W).
        class_names: the K class names by label.
        category_ids: the K ids of the annotation file that the model was trained with.
        name: what the picture is called: a path relative to the folder it was found in; "" if it has none.
        path: its file, or the video's; None where there is none.
        frame: its number in the video, from 0; None for a picture of its own.
        rate: of its video, frames a second.
        pixels: (3, H, W) uint8, RGB; None where `picture` shall read the file again.
    """

    detections: Detections
    size: tuple[int, int]
    class_names: Sequence[str]
    category_ids: Sequence[int]
    name: str = ""
    path: Path | None = None
    frame: int | None = None
    rate: float | None = None
    pixels: Tensor | None = None

    def __len__(self) -> int:
        """Return N."""
        return len(self.detections.scores)

    def __repr__(self) -> str:
        """Return what it is in a line, without its numbers."""
        height, width = self.size
        return (
            f"Result({self.label or 'picture'}, {width} x {height} pixels, {counted(len(self), 'detection')})"
        )

    @property
    def label(self) -> str:
        """The picture's name, and after # the number of the frame."""
        name = self.name or (str(self.path) if self.path else "")
        return name if self.frame is None else f"{name}#{self.frame}"

    @property
    def boxes(self) -> Tensor:
        """(N, 4) float, xyxy, pixels of the picture as it is seen, upright."""
        return self.detections.boxes

    @property
    def scores(self) -> Tensor:
        """(N,) float in [0, 1], descending."""
        return self.detections.scores

    @property
    def labels(self) -> Tensor:
        """(N,) int64 in [0, K)."""
        return self.detections.labels

    @property
    def names(self) -> list[str]:
        """The class names of the N detections."""
        return [self.class_names[label] for label in self.labels.tolist()]

    @cached_property
    def masks(self) -> Tensor | None:
        """(N, H, W) bool, made when they are first asked for; None where the model makes none."""
        masks = self.detections.masks
        return None if masks is None else paste_masks(masks, self.boxes, self.size)

    @property
    def picture(self) -> Tensor:
        """(3, H, W) uint8, RGB.

        Raises:
            DataError: of a frame that was not kept; or the file cannot be read any more.
        """
        if self.pixels is not None:
            return self.pixels
        if self.path is None or self.frame is not None:
            raise DataError(f"{self.label}: the frame was not kept; take it from model.stream(...)")
        return read_image(self.path)

    def draw(self) -> Image.Image:
        """Draw what was found into the picture, at its own size."""
        return draw_result(self.picture, self.detections, self.class_names)

    def crop(self) -> list[Image.Image]:
        """Cut the N boxes out of the picture, each at least a pixel large."""
        picture = Image.fromarray(self.picture.permute(1, 2, 0).contiguous().numpy())
        corners = torch.cat([self.boxes[:, :2].floor(), self.boxes[:, 2:].ceil()], dim=1).long()
        return [
            picture.crop((x1, y1, max(x2, x1 + 1), max(y2, y1 + 1))) for x1, y1, x2, y2 in corners.tolist()
        ]

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """In COCO's results format: boxes x, y, width, height, masks as compressed RLE.

        Args:
            image_id: of the picture in the annotation file. Category ids are those of the training's.
        """
        corners = self.boxes.double()
        boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()
        columns = zip(self.labels.tolist(), boxes, self.scores.double().tolist(), strict=True)
        found: list[dict[str, Any]] = [
            {"image_id": image_id, "category_id": self.category_ids[label], "bbox": box, "score": score}
            for label, box, score in columns
        ]
        masks = self.detections.masks
        if masks is not None:
            encoded = paste_and_encode(masks, self.boxes, self.size)
            found = [{**each, "segmentation": mask} for each, mask in zip(found, encoded, strict=True)]
        return found

    def to_supervision(self) -> Any:
        """As `supervision.Detections`, the class names in its data as `class_name`.

        Raises:
            DataError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise DataError("supervision is not installed; pip install 'lgd[supervision]'") from None
        return supervision.Detections(
            xyxy=self.boxes.numpy().astype(np.float32),
            confidence=self.scores.numpy().astype(np.float32),
            class_id=self.labels.numpy().astype(int),
            mask=None if self.masks is None else self.masks.numpy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def to_labelme(self) -> dict[str, Any]:
        """As the content of a labelme file, to be corrected by hand: rectangles, or masks where there are."""
        height, width = self.size
        return {
            "version": "5.5.0",
            "flags": {},
            "shapes": [self._shape(i) for i in range(len(self))],
            "imagePath": self.path.name if self.path else self.name,
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }

    def to_dict(self) -> dict[str, Any]:
        """As a line of JSON has it: picture, size, and boxes xyxy with scores, labels and names."""
        height, width = self.size
        rows = zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), self.names, strict=True)
        frame = {} if self.frame is None else {"frame": self.frame}
        return {
            "file": str(self.path) if self.path else self.name,
            "name": self.name,
            **frame,
            "height": height,
            "width": width,
            "detections": [
                {"box": box, "score": score, "label": label, "name": name} for box, score, label, name in rows
            ],
        }

    def _shape(self, i: int) -> dict[str, Any]:
        x1, y1, x2, y2 = self.boxes[i].tolist()
        shape: dict[str, Any] = {
            "label": self.names[i],
            "score": self.scores[i].item(),
            "description": f"{self.scores[i].item():.3f}",
            "points": [[x1, y1], [x2, y2]],
            "group_id": None,
            "flags": {},
            "shape_type": "rectangle",
        }
        masks = self.detections.masks
        if masks is None:
            return shape
        # labelme's mask is a picture of the pixels from the first to the last corner, this included.
        height, width = self.size
        left, top = min(int(x1), width - 1), min(int(y1), height - 1)
        right, bottom = min(int(x2), width - 1), min(int(y2), height - 1)
        bitmap = paste_masks(masks[i : i + 1], self.boxes[i : i + 1], self.size)[
            0, top : bottom + 1, left : right + 1
        ]
        file = io.BytesIO()
        Image.fromarray(bitmap.numpy().astype(np.uint8) * 255).convert("1").save(file, "PNG")
        corners = [[float(left), float(top)], [float(right), float(bottom)]]
        encoded = base64.b64encode(file.getvalue()).decode()
        return {**shape, "shape_type": "mask", "points": corners, "mask": encoded}
