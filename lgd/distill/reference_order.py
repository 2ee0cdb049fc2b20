"""The dynamic teacher with its sums in the order of the reference.

`DynamicTeacher` takes the images of a batch at once; here each is taken by itself, and the layers are applied
as the reference applies them. The numbers are the same to rounding, and to the last bit the reference's. That
decides between candidates that tie: where there is no object the teacher's features are the same all over.

Legend: B images, C channels, h x w the map of a level, T valid rows of the batch (see `LabelRows`), T_b of
one image, k the width of a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgd.distill.label_encoder import LabelEncoder, LabelRows, SpatialTransformer
from lgd.distill.teacher import DynamicTeacher
from lgd.structures import Features


class ReferenceOrderTeacher(DynamicTeacher):
    """See `DynamicTeacher`; slower, and it keeps all maps for backward whatever `checkpoint` says."""

    static_parts = ()

    def _make_features(self, features: Features, rows: LabelRows, masks: Features) -> Features:
        labels = None
        if self.interact_pattern != "student_fill":
            labels = _norm_relu(self.label_projection(_encode_labels(self.label_encoder, rows)))
        taught = {}
        for level, x in features.items():
            inside = [of_image[is_row] for of_image, is_row in zip(masks[level], rows.valid, strict=True)]
            related = self._relate(x, inside, labels, rows)
            taught[level] = self._draw(related, inside, (x.shape[-2], x.shape[-1]))
        return taught

    def _relate(
        self, feature: Tensor, masks: Sequence[Tensor], labels: Tensor | None, rows: LabelRows
    ) -> Tensor:
        """Relate the rows to each other on one level by the pattern: (T, C)."""
        if self.interact_pattern == "teacher_fill":
            assert labels is not None
            return labels
        appearance = self._pool_rows(feature.detach() if self.detach_appearance_embed else feature, masks)
        if labels is None:
            return appearance
        queries, keys = (appearance, labels) if self.interact_pattern == "stuGuided" else (labels, appearance)
        images = rows.valid.nonzero()[:, 0]
        keys = keys[None]  # one tensor: the attention then projects keys and values together
        attended: Tensor
        attended, _ = self.attention(queries[None], keys, keys, attn_mask=images[:, None] != images)
        return attended[0]

    def _pool_rows(self, feature: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """(B, C, h, w) and B x (T_b, h * w) -> (T, C)."""
        projected = F.relu(F.group_norm(self.student_projection(feature), 1)).flatten(2)
        pooled = [inside @ x.T for x, inside in zip(projected, masks, strict=True)]
        areas = [inside.sum(dim=-1, keepdim=True).clamp(min=1) for inside in masks]
        return torch.cat([total / area for total, area in zip(pooled, areas, strict=True)])

    def _draw(self, embeddings: Tensor, masks: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """(T, C) and B x (T_b, h * w) -> (B, C, h, w)."""
        by_image: Sequence[Tensor] = torch.split(embeddings, [len(inside) for inside in masks])
        if self.add_context_box:
            context = self.context_projection(torch.stack([vectors[-1] for vectors in by_image]))
            by_image, masks = [vectors[:-1] for vectors in by_image], [inside[:-1] for inside in masks]
        painted = [
            self.instance_projection(vectors).T @ inside
            for vectors, inside in zip(by_image, masks, strict=True)
        ]
        x = self.instance_conv(torch.cat(painted).view(len(masks), -1, *size))
        if self.add_context_box:
            x = x + context[..., None, None]
        taught: Tensor = self.refinement(F.relu(x))
        return taught


def _encode_labels(encoder: LabelEncoder, rows: LabelRows) -> Tensor:
    """(T, C)."""
    x = _transform(encoder.stn_desc, rows.descriptors[rows.valid])
    local = _transform(encoder.stn_feat, _norm_relu(_convolve(encoder.conv1, x)))
    hidden = _norm_relu(_convolve(encoder.conv3, _norm_relu(_convolve(encoder.conv2, local))))
    by_image = torch.split(hidden, rows.valid.sum(dim=1).tolist())
    shared = torch.cat([of_image.amax(dim=0, keepdim=True).expand_as(of_image) for of_image in by_image])
    return _norm_relu(_convolve(encoder.conv4, torch.cat([local, shared], dim=-1)))


def _transform(transformer: SpatialTransformer, x: Tensor) -> Tensor:
    """(T, k) -> (T, k)."""
    hidden = x
    for layer in (transformer.conv1, transformer.conv2, transformer.conv3):
        hidden = _norm_relu(_convolve(layer, hidden))
    hidden = _norm_relu(transformer.fc2(_norm_relu(transformer.fc1(hidden))))
    matrices = transformer.fc3(hidden).unflatten(-1, (transformer.width, transformer.width))
    return torch.bmm(x.unsqueeze(1), matrices).squeeze(1)


def _convolve(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer to `x` (T, k) as a convolution over single cells."""
    return F.conv1d(x.unsqueeze(-1), layer.weight.unsqueeze(-1), layer.bias).squeeze(-1)


def _norm_relu(x: Tensor) -> Tensor:
    return F.relu(F.layer_norm(x, x.shape[-1:]))
