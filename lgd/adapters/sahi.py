"""A trained model for SAHI: `get_sliced_prediction("large.tif", SahiModel("outputs/mine"), ...)`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lgd.data.errors import DataError
from lgd.inference.result import Result
from lgd.run.trained import load

try:
    from sahi.models.base import DetectionModel
    from sahi.prediction import ObjectPrediction
    from sahi.utils.cv import get_coco_segmentation_from_bool_mask
except ImportError as error:
    raise DataError(f"SAHI cannot be imported ({error}); pip install 'lgd[sahi]'") from None

Pairs = list[list[int | float]]


class SahiModel(DetectionModel):  # type: ignore[misc, unused-ignore]
    """SAHI's detection model over one of ours; all arguments are SAHI's.

    `model_path` is what `lgd.load` takes, or `model` what it returns; `confidence_threshold` is the least
    score. Category ids are our labels. Slices of a batch go through the model together.
    """

    category_mapping: dict[str, str] | None

    def load_model(self) -> None:
        """Load the model from `model_path`."""
        if self.model_path is None:
            raise DataError("give model_path, which lgd.load takes, or model, which it returns")
        self.set_model(load(self.model_path, self.device))

    def set_model(self, model: Any, **kwargs: Any) -> None:
        """Take a model that is loaded.

        Raises:
            DataError: an argument of SAHI's that would change nothing.
        """
        for name, usual in (("config_path", None), ("image_size", None), ("mask_threshold", 0.5)):
            if (given := getattr(self, name)) != usual:
                raise DataError(
                    f"{name} {given!r} changes nothing: a model of LGD's says itself how it is built and how "
                    "it sees pictures; leave it out"
                )
        self.model = model
        if self.category_mapping is None:
            self.category_mapping = {str(label): name for label, name in enumerate(model.class_names)}

    @property
    def num_categories(self) -> int:
        """The number of classes."""
        return len(self.model.class_names)

    @property
    def category_names(self) -> list[str]:
        """Their names by label."""
        return list(self.model.class_names)

    @property
    def has_mask(self) -> bool:
        """Whether the model makes masks."""
        return bool(self.model.with_masks)

    def perform_inference(self, image: npt.NDArray[np.uint8]) -> None:
        """Detect in an RGB picture (H, W, 3)."""
        self.perform_batch_inference([image])

    def perform_batch_inference(self, images: list[npt.NDArray[np.uint8]]) -> None:
        """Detect in RGB pictures (H, W, 3)."""
        self._original_predictions = self.model.predict(images, self.confidence_threshold, len(images))

    def _create_object_prediction_list_from_original_predictions(
        self, shift_amount_list: Pairs | None = None, full_shape_list: Pairs | None = None
    ) -> None:
        found: list[Result] = self._original_predictions
        shifts = _one_each(shift_amount_list, len(found)) or [[0, 0]] * len(found)
        shapes = _one_each(full_shape_list, len(found)) or [None] * len(found)
        self._object_prediction_list_per_image = [
            [self._object(result, i, shift, shape) for i in range(len(result))]
            for result, shift, shape in zip(found, shifts, shapes, strict=True)
        ]

    def _object(self, result: Result, i: int, shift: Sequence[float], shape: Sequence[float] | None) -> Any:
        label = int(result.labels[i])
        masks, names = result.masks, self.category_mapping
        assert names is not None, "since there is a model"
        return ObjectPrediction(
            bbox=result.boxes[i].tolist(),
            category_id=label,
            category_name=names[str(label)],
            segmentation=None if masks is None else get_coco_segmentation_from_bool_mask(masks[i].numpy()),
            score=float(result.scores[i]),
            shift_amount=list(shift),
            full_shape=None if shape is None else list(shape),
        )


def _one_each(given: Any, number: int) -> list[Any] | None:
    """SAHI gives a pair for each picture, or one pair for all."""
    if given is None:
        return None
    pairs = list(given)
    if isinstance(pairs[0], int | float):
        pairs = [pairs]
    return pairs * number if len(pairs) == 1 else pairs
