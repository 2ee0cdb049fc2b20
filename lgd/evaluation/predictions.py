"""Detections of many images as a few columns, which travel and are scored far faster than a list of them.

Legend: D detections.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lgd.data.index import Floats, Integers

_ROWS_AT_ONCE = 2**14


@dataclass(frozen=True)
class Masks:
    """Masks of images as COCO's compressed RLE, one text behind the other.

    Attributes:
        sizes: (D, 2) int64, (height, width) of the image, pixels.
        counts: the texts, ASCII.
        offsets: (D + 1,) int64, where each text begins and the last one ends.
    """

    sizes: Integers
    counts: bytes
    offsets: Integers

    @classmethod
    def from_rle(cls, masks: Sequence[Mapping[str, Any]]) -> Masks:
        """Take masks of the form {"size": [h, w], "counts": text}."""
        texts = [mask["counts"].encode() for mask in masks]
        return cls(
            np.array([mask["size"] for mask in masks], dtype=np.int64).reshape(-1, 2),
            b"".join(texts),
            np.cumsum([0, *map(len, texts)], dtype=np.int64),
        )

    def to_rle(self, start: int = 0, stop: int | None = None) -> list[dict[str, Any]]:
        """Masks `start` to `stop` as {"size": [h, w], "counts": bytes of the text}."""
        some = slice(start, stop)
        begins, ends = self.offsets[:-1][some].tolist(), self.offsets[1:][some].tolist()
        return [
            {"size": size, "counts": self.counts[begin:end]}
            for size, begin, end in zip(self.sizes[some].tolist(), begins, ends, strict=True)
        ]

    def take(self, order: Integers) -> Masks:
        """The masks at the places `order`, (T,) in [0, D)."""
        begins, ends = self.offsets[:-1][order], self.offsets[1:][order]
        texts = [self.counts[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
        return Masks(self.sizes[order], b"".join(texts), np.cumsum([0, *(ends - begins)], dtype=np.int64))


@dataclass(frozen=True)
class Predictions:
    """What a model found on any number of images.

    Attributes:
        image_ids: (D,) int64, as in the annotation file.
        category_ids: (D,) int64, likewise.
        boxes: (D, 4) float64 x, y, width, height; pixels of the original image.
        scores: (D,) float64 in [0, 1].
        masks: D masks; None where the model predicts none.
    """

    image_ids: Integers
    category_ids: Integers
    boxes: Floats
    scores: Floats
    masks: Masks | None = None

    @classmethod
    def from_results(cls, results: Sequence[Mapping[str, Any]]) -> Predictions:
        """Take a list in COCO's results format: dicts of image_id, category_id, bbox, score, segmentation.

        The masks, if any, are compressed RLE; detections without a box have one without a size.
        """
        with_masks = bool(results) and "segmentation" in results[0]
        return cls(
            np.array([each["image_id"] for each in results], dtype=np.int64),
            np.array([each["category_id"] for each in results], dtype=np.int64),
            np.array([each.get("bbox", (0, 0, 0, 0)) for each in results], dtype=np.float64).reshape(-1, 4),
            np.array([each["score"] for each in results], dtype=np.float64),
            Masks.from_rle([each["segmentation"] for each in results]) if with_masks else None,
        )

    @classmethod
    def join(cls, parts: Sequence[Predictions]) -> Predictions:
        """Put one behind the other; all of them have masks or none has."""
        if not parts:
            return cls.from_results([])
        return cls(
            np.concatenate([part.image_ids for part in parts]),
            np.concatenate([part.category_ids for part in parts]),
            np.concatenate([part.boxes for part in parts]),
            np.concatenate([part.scores for part in parts]),
            _join_masks([part.masks for part in parts if part.masks is not None]),
        )

    def __len__(self) -> int:
        """Return the number of detections."""
        return len(self.scores)

    def sort_by_image(self) -> Predictions:
        """Order by image id; those of one image stay in their order."""
        order = np.argsort(self.image_ids, kind="stable")
        return Predictions(
            self.image_ids[order],
            self.category_ids[order],
            self.boxes[order],
            self.scores[order],
            self.masks and self.masks.take(order),
        )

    def to_results(self, start: int = 0, stop: int | None = None) -> list[dict[str, Any]]:
        """Detections `start` to `stop` in COCO's results format, masks as compressed RLE."""
        columns = (self.image_ids, self.category_ids, self.boxes, self.scores)
        rows = zip(*(column[start:stop].tolist() for column in columns), strict=True)
        results: list[dict[str, Any]] = [
            {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
            for image_id, category_id, box, score in rows
        ]
        if self.masks is not None:
            for result, mask in zip(results, self.masks.to_rle(start, stop), strict=True):
                result["segmentation"] = mask | {"counts": mask["counts"].decode()}
        return results

    def to_json(
        self,
        written_images: Mapping[int, int | str] | None = None,
        written_categories: Mapping[int, int | str] | None = None,
    ) -> Iterator[str]:
        """Yield the text of `to_results` as JSON in pieces, so that never all of them are objects at once.

        Args:
            written_images: by their numbers, the ids of images that the annotation file has otherwise.
            written_categories: likewise of categories.
        """
        yield "["
        for start in range(0, len(self), _ROWS_AT_ONCE):
            results = self.to_results(start, start + _ROWS_AT_ONCE)
            for key, written in (("image_id", written_images), ("category_id", written_categories)):
                if written:
                    for result in results:
                        result[key] = written.get(result[key], result[key])
            yield ", " if start else ""
            yield json.dumps(results)[1:-1]
        yield "]"


def _join_masks(parts: Sequence[Masks]) -> Masks | None:
    if not parts:
        return None
    bases = np.cumsum([0, *(len(part.counts) for part in parts)])
    offsets = [part.offsets[:-1] + base for part, base in zip(parts, bases, strict=False)]
    return Masks(
        np.concatenate([part.sizes for part in parts]),
        b"".join(part.counts for part in parts),
        np.concatenate([*offsets, bases[-1:]]),
    )
