"""Collect, between detecting and scoring: from a detector's tensors to columns on the host.

Legend: B images, R detections of them together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lgd.evaluation.masks import paste_and_encode
from lgd.evaluation.predictions import Masks, Predictions
from lgd.structures import Batch, Detections


def collect_predictions(
    detections: Sequence[Detections], batch: Batch, category_ids: Sequence[int]
) -> Predictions:
    """Take the detections of a batch to the host, all boxes in one transfer.

    Masks are pasted into the original image on the device and encoded image by image, so that no bitmaps are
    kept.

    Args:
        detections: of B images, xyxy boxes in pixels of the original image.
        batch: the images, on the host.
        category_ids: the annotation file's category id of each class, by label.

    Returns:
        R detections, image by image in the batch's order; with masks if the detections have some.
    """
    columns = [
        torch.cat([each.boxes.double(), each.scores.double()[:, None], each.labels.double()[:, None]], dim=1)
        for each in detections
    ]
    table = torch.cat(columns).detach().cpu().numpy()
    counts = [len(each.scores) for each in detections]
    corners = table[:, :4]
    return Predictions(
        image_ids=np.repeat(batch.image_ids.numpy(), counts),
        category_ids=np.array(category_ids, dtype=np.int64)[table[:, 5].astype(np.int64)],
        boxes=np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1),
        scores=table[:, 4].copy(),
        masks=_encode(detections, batch),
    )


def _encode(detections: Sequence[Detections], batch: Batch) -> Masks | None:
    masks = [
        mask
        for each, size in zip(detections, batch.original_sizes.tolist(), strict=True)
        if each.masks is not None
        for mask in paste_and_encode(each.masks.detach(), each.boxes.detach(), tuple(size))
    ]
    return Masks.from_rle(masks) if any(each.masks is not None for each in detections) else None
