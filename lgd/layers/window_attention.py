"""Self-attention within windows of a map, and the windows (arXiv 2103.14030, section 3.2).

Legend: B images; H x W a map of whole windows; M side of a window; W windows of an image, row by row;
L = M^2 tokens of a window, row by row; C channels; N heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BLOCKED = -100.0  # added to the logits of pairs that must not attend to each other


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learnt bias for each relative position and head.

    Args:
        channels: C.
        num_heads: N.
        window_size: M.
        reference_order: attend in single steps, rounded as in the reference, instead of by torch's operator.
    """

    relative_position_index: Tensor

    def __init__(
        self, channels: int, num_heads: int, window_size: int, *, reference_order: bool = False
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.reference_order = reference_order
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        table = torch.empty((2 * window_size - 1) ** 2, num_heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        index = _relative_position_index(window_size)
        self.register_buffer("relative_position_index", index, persistent=False)

    def forward(self, windows: Tensor, shift_mask: Tensor | None) -> Tensor:
        """Attend within each window.

        Args:
            windows: (B, W, L, C).
            shift_mask: (W, L, L) added to the logits of every head; None for none.

        Returns:
            (B, W, L, C).
        """
        batch, num_windows, length, channels = windows.shape
        projected = self.qkv(windows).view(batch * num_windows, length, 3, self.num_heads, -1)
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias().to(query.dtype)
        mask = None if shift_mask is None else shift_mask[:, None].to(query.dtype)
        if self.reference_order:
            attended = _attend_in_steps(query, key, value, bias, mask)
        else:
            if mask is not None:
                bias = (bias + mask).repeat(batch, 1, 1, 1)
            bias = bias.expand(batch * num_windows, -1, -1, -1)
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        merged: Tensor = self.proj(attended.transpose(1, 2).reshape(batch, num_windows, length, channels))
        return merged

    def relative_position_bias(self) -> Tensor:
        """(N, L, L), added to the logit of each query and key."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)


def _attend_in_steps(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    """Attend with the bias and then the mask added to the logits.

    Args:
        query: (B * W, N, L, C / N).
        key: as `query`.
        value: as `query`.
        bias: (N, L, L).
        mask: (W, 1, L, L), or None.

    Returns:
        As `query`.
    """
    logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1) + bias
    if mask is not None:
        logits = (logits.unflatten(0, (-1, len(mask))) + mask).flatten(0, 1)
    attended: Tensor = logits.softmax(dim=-1) @ value
    return attended


def split_windows(x: Tensor, window_size: int) -> Tensor:
    """(B, H, W, C) of whole windows -> (B, number of windows, L, C)."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window_size, window_size, width // window_size, window_size, channels)
    return x.transpose(2, 3).reshape(batch, -1, window_size**2, channels)


def join_windows(windows: Tensor, height: int, width: int) -> Tensor:
    """Undo `split_windows`: (B, number of windows, L, C) -> (B, height, width, C)."""
    batch, _, length, channels = windows.shape
    side = round(length**0.5)
    windows = windows.view(batch, height // side, width // side, side, side, channels)
    return windows.transpose(2, 3).reshape(batch, height, width, channels)


def make_shift_mask(x: Tensor, window_size: int) -> Tensor:
    """What shifted windows add to their logits, so that the two ends of the rolled map don't mix.

    A map of a single window is parted too, as in the authors' detectors (torchvision does not shift it).

    Args:
        x: (B, h, w, C), the map before padding; its size, dtype and device count.
        window_size: M; the shift is half of it, rounded down.

    Returns:
        (W, L, L), 0 where two tokens of a window were neighbours before the roll, -100 where not.
    """
    ends = [
        torch.arange(size + -size % window_size, 0, -1, device=x.device)  # cells to the map's far end
        for size in x.shape[1:3]
    ]
    rows, columns = ((end <= window_size).long() + (end <= window_size // 2) for end in ends)
    regions = 3 * rows[:, None] + columns
    tokens = split_windows(regions[None, :, :, None], window_size)[0, :, :, 0]
    apart = tokens[:, :, None] != tokens[:, None, :]
    return torch.zeros(apart.shape, dtype=x.dtype, device=x.device).masked_fill_(apart, _BLOCKED)


def _relative_position_index(window_size: int) -> Tensor:
    """(L, L) rows of the bias table: where a query lies as seen from a key, by rows, then columns."""
    cells = torch.cartesian_prod(torch.arange(window_size), torch.arange(window_size))
    offsets = cells[:, None] - cells[None, :] + window_size - 1
    return offsets[..., 0] * (2 * window_size - 1) + offsets[..., 1]
