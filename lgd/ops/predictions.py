"""From a dense head's maps to rows of predictions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def flatten_predictions(x: Tensor, width: int) -> Tensor:
    """Order predictions by row, column and anchor: (B, A * width, h, w) -> (B, h * w * A, width)."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, width)


def promote(x: Tensor) -> Tensor:
    """Take `x` to at least float32: losses and box arithmetic don't survive half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def take_rows(x: Tensor, indices: Tensor) -> Tensor:
    """Take rows of each image: (B, A, D) and (B, S) int64 in [0, A) -> (B, S, D)."""
    return x.gather(1, indices[..., None].expand(-1, -1, x.shape[-1]))


def take_best(scores: Tensor, limit: int, stable: bool = True) -> tuple[Tensor, Tensor]:
    """Take the best candidates of each image.

    Args:
        scores: (B, A).
        limit: how many at most.
        stable: of equal scores the first comes first, and NaN counts as -inf; else as torch's quicker sort
            leaves them.

    Returns:
        (B, min(limit, A)) scores, descending, and their int64 indices in [0, A).
    """
    if stable:
        scores = torch.where(scores.isnan(), -torch.inf, scores)
    if torch.compiler.is_exporting():
        # ONNX's TopK takes the first of equals; torch's, which is not asked here, takes any.
        return scores.topk(torch.sym_min(limit, scores.shape[1]), dim=1)
    if stable and scores.shape[1] > 2 * limit:
        chosen = _find_best(scores, limit)
        best, order = scores.gather(1, chosen).sort(dim=1, descending=True, stable=True)
        return best, chosen.gather(1, order)
    scores, indices = scores.sort(dim=1, descending=True, stable=stable)
    return scores[:, :limit], indices[:, :limit]


def fill_slots(x: Tensor, num_slots: int, value: float) -> Tensor:
    """Give candidates slots whose number is the same for maps of any size, for a program that is exported.

    Else the sizes of all that comes after are terms of the map's, of minima and sums of them, which torch
    reads for half a minute whenever it opens the file. Nothing is done where the map has one size.

    Args:
        x: (B, S, ...), S at most `num_slots`.
        num_slots: L.
        value: for the slots that are not used.

    Returns:
        (B, L, ...).
    """
    num_used = x.shape[1]
    if isinstance(num_used, int):
        return x
    # Not by torch.cat: AOTInductor makes wrong code of what selects from it (torch 2.14).
    slots = torch.arange(num_slots, device=x.device)
    used = (slots < num_used).view(-1, *[1] * (x.ndim - 2))
    return torch.where(used, x[:, slots.clamp(max=num_used - 1)], value)


def take_above(scores: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Take the few candidates of each image that score enough: a host sync.

    Args:
        scores: (B, A).
        threshold: only those above it.

    Returns:
        (B, T) scores in the order of the indices, then -inf; and their int64 indices in [0, A), then 0. T is
        the most that an image has.
    """
    images, indices = (scores > threshold).nonzero(as_tuple=True)
    counts = torch.bincount(images, minlength=len(scores))
    padded = pad_sequence(list(torch.split(indices, counts.tolist())), batch_first=True)
    used = torch.arange(padded.shape[1], device=scores.device) < counts[:, None]
    return torch.where(used, scores.gather(1, padded), -torch.inf), padded


def _find_best(scores: Tensor, limit: int) -> Tensor:
    """(B, limit) indices of the best, ascending: sorting all to take the first of equals costs far more."""
    worst = scores.topk(limit, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    better, equal = scores > worst, scores == worst
    room = limit - better.sum(dim=1, keepdim=True)
    chosen = better | (equal & (equal.cumsum(dim=1) <= room))
    return torch.nonzero_static(chosen, size=len(scores) * limit)[:, 1].view(-1, limit)
