"""Pictures of ground truth beside detections.

Legend: G objects, D detections; H x W the image; H' x W' a panel, which is the image resized.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from lgd.evaluation.masks import paste_masks
from lgd.inference.captions import (
    Font,
    Rectangle,
    class_color,
    load_font,
    overlap,
    round_inside,
    text_color,
)
from lgd.ops.polygons import rasterize_on_grid
from lgd.structures import Detections, Outlines

_SHORT_SIDE, _LONG_SIDE = 320, 800
_SEPARATOR = 6
_MAX_CAPTION_SHARE = 0.15
_MASK_OPACITY = 0.35
_STRIP_COLOR, _STRIP_TEXT_COLOR = (32, 33, 36), (241, 243, 244)


def draw_detections(
    image: Tensor,
    detections: Detections,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    class_names: Sequence[str],
    *,
    gt_outlines: Outlines | None = None,
    score_threshold: float = 0.5,
    title: str = "detections",
) -> Tensor:
    """Draw the ground truth on the left, the detections on the right.

    The image is resized to a short side of at least 320 pixels, so that the text can be read, but to a long
    side of at most 800. Masks, where there are any, are laid over it in the colours of the boxes.

    Args:
        image: (3, H, W) uint8, RGB.
        detections: D detections, boxes in pixels of `image`.
        gt_boxes: (G, 4) xyxy, pixels of `image`.
        gt_labels: (G,) int64 in [0, K).
        class_names: the K class names by label.
        gt_outlines: the objects' masks, (1, G, ...), in pixels of `image`; None where there are none.
        score_threshold: detections below are left out.
        title: what the right panel is called.

    Returns:
        (3, H'', W'') uint8, RGB: two panels side by side, a strip with the title over each.
    """
    pixels = image.detach().cpu().permute(1, 2, 0).contiguous().numpy()
    scale = _choose_scale(*pixels.shape[:2])
    width, height = (max(1, round(side * scale)) for side in (pixels.shape[1], pixels.shape[0]))
    panel = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)

    gt_masks = None if gt_outlines is None else _rasterize(gt_outlines, scale, (height, width))
    left = _draw_panel(
        _overlay(panel, gt_masks, gt_labels.tolist()),
        f"ground truth: {len(gt_labels)}",
        (gt_boxes * scale).tolist(),
        gt_labels.tolist(),
        [class_names[label] for label in gt_labels.tolist()],
    )
    kept = detections.scores >= score_threshold
    scores, labels = detections.scores[kept].tolist(), detections.labels[kept].tolist()
    boxes = detections.boxes[kept] * scale
    masks = None if detections.masks is None else paste_masks(detections.masks[kept], boxes, (height, width))
    right = _draw_panel(
        _overlay(panel, masks, labels),
        f"{title}: {len(labels)} with score ≥ {score_threshold:g}",
        boxes.tolist(),
        labels,
        [f"{class_names[label]} {score:.2f}" for label, score in zip(labels, scores, strict=True)],
    )
    both = Image.new("RGB", (2 * left.width + _SEPARATOR, left.height), _STRIP_COLOR)
    both.paste(left, (0, 0))
    both.paste(right, (left.width + _SEPARATOR, 0))
    return torch.from_numpy(np.array(both)).permute(2, 0, 1).contiguous()


def draw_objects(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    captions: Sequence[str],
    *,
    outlines: Outlines | None = None,
    title: str,
    long_side: int,
) -> Image.Image:
    """Draw the objects of one image, resized to a long side of so many pixels, under a strip with a title.

    Args:
        image: (3, H, W) uint8, RGB.
        boxes: (G, 4) xyxy, pixels of `image`.
        labels: (G,) int64, which choose the colours.
        captions: G of them.
        outlines: the objects' masks, (1, G, ...), in pixels of `image`; None where there are none.
        title: what stands in the strip.
        long_side: pixels.
    """
    height, width = image.shape[1:]
    scale = long_side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    panel = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC, reducing_gap=3)
    masks = None if outlines is None else _rasterize(outlines, scale, size[::-1])
    panel = _overlay(panel, masks, labels.tolist())
    return _draw_panel(panel, title, (boxes * scale).tolist(), labels.tolist(), captions)


def _rasterize(outlines: Outlines, scale: float, size: tuple[int, int]) -> Tensor:
    """Masks of one image's objects at the size of a panel: (G, H', W') bool."""
    edges, sizes = outlines.edges * scale, torch.tensor([size], device=outlines.edges.device)
    return rasterize_on_grid(edges, outlines.parts, outlines.num_parts, sizes, size, size)[0]


def _overlay(panel: Image.Image, masks: Tensor | None, labels: Sequence[int]) -> Image.Image:
    """Lay (n, H', W') bool masks over a copy of `panel`: translucent, with a line of full colour inside."""
    pixels = np.array(panel)
    if masks is None:
        return Image.fromarray(pixels)
    reach = _line_width(panel) // 2 + 1
    for mask, label in reversed(list(zip(masks.cpu(), labels, strict=True))):  # the best on top
        near_outside = F.max_pool2d(1.0 - mask[None].float(), 2 * reach + 1, stride=1, padding=reach)[0] > 0
        inside, line = mask.numpy(), (mask & near_outside).numpy()
        color = np.array(class_color(label))
        pixels[inside] = ((1 - _MASK_OPACITY) * pixels[inside] + _MASK_OPACITY * color).round()
        pixels[line] = color
    return Image.fromarray(pixels)


def _line_width(panel: Image.Image) -> int:
    return max(2, round(min(panel.size) / 250))


def _choose_scale(height: int, width: int) -> float:
    """Enlarge to a readable size, but let the limit of the long side win."""
    return min(max(1.0, _SHORT_SIDE / min(height, width)), _LONG_SIDE / max(height, width))


def _draw_panel(
    panel: Image.Image, title: str, boxes: list[list[float]], labels: list[int], captions: Sequence[str]
) -> Image.Image:
    """Draw boxes in pixels of `panel` with their captions into it, and put a strip with the title on top."""
    text_size, line_width = max(11, round(min(panel.size) / 36)), _line_width(panel)
    draw = ImageDraw.Draw(panel)
    rectangles = [round_inside(box, *panel.size) for box in boxes]
    for rectangle, label in reversed(list(zip(rectangles, labels, strict=True))):  # the best on top
        draw.rectangle(rectangle, outline=class_color(label), width=line_width)
    _draw_captions(draw, panel, rectangles, labels, captions, load_font(text_size))

    strip_height = round(1.9 * text_size)
    result = Image.new("RGB", (panel.width, panel.height + strip_height), _STRIP_COLOR)
    result.paste(panel, (0, strip_height))
    ImageDraw.Draw(result).text(
        (strip_height // 3, strip_height // 2),
        title,
        _STRIP_TEXT_COLOR,
        load_font(text_size + 1),
        anchor="lm",
    )
    return result


def _draw_captions(
    draw: ImageDraw.ImageDraw,
    panel: Image.Image,
    rectangles: Sequence[Rectangle],
    labels: Sequence[int],
    captions: Sequence[str],
    font: Font,
) -> None:
    """Write captions on plates of the classes' colours, in order, while there is room.

    A crowd would disappear under its captions: plates do not overlap, and cover a small part of the panel.
    """
    _, top, _, bottom = draw.textbbox((0, 0), "Ag", font)  # the same height for every caption
    height = round(bottom - top) + 4
    free_area = _MAX_CAPTION_SHARE * panel.width * panel.height
    plates: list[Rectangle] = []
    for rectangle, label, caption in zip(rectangles, labels, captions, strict=True):
        left, _, right, _ = draw.textbbox((0, 0), caption, font)
        width = round(right - left) + 4
        plate = _find_place(rectangle, width, height, panel, plates)
        if plate is None or width * height > free_area:
            continue
        free_area -= width * height
        plates.append(plate)
        color = class_color(label)
        draw.rectangle(plate, fill=color)
        draw.text((plate[0] + 2 - left, plate[1] + 2 - top), caption, text_color(color), font)


def _find_place(
    rectangle: Rectangle, width: int, height: int, panel: Image.Image, plates: Sequence[Rectangle]
) -> Rectangle | None:
    """Find a free place in the panel: above the box, then inside its top or, for low boxes, below it."""
    x = max(0, min(rectangle[0], panel.width - width))
    above, inside, below = rectangle[1] - height, rectangle[1], rectangle[3] + 1
    is_low = below - inside < 3 * height
    for y in (above, below, inside) if is_low else (above, inside, below):
        plate = (x, y, x + width - 1, y + height - 1)
        if y >= 0 and plate[3] < panel.height and not any(overlap(plate, other) for other in plates):
            return plate
    return None
