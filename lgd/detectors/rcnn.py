"""Faster R-CNN (arXiv 1506.01497) and Mask R-CNN (arXiv 1703.06870) on a feature pyramid.

Legend: B images on a canvas H x W, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from lgd.detectors.roi_heads import RoIHeads
from lgd.detectors.rpn import RPN
from lgd.layers.fpn import FPN
from lgd.layers.pixels import PixelNormalizer
from lgd.structures import Batch, Detections, Features, PaddedDetections


class RCNN(nn.Module):
    """The two-stage detector; see `lgd.detectors.protocol.Detector`.

    Args:
        backbone: bottom-up network, (B, 3, H, W) -> maps by name.
        neck: feature pyramid over it.
        proposal_generator: the first stage.
        roi_heads: the second stage; with a mask head in it this is Mask R-CNN.
        pixel_mean: of each channel of the images.
        pixel_std: of each channel of the images.
    """

    static_parts = ("extract_features",)
    head_parts = ("proposal_generator", "roi_heads")

    def __init__(
        self,
        *,
        backbone: nn.Module,
        neck: FPN,
        proposal_generator: RPN,
        roi_heads: RoIHeads,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__()
        self.channels = neck.channels
        self.strides = dict(neck.strides)
        self.num_classes = roi_heads.num_classes
        self.normalize = PixelNormalizer(pixel_mean, pixel_std)
        self.backbone = backbone
        self.neck = neck
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads

    def extract_features(self, batch: Batch) -> Features:
        """See `Detector.extract_features`."""
        dtype = torch.promote_types(self.roi_heads.box_predictor.cls_score.weight.dtype, torch.float32)
        features: Features = self.neck(self.backbone(self.normalize(batch, dtype)))
        return features

    def compute_losses(
        self, features: Features, batch: Batch, assignment: None = None
    ) -> tuple[dict[str, Tensor], None]:
        """See `Detector.compute_losses`.

        Gives "loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg" and with masks "loss_mask". Every
        call proposes and samples anew, from torch's global generator.

        Raises:
            ValueError: a mask head, and a batch without masks.
        """
        losses, proposals = self.proposal_generator.compute_losses(features, batch)
        return losses | self.roi_heads.compute_losses(features, proposals, batch.targets), None

    def decode(self, features: Features, batch: Batch) -> PaddedDetections:
        """See `Detector.decode`."""
        proposals = self.proposal_generator.propose(features, batch)
        return self.roi_heads.decode(features, proposals, batch)

    def detect(self, features: Features, batch: Batch) -> list[Detections]:
        """See `Detector.detect`."""
        return self.decode(features, batch).cut()

    def backbone_parameters(self) -> Iterable[nn.Parameter]:
        """See `Detector.backbone_parameters`."""
        return self.backbone.parameters()
