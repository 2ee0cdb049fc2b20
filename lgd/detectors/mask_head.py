"""The mask head of Mask R-CNN (arXiv 1703.06870, section 3 and figure 4).

Legend: P regions, C channels, K classes, M the side of a region's map; the mask has side 2M.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgd.layers.conv import ConvNorm
from lgd.ops.predictions import promote


class MaskHead(nn.Module):
    """3x3 convolutions, an upsampling by 2, and a mask for each class.

    Args:
        channels: C.
        num_classes: K, or 1 for the same mask whatever the class.
        num_convs: 3x3 convolutions.
        conv_channels: their width, and that of the upsampled map.
        norm: of the convolutions, a name for `lgd.layers.norm.make_norm`.
        resolution: M.
        sampling_ratio: see `lgd.ops.roi_align.multilevel_roi_align`.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        num_convs: int = 4,
        conv_channels: int = 256,
        norm: str = "",
        resolution: int = 14,
        sampling_ratio: int = 0,
    ) -> None:
        super().__init__()
        self.resolution = resolution
        self.sampling_ratio = sampling_ratio
        self.num_classes = num_classes
        self.conv_names = [f"mask_fcn{index + 1}" for index in range(num_convs)]
        for name in self.conv_names:
            conv = ConvNorm(channels, conv_channels, 3, norm=norm)
            _init_msra(conv)
            self.add_module(name, conv)
            channels = conv_channels
        self.deconv = nn.ConvTranspose2d(channels, conv_channels, 2, stride=2)
        _init_msra(self.deconv)
        self.predictor = nn.Conv2d(conv_channels, num_classes, 1)
        nn.init.normal_(self.predictor.weight, std=0.001)
        assert self.predictor.bias is not None
        nn.init.zeros_(self.predictor.bias)

    def forward(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """Predict the mask of each region's class.

        Args:
            pooled: (P, C, M, M).
            labels: (P,) int64 in [0, K).

        Returns:
            (P, 2M, 2M) logits, at least float32.
        """
        x = pooled
        for name in self.conv_names:
            x = F.relu(self.get_submodule(name)(x))
        logits = promote(self.predictor(F.relu(self.deconv(x))))
        channels = labels if self.num_classes > 1 else torch.zeros_like(labels)
        return logits[torch.arange(logits.shape[0], device=logits.device), channels]


def mask_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean binary cross-entropy over all pixels of all regions (arXiv 1703.06870, section 3).

    Args:
        logits: (P, H, W).
        masks: (P, H, W) bool.

    Returns:
        Scalar; 0 with zero gradients where there are no regions.
    """
    total = F.binary_cross_entropy_with_logits(logits, masks.to(logits.dtype), reduction="sum")
    return total / max(logits.numel(), 1)


def _init_msra(conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Normal with variance 2 / fan_out (arXiv 1502.01852); bias 0."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
