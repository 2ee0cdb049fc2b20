"""NaN and infinity kept away from operators that read memory where their input says.

Torchvision's kernels for the CPU read anywhere at coordinates that are no numbers, and the process dies
without a word. A training that diverges shall end by its losses.
"""

from __future__ import annotations

import torch
from torch import Tensor


def replace_non_finite(x: Tensor, *, rows: bool = False) -> tuple[Tensor, Tensor]:
    """Put zeros in the place of NaN and infinity; no host sync.

    Args:
        x: (..., N).
        rows: zeros in the place of all N values of which one is none.

    Returns:
        The tensor, and a scalar to add to what comes of it: 0, or NaN where there was something to replace.
    """
    sound = torch.isfinite(x)
    if rows:
        sound = sound.all(dim=-1, keepdim=True)
    return torch.where(sound, x, 0), torch.where(sound.all(), 0, torch.nan).to(x.dtype)
