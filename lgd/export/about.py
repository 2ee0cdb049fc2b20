"""What an exported file says of itself: how to feed it, and what it found. Text by key, as ONNX keeps it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lgd import __version__
from lgd.data.canvases import Canvas
from lgd.data.collate import Layout
from lgd.data.decoding import Decoding
from lgd.inference.model import InputRule
from lgd.weights.classes import Classes
from lgd.weights.report import WeightsError


@dataclass(frozen=True)
class About:
    """A file's description.

    Attributes:
        rule: how it wants pictures, as RGB.
        classes: what its labels mean.
        with_masks: whether it predicts masks.
        num_images: of a batch, the only number that it takes; None for any.
        half: whether its network computes in float16.
        limits: what decides which detections there are: "score_threshold", "nms_threshold", "detections".
        settings: of the recipe, by key.
        settings_hash: of all of them.
    """

    rule: InputRule
    classes: Classes
    with_masks: bool
    num_images: int | None
    half: bool
    limits: Mapping[str, float | None]
    settings: Mapping[str, str]
    settings_hash: str

    def to_metadata(self) -> dict[str, str]:
        """Text by key, for the file."""
        rule = self.rule
        fed = {
            "channels": rule.image_format,
            "short_side": rule.min_size,
            "longest_side": rule.max_size,
            "multiple": rule.layout.size_divisibility,
            "size": rule.canvas,
            "batch": self.num_images,
            "range": rule.decoding.value_range,
            "scaled_decoding": rule.decoding.scaled,
            "batch_in_evaluations": rule.batch_size,
        }
        classes = {"names": list(self.classes.names), "category_ids": list(self.classes.category_ids)}
        parts: dict[str, Any] = {
            "classes": classes,
            "input": fed,
            "output": {"masks": self.with_masks, "half": self.half, **self.limits},
            "settings": self.settings,
        }
        texts = {name: json.dumps(part, ensure_ascii=False) for name, part in parts.items()}
        return {"lgd": __version__, "settings_hash": self.settings_hash, **texts}

    @classmethod
    def of_metadata(cls, texts: Mapping[str, str]) -> About:
        """Read what `to_metadata` gave.

        Raises:
            WeightsError: it did not.
        """
        try:
            fed, output = json.loads(texts["input"]), json.loads(texts["output"])
            classes = Classes.of_file({"classes": json.loads(texts["classes"])})
            assert classes is not None
            size, value_range = (_pair(fed[key]) for key in ("size", "range"))
            canvas: Canvas | None = None if size is None else (int(size[0]), int(size[1]))
            return cls(
                InputRule(
                    int(fed["short_side"]),
                    int(fed["longest_side"]),
                    "RGB",
                    Layout(int(fed["multiple"]), () if canvas is None else (canvas,)),
                    int(fed["batch_in_evaluations"]),
                    Decoding(value_range, bool(fed["scaled_decoding"])),
                    canvas,
                ),
                classes,
                bool(output.pop("masks")),
                None if fed["batch"] is None else int(fed["batch"]),
                bool(output.pop("half")),
                output,
                json.loads(texts["settings"]),
                texts["settings_hash"],
            )
        except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
            raise WeightsError("does not say how it is fed; it was not written by lgd export") from error


def _pair(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    first, second = value
    return float(first), float(second)
