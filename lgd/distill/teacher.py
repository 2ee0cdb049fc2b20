"""The dynamic teacher: features from the labels and the student's features.

Source: LGD (arXiv 2109.11496, sections 3.2-3.4).
Legend: B images on a canvas H x W, L levels of C x h x w, N object slots, S rows per image (objects and
context, see `LabelRows`), K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgd.distill.label_encoder import (
    HIDDEN_WIDTH,
    CategoryEmbedding,
    CategoryFormat,
    LabelEncoder,
    LabelRows,
    describe_labels,
    descriptor_width,
    require_outlines,
)
from lgd.layers.conv import Conv2d
from lgd.layers.group_norm import GroupNorm, group_norm
from lgd.layers.recompute import cheaply_recomputed, feed_recomputed, recomputed
from lgd.ops.polygons import image_area, rasterize_on_grid
from lgd.structures import Batch, Features

InteractPattern = Literal["stuGuided", "labelGuided", "student_fill", "teacher_fill"]


def inside_masks(boxes: Tensor, valid: Tensor, canvas: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Mark the cells of one level that lie inside each box.

    The cell in row i and column j counts as the point (j, i) on the box scaled to the level; the border
    belongs to the box, and a box without extent holds nothing.

    Args:
        boxes: (B, S, 4) xyxy pixels of the canvas; at least float32.
        valid: (B, S) bool.
        canvas: (H, W).
        size: (h, w) of the level.

    Returns:
        (B, S, h, w) bool; empty for invalid rows.
    """
    along = []
    for axis, (canvas_side, side) in enumerate(zip(canvas, size, strict=True)):
        ends = boxes[..., (1 - axis) :: 2] * (side / canvas_side)
        center, extent = ends.mean(dim=-1, keepdim=True), ends[..., 1:] - ends[..., :1]
        cells = torch.arange(side, dtype=boxes.dtype, device=boxes.device)
        along.append((center - cells).abs() / extent <= 0.5)
    rows, columns = along
    return (rows & valid[..., None])[..., :, None] & columns[..., None, :]


def inside_outlines(batch: Batch, size: tuple[int, int], *, add_context_box: bool) -> Tensor:
    """Mark the cells of one level that lie inside each object's mask.

    Args:
        batch: images, which give the canvas, and targets.
        size: (h, w) of the level.
        add_context_box: whether to append the context's mask: the image without the padding, or nothing
            where the image has no objects.

    Returns:
        (B, S, h, w) bool; empty for unused slots.

    Raises:
        ValueError: the targets have no outlines.
    """
    outlines, valid = require_outlines(batch.targets), batch.targets.valid
    canvas = (batch.images.shape[-2], batch.images.shape[-1])
    masks = rasterize_on_grid(outlines.edges, outlines.parts, outlines.num_parts, batch.sizes, canvas, size)
    masks = masks & valid[..., None, None]
    if not add_context_box:
        return masks
    context = image_area(batch.sizes, canvas, size) & valid.any(dim=1)[:, None, None]
    return torch.cat([masks, context[:, None]], dim=1)


def normalize_and_rectify(x: Tensor) -> Tensor:
    """Normalise each image of a map (B, C, h, w) over its channels and cells; keep the positive part."""
    return F.relu(group_norm(x, 1))


def pool_normalized(x: Tensor, masks: Tensor) -> Tensor:
    """Normalise a map over its channels and cells, and take the means of its positive part inside masks.

    Args:
        x: (B, C, h, w).
        masks: (B, S, h * w), 0 or 1.

    Returns:
        (B, S, C), 0 where a mask is empty.
    """
    x = normalize_and_rectify(x).flatten(2).transpose(1, 2)
    return masks @ x / masks.sum(dim=-1, keepdim=True).clamp(min=1)


def paint(vectors: Tensor, masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Add up the objects' vectors where their masks are.

    Args:
        vectors: (B, S, C).
        masks: (B, S, h * w), 0 or 1.
        size: (h, w).

    Returns:
        (B, C, h, w).
    """
    return (vectors.transpose(1, 2) @ masks).view(len(vectors), -1, *size)


def taps_pay(vectors: Tensor, conv: nn.Conv2d) -> bool:
    """Whether `paint_through_taps` is the cheaper way for these (B, S, C).

    Compiled code takes the other way; else it would be made twice, for few objects and for many.
    """
    # Up to here the shifted masks take no more memory than the painted map.
    few = vectors.shape[1] * conv.weight[0, 0].numel() <= vectors.shape[2]
    return few and not torch.compiler.is_compiling()


def paint_through_taps(
    vectors: Tensor, masks: Tensor, size: tuple[int, int], weight: Tensor, bias: Tensor
) -> Tensor:
    """Paint the objects' vectors and convolve the map, object by object.

    A sum of few objects has few distinct columns: it is cheaper to take each object through the kernel's taps
    and to paint the results through the shifted masks. On a CPU 30 times for 5 objects of 256 channels.

    Args:
        vectors: (B, S, C).
        masks: (B, S, h * w), 0 or 1.
        size: (h, w).
        weight: (C, C, 3, 3) of a convolution with padding 1.
        bias: (C,).

    Returns:
        (B, C, h, w).
    """
    through_taps = torch.einsum("bsc,ocyx->bosyx", vectors, weight).flatten(2)
    shifted = F.unfold(masks.reshape(-1, 1, *size), 3, padding=1).view(
        len(vectors), through_taps.shape[2], -1
    )
    return (through_taps @ shifted).view(len(vectors), -1, *size) + bias[:, None, None]


def _draw(
    vectors: Tensor,
    masks: Tensor,
    size: tuple[int, int],
    weight: Tensor,
    bias: Tensor,
    context: Tensor | None,
) -> Tensor:
    """`paint_through_taps`, and the context (B, C) around."""
    return _surround(paint_through_taps(vectors, masks, size, weight, bias), context)


def _surround(x: Tensor, context: Tensor | None) -> Tensor:
    """Add the context (B, C), if there is one, to every cell of a map; keep the positive part."""
    return F.relu(x if context is None else x + context[..., None, None])


class DynamicTeacher(nn.Module):
    """Makes teacher features of the student's names and shapes; has only the parameters its pattern uses.

    Args:
        channels: C.
        num_classes: K.
        interact_pattern: what attends to what: "stuGuided" (appearance asks labels), "labelGuided" (labels
            ask appearance), or no attention: "student_fill" (appearance), "teacher_fill" (labels).
        add_context_box: one more row for the whole image, which is added to every cell.
        detach_appearance_embed: no gradient from the teacher into the student's features.
        category_format: see `describe_labels`.
        label_width: of the label encoder's widest layers.
        num_heads: of the attention.
        use_masks: describe objects by their masks too, and pool and paint inside these instead of the boxes.
        checkpoint: compute the maps of each level again in the backward pass instead of keeping them: the
            same numbers for less memory and more time.

    Raises:
        ValueError: an unknown pattern or category format, or channels that the heads don't divide.
    """

    static_parts: tuple[str, ...] = ("_embed_appearance", "_render_levels")

    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        interact_pattern: InteractPattern = "stuGuided",
        add_context_box: bool = False,
        detach_appearance_embed: bool = False,
        category_format: CategoryFormat = "one_hot",
        label_width: int = HIDDEN_WIDTH,
        num_heads: int = 8,
        use_masks: bool = False,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if interact_pattern not in get_args(InteractPattern):
            raise ValueError(
                f"unknown interaction pattern {interact_pattern!r}; choose one of {get_args(InteractPattern)}"
            )
        uses_labels, uses_appearance = interact_pattern != "student_fill", interact_pattern != "teacher_fill"
        self.num_classes = num_classes
        self.interact_pattern = interact_pattern
        self.add_context_box = add_context_box
        self.detach_appearance_embed = detach_appearance_embed
        # Where no label is read, any format does.
        self.category_format: CategoryFormat = category_format if uses_labels else "norm_classes"
        self.use_masks = use_masks
        self.checkpoint = checkpoint
        if uses_labels:
            width = descriptor_width(num_classes, category_format, use_masks)
            self.label_encoder = LabelEncoder(
                descriptor_width=width, embedding_width=channels, hidden_width=label_width
            )
            self.label_projection = nn.Linear(channels, channels)
        self.category_embedding: CategoryEmbedding | None = None
        if self.category_format == "embedding":
            self.category_embedding = CategoryEmbedding(num_classes)
        if uses_appearance:
            self.student_projection = Conv2d(channels, channels, 3, padding=1)
        if uses_labels and uses_appearance:
            if channels % num_heads:
                raise ValueError(f"{num_heads} attention heads don't divide {channels} channels")
            self.attention = nn.MultiheadAttention(channels, num_heads, batch_first=True)
        self.instance_projection = nn.Linear(channels, channels)
        self.instance_conv = Conv2d(channels, channels, 3, padding=1)
        if add_context_box:
            self.context_projection = nn.Linear(channels, channels)
        self.refinement = nn.Sequential(
            Conv2d(channels, channels, 3, padding=1),
            GroupNorm(1, channels, affine=False),
            nn.ReLU(inplace=True),
            Conv2d(channels, channels, 3, padding=1),
            GroupNorm(1, channels, affine=False),
            nn.ReLU(inplace=True),
            Conv2d(channels, channels, 3, padding=1),
            GroupNorm(1, channels, affine=False),
        )

    def forward(self, features: Features, batch: Batch) -> Features:
        """Make the teacher's features.

        Args:
            features: the student's, {level: (B, C, h, w)}.
            batch: its targets, and the canvas they are measured on.

        Returns:
            {level: (B, C, h, w)}, the student's levels and shapes.

        Raises:
            ValueError: the teacher uses masks and the targets have no outlines.
        """
        canvas = (batch.images.shape[-2], batch.images.shape[-1])
        rows = describe_labels(
            batch.targets,
            canvas if batch.canvas is None else batch.canvas,
            num_classes=self.num_classes,
            category_format=self.category_format,
            add_context_box=self.add_context_box,
            dtype=self.instance_projection.weight.dtype,
            use_masks=self.use_masks,
            embedding=None if self.category_embedding is None else self.category_embedding.weight,
        )
        masks = {}
        for level, x in features.items():
            size = (x.shape[-2], x.shape[-1])
            if self.use_masks:
                inside = inside_outlines(batch, size, add_context_box=self.add_context_box)
            else:
                inside = inside_masks(rows.boxes, rows.valid, canvas, size)
            masks[level] = inside.flatten(2).to(rows.boxes.dtype)
        return self._make_features(features, rows, masks)

    def _make_features(self, features: Features, rows: LabelRows, masks: Features) -> Features:
        """Make the features from the `rows` and their `masks`, {level: (B, S, h * w)}, 0 or 1."""
        sizes = {level: (x.shape[-2], x.shape[-1]) for level, x in features.items()}
        return self._render_levels(self._interact(features, masks, rows), masks, sizes)

    def _interact(self, features: Features, masks: Features, rows: LabelRows) -> Tensor:
        """Relate the rows of an image to each other by the pattern: (B, L, S, C)."""
        if self.interact_pattern == "student_fill":
            return self._embed_appearance(features, masks)
        labels = self._embed_labels(rows)
        if self.interact_pattern == "teacher_fill":
            return labels.unsqueeze(1).expand(-1, len(features), -1, -1)
        appearance = self._embed_appearance(features, masks)
        if self.interact_pattern == "stuGuided":
            # The keys are the same at every level, so that all levels' queries share one projection of them.
            queries, keys, unused = appearance.flatten(1, 2), labels, ~rows.valid
        else:
            queries = labels.repeat_interleave(len(features), dim=0)
            keys = appearance.flatten(0, 1)
            unused = (~rows.valid).repeat_interleave(len(features), dim=0)
        attended: Tensor
        attended, _ = self.attention(queries, keys, keys, key_padding_mask=unused, need_weights=False)
        return attended.reshape(appearance.shape)

    def _embed_labels(self, rows: LabelRows) -> Tensor:
        """(B, S, C)."""
        x = self.label_projection(self.label_encoder(rows))
        return F.relu(F.layer_norm(x, x.shape[-1:]))

    def _embed_appearance(self, features: Features, masks: Features) -> Tensor:
        """Mean of the projected features inside each row's mask, 0 where it is empty: (B, L, S, C)."""
        return torch.stack(
            [
                self._recomputed(self._pool, x.detach() if self.detach_appearance_embed else x, masks[level])
                for level, x in features.items()
            ],
            dim=1,
        )

    def _pool(self, feature: Tensor, masks: Tensor) -> Tensor:
        """Project one level and take the means inside its masks: (B, C, h, w), (B, S, h * w) -> (B, S, C)."""
        return cheaply_recomputed(pool_normalized, self.student_projection(feature), masks)

    def _render_levels(
        self, embeddings: Tensor, masks: Features, sizes: Mapping[str, tuple[int, int]]
    ) -> Features:
        """(B, L, S, C) -> {level: (B, C, h, w)}, each level's (h, w) in `sizes`."""
        return {
            level: self._recomputed(self._render, embeddings[:, index], masks[level], size)
            for index, (level, size) in enumerate(sizes.items())
        }

    def _render(self, embeddings: Tensor, masks: Tensor, size: tuple[int, int]) -> Tensor:
        """Paint one level's objects where they are, the context everywhere: (B, S, C) -> (B, C, h, w)."""
        num_objects = embeddings.shape[1] - int(self.add_context_box)
        vectors = self.instance_projection(embeddings[:, :num_objects])
        masks = masks[:, :num_objects]
        context = self.context_projection(embeddings[:, -1]) if self.add_context_box else None
        conv = self.instance_conv
        first, _, _, second, _, _, third, last = self.refinement
        if taps_pay(vectors, conv):
            x = self._fed(first, _draw, vectors, masks, size, conv.weight, conv.bias, context)
        else:
            x = first(_surround(conv(paint(vectors, masks, size)), context))
        x = self._fed(second, normalize_and_rectify, x)
        taught: Tensor = last(self._fed(third, normalize_and_rectify, x))
        return taught

    def _fed(
        self, consumer: Callable[[Tensor], Tensor], function: Callable[..., Tensor], *arguments: Any
    ) -> Tensor:
        """`feed_recomputed`, unless everything is made again anyway."""
        if self.checkpoint:
            return consumer(function(*arguments))
        return feed_recomputed(consumer, function, *arguments)

    def _recomputed(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """Call the function; if so asked, its insides are not kept for the backward pass."""
        return recomputed(function, *arguments) if self.checkpoint else function(*arguments)
