"""A trained model in the manner of torchvision's detectors: a list of images in, a list of dicts out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lgd.data.errors import DataError
from lgd.inference.model import TrainedModel
from lgd.inference.result import Result


class TorchvisionModel(nn.Module):
    """What `torchvision.models.detection` gives in evaluation mode, over one of our models.

    Attributes:
        categories: names by torchvision's labels, of which 0 is the background.
    """

    def __init__(self, model: TrainedModel, score: float = 0.05) -> None:
        """Take a model from `lgd.load`, and the least score."""
        super().__init__()
        self._model, self._score = model, score
        self.categories = ("__background__", *model.class_names)
        self.eval()

    def forward(self, images: Sequence[Tensor], targets: None = None) -> list[dict[str, Tensor]]:
        """Detect in images.

        Args:
            images: each RGB (3, H, W), uint8 or float in [0, 1], wherever it lies.
            targets: none: a trained model computes no losses.

        Returns:
            Of each image boxes (N, 4) xyxy in pixels, labels (N,) from 1, scores (N,) descending, and masks
            (N, 1, H, W) of 0 and 1 where the model makes some, where the image lies.

        Raises:
            DataError: an image is something else; `targets` are given.
        """
        if targets is not None or self.training:
            raise DataError("a trained model computes no losses: leave targets out, and call eval()")
        results = self._model.predict([_as_bytes(image) for image in images], self._score)
        return [
            _as_dict(result, image.device)
            for result, image in zip(results, images, strict=True)  # type: ignore[arg-type]
        ]


def _as_bytes(image: Tensor) -> Tensor:
    if not image.is_floating_point():
        return image
    low, high = image.aminmax() if image.numel() else (torch.zeros(()), torch.zeros(()))
    if not (low >= 0 and high <= 1):
        raise DataError(f"an image has values from {low:.3g} to {high:.3g}; give floats in [0, 1], or uint8")
    return (image * 255).round().to(torch.uint8)


def _as_dict(result: Result, device: torch.device) -> dict[str, Tensor]:
    found = {"boxes": result.boxes, "labels": result.labels + 1, "scores": result.scores}
    if result.masks is not None:
        found["masks"] = result.masks[:, None].float()
    return {name: value.to(device) for name, value in found.items()}
