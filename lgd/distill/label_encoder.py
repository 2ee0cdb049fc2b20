"""Label encoding: the objects of an image as descriptors, and a PointNet over them.

Source: LGD (arXiv 2109.11496, section 3.2); PointNet (arXiv 1612.00593).
Legend: B images on a canvas H x W, N object slots, S rows per image (objects and context), K classes,
k descriptor width, C embedding width, E numbers of an embedded category.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgd.ops.polygons import rasterize_in_boxes
from lgd.structures import Outlines, Targets

CategoryFormat = Literal["one_hot", "norm_classes", "embedding"]

EMBEDDING_DIM = 64
"""E, whatever the number of classes: as many as the encoder's first layer makes of the descriptor."""

HIDDEN_WIDTH = 1024
"""Of PointNet's widest layers, which the paper leaves as they are."""

MOST_ONE_HOT = 200
"""Classes up to which one-hot costs little; of each object the encoder's first matrix has K^2 entries."""

_MASK_SIZE = 7


@dataclass(frozen=True)
class LabelRows:
    """What the teacher is told about a batch.

    With a context box the last row of every image is the context, S = N + 1; else S = N.

    Attributes:
        boxes: (B, S, 4) xyxy pixels of the canvas, x in [0, W - 1], y in [0, H - 1].
        descriptors: (B, S, k): box over canvas size, then the category, then the mask, if any; in [-1, 1],
            embedded categories apart.
        valid: (B, S) bool; every image has at least one valid row.
    """

    boxes: Tensor
    descriptors: Tensor
    valid: Tensor


def descriptor_width(num_classes: int, category_format: CategoryFormat, use_masks: bool = False) -> int:
    """Return k: 4 box coordinates, the category, and the 7 x 7 cells of the mask.

    Raises:
        ValueError: an unknown category format.
    """
    widths = {"one_hot": num_classes, "norm_classes": 1, "embedding": EMBEDDING_DIM}
    if category_format not in widths:
        raise ValueError(f"unknown category format {category_format!r}; choose one of {tuple(widths)}")
    return 4 + widths[category_format] + _MASK_SIZE**2 * use_masks


def format_for(num_classes: int) -> CategoryFormat:
    """The category format for a number of classes: the paper's for few, embedded for many."""
    return "one_hot" if num_classes <= MOST_ONE_HOT else "embedding"


class CategoryEmbedding(nn.Embedding):
    """E learned numbers for each class in place of the K of one-hot, drawn from these' range [0, 1].

    They are the product of one-hot categories and a matrix (K, E): with the unit matrix they are one-hot.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, EMBEDDING_DIM)

    def reset_parameters(self) -> None:
        """Draw all anew."""
        nn.init.uniform_(self.weight)


def require_outlines(targets: Targets) -> Outlines:
    """Return the masks of `targets`; raises ValueError where there are none."""
    if targets.outlines is None:
        raise ValueError(
            "the teacher reads masks and the targets have no outlines; load them (with_masks=True), or build "
            "the teacher without (use_masks=False; MODEL.DISTILLATOR.LABEL_ENCODER.LOAD_LABELMAP False)"
        )
    return targets.outlines


def describe_labels(
    targets: Targets,
    canvas: Sequence[int] | Tensor,
    *,
    num_classes: int,
    category_format: CategoryFormat,
    add_context_box: bool,
    dtype: torch.dtype,
    use_masks: bool = False,
    embedding: Tensor | None = None,
) -> LabelRows:
    """Describe the objects of every image, and its context.

    The context is one more row: the whole canvas, of no category, its mask full. An image without objects
    has a single row, the box (0, 0, 1, 1) of no category, its mask empty, which stands for its context where
    there is one.

    Args:
        targets: ground truth.
        canvas: (H, W), numbers or a (2,) tensor.
        num_classes: K.
        category_format: "one_hot" (K numbers), "norm_classes" (class / K as one number), or "embedding" (E
            learned numbers).
        add_context_box: whether to append the context row.
        dtype: of the boxes and descriptors.
        use_masks: whether to describe the masks, as they are in a 7 x 7 grid over the box.
        embedding: (K, E), what is learned for the last of the formats.

    Raises:
        ValueError: masks are to be described and the targets have none.
    """
    boxes, valid = targets.boxes.to(dtype), targets.valid
    if category_format == "embedding":
        assert embedding is not None
        categories = F.embedding(targets.labels, embedding)
    else:
        categories = _encode_categories(targets.labels, num_classes, category_format, dtype)
    categories = categories * valid[..., None]
    masks = _encode_masks(targets, dtype) if use_masks else categories[..., :0]
    height, width = canvas
    has_objects = valid.any(dim=1, keepdim=True)
    if add_context_box:
        corner = torch.stack([torch.where(has_objects, side, 1) for side in (width, height)], dim=-1)
        boxes = torch.cat([boxes, F.pad(corner, (2, 0)).to(dtype)], dim=1)
        categories = F.pad(categories, (0, 0, 0, 1))
        whole = has_objects[..., None].expand(-1, -1, masks.shape[-1])
        masks = torch.cat([masks, whole.to(dtype)], dim=1)
        valid = F.pad(valid, (0, 1), value=True)
    else:
        is_dummy = ~has_objects & (torch.arange(valid.shape[1], device=valid.device) == 0)
        unit_box = F.pad(torch.ones_like(boxes[:, :1, :2]), (2, 0))
        boxes = torch.where(is_dummy[..., None], unit_box, boxes)
        valid = valid | is_dummy
    x = boxes[..., 0::2].clamp(min=0).clamp(max=width - 1)
    y = boxes[..., 1::2].clamp(min=0).clamp(max=height - 1)
    boxes = torch.stack([x, y], dim=-1).flatten(-2)
    relative_boxes = torch.stack([x / width, y / height], dim=-1).flatten(-2)
    descriptors = 2 * torch.cat([relative_boxes, categories, masks], dim=-1) - 1
    return LabelRows(boxes, descriptors, valid)


def _encode_categories(
    labels: Tensor, num_classes: int, category_format: CategoryFormat, dtype: torch.dtype
) -> Tensor:
    """(B, N) -> (B, N, K) or (B, N, 1), in [0, 1]."""
    if category_format == "norm_classes":
        return labels[..., None].to(dtype) / num_classes
    return (labels[..., None] == torch.arange(num_classes, device=labels.device)).to(dtype)


def _encode_masks(targets: Targets, dtype: torch.dtype) -> Tensor:
    """(B, N, 49), 0 or 1, by rows; the grid lies over the box as it is, before any clamping."""
    outlines = require_outlines(targets)
    edges, parts, boxes = (x.flatten(0, 1) for x in (outlines.edges, outlines.parts, targets.boxes))
    masks = rasterize_in_boxes(edges, parts, outlines.num_parts, boxes, _MASK_SIZE)
    return (masks.view(*targets.valid.shape, -1) & targets.valid[..., None]).to(dtype)


def _norm_relu(x: Tensor) -> Tensor:
    """Layer norm over the channels without affine, then ReLU."""
    return F.relu_(F.layer_norm(x, x.shape[-1:]))


class SpatialTransformer(nn.Module):
    """Predicts a matrix for each row and applies it (the T-Net of PointNet, without its identity).

    Args:
        width: k, of the rows.
        hidden_width: of the widest layer, at least 4.
    """

    def __init__(self, width: int, hidden_width: int = HIDDEN_WIDTH) -> None:
        super().__init__()
        self.width = width
        self.conv1 = nn.Linear(width, 64)
        self.conv2 = nn.Linear(64, 128)
        self.conv3 = nn.Linear(128, hidden_width)
        self.fc1 = nn.Linear(hidden_width, hidden_width // 2)
        self.fc2 = nn.Linear(hidden_width // 2, hidden_width // 4)
        self.fc3 = nn.Linear(hidden_width // 4, width * width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, k) -> (B, S, k)."""
        hidden = x
        for layer in (self.conv1, self.conv2, self.conv3, self.fc1, self.fc2):
            hidden = _norm_relu(layer(hidden))
        matrices: Tensor = self.fc3(hidden).unflatten(-1, (self.width, self.width))
        return (x.unsqueeze(-2) @ matrices).squeeze(-2)


class LabelEncoder(nn.Module):
    """PointNet over the rows of each image.

    Args:
        descriptor_width: k.
        embedding_width: C.
        hidden_width: of the widest layers, at least 4.
    """

    def __init__(
        self, *, descriptor_width: int, embedding_width: int, hidden_width: int = HIDDEN_WIDTH
    ) -> None:
        super().__init__()
        self.stn_desc = SpatialTransformer(descriptor_width, hidden_width)
        self.conv1 = nn.Linear(descriptor_width, 64)
        self.stn_feat = SpatialTransformer(64, hidden_width)
        self.conv2 = nn.Linear(64, 128)
        self.conv3 = nn.Linear(128, hidden_width)
        self.conv4 = nn.Linear(64 + hidden_width, embedding_width)

    def forward(self, rows: LabelRows) -> Tensor:
        """Embed every row, knowing the others of its image: (B, S, C); invalid rows without meaning."""
        # In half precision a coordinate would be rounded to some pixels, and these layers cost nothing.
        with torch.autocast(rows.descriptors.device.type, enabled=False):
            local = self.stn_feat(_norm_relu(self.conv1(self.stn_desc(rows.descriptors))))
            hidden = _norm_relu(self.conv3(_norm_relu(self.conv2(local))))
            hidden = hidden.masked_fill(~rows.valid[..., None], -torch.inf)
            shared = hidden.amax(dim=1, keepdim=True).expand_as(hidden)
            return _norm_relu(self.conv4(torch.cat([local, shared], dim=-1)))
