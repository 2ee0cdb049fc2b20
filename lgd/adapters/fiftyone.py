"""A trained model for FiftyOne: `dataset.apply_model(FiftyoneModel(lgd.load("outputs/mine")), "found")`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lgd.data.errors import DataError
from lgd.inference.model import TrainedModel
from lgd.inference.result import Result

try:
    import fiftyone as fo
    from fiftyone.core.models import Model
except ImportError as error:
    raise DataError(f"FiftyOne cannot be imported ({error}); pip install fiftyone") from None


class FiftyoneModel(Model):  # type: ignore[misc, unused-ignore]
    """FiftyOne's model over one of ours, for pictures; also without FiftyOne's own loop, as a function."""

    def __init__(self, model: TrainedModel, score: float = 0.05) -> None:
        """Take a model from `lgd.load`, and the least score."""
        self._model, self._score = model, score

    @property
    def media_type(self) -> str:
        """What it takes."""
        return "image"

    @property
    def ragged_batches(self) -> bool:
        """Whether pictures of a batch must be of one size: they need not."""
        return False

    @property
    def transforms(self) -> None:
        """What FiftyOne shall do to pictures first: nothing."""
        return None

    @property
    def preprocess(self) -> bool:
        """Whether it shall do that; there is nothing to choose."""
        return False

    @preprocess.setter
    def preprocess(self, value: bool) -> None:
        pass

    def predict(self, arg: Any) -> Any:
        """Detect in an RGB picture (H, W, 3) uint8, or whatever else `TrainedModel.predict` takes as one."""
        return self.predict_all([arg])[0]

    def predict_all(self, args: Sequence[Any]) -> list[Any]:
        """Detect in pictures, together."""
        results = self._model.predict(list(args), self._score, max(1, len(args)))
        assert isinstance(results, list), "as a list was given"
        return [to_detections(result) for result in results]


def to_detections(result: Result) -> Any:
    """A result as `fiftyone.Detections`: boxes in shares of the picture, masks cut to their boxes."""
    height, width = result.size
    found = []
    for i, ((x1, y1, x2, y2), score, name) in enumerate(
        zip(result.boxes.tolist(), result.scores.tolist(), result.names, strict=True)
    ):
        box = [x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height]
        mask = None
        if result.masks is not None:
            left, top = min(int(x1), width - 1), min(int(y1), height - 1)
            right, bottom = max(left + 1, round(x2)), max(top + 1, round(y2))
            mask = result.masks[i, top:bottom, left:right].numpy()
        found.append(fo.Detection(label=name, bounding_box=box, confidence=score, mask=mask))
    return fo.Detections(detections=found)
