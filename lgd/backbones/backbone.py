"""What every backbone has."""

from __future__ import annotations

from torch import nn


class Backbone(nn.Module):
    """From images (B, 3, H, W) to maps {name: (B, channels[name], H / strides[name], W / strides[name])}.

    Sizes are rounded up.

    Attributes:
        channels: channels by returned map, fine to coarse.
        strides: pixels per cell by returned map.
    """

    channels: dict[str, int]
    strides: dict[str, int]
