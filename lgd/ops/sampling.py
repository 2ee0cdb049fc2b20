"""Random samples of a fixed size, for a whole batch at once.

Legend: B images, A candidates of each, S samples of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """Candidates drawn from each image, foreground first.

    Attributes:
        indices: (B, S) int64 in [0, A), no candidate twice among the valid ones.
        foreground: (B, S) bool, which slots hold a foreground candidate.
        valid: (B, S) bool, which slots hold a candidate at all.
    """

    indices: Tensor
    foreground: Tensor
    valid: Tensor


@torch.no_grad()
def sample_balanced(
    foreground: Tensor, background: Tensor, *, num_samples: int, positive_fraction: float
) -> Samples:
    """Draw at random, foreground up to a share and background for the rest (arXiv 1506.01497, section 3.1.3).

    Random keys and their largest take the place of shuffled lists of indices, so that the sizes are the same
    whatever the masks hold, and nothing waits for the device. Draws from torch's global generator.

    Args:
        foreground: (B, A) bool.
        background: (B, A) bool, nowhere true together with `foreground`; the others are never drawn.
        num_samples: of each image, as far as there are so many.
        positive_fraction: at most int(num_samples * positive_fraction) are foreground; background does not
            exceed num_samples less the foreground drawn.

    Returns:
        S = min(num_samples, A) slots per image.
    """
    num_candidates = foreground.shape[1]
    max_foreground = min(int(num_samples * positive_fraction), num_candidates)
    keys = torch.rand(foreground.shape, device=foreground.device)
    drawn, indices = torch.where(foreground, keys, -1).topk(max_foreground, dim=1)
    chosen = torch.zeros_like(foreground).scatter(1, indices, drawn >= 0)
    # The foreground chosen lies above all background, and what must not be drawn below it.
    keys = torch.where(chosen, keys + 1, torch.where(background, keys, -1))
    keys, indices = keys.topk(min(num_samples, num_candidates), dim=1)
    return Samples(indices, foreground=keys >= 1, valid=keys >= 0)
