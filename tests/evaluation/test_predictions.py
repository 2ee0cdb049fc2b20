"""Detections as columns against the lists that they stand for."""

import json
import pickle

import numpy as np
import pytest

from lgd.evaluation import predictions
from lgd.evaluation.predictions import Predictions


def make_results(image_ids, with_masks):
    """Detections with their place in the list as score; masks are texts of different lengths."""
    return [
        {
            "image_id": image_id,
            "category_id": 3 + number % 2,
            "bbox": [0.1 * number, 1 / 3, 2.0, 3.5],
            "score": number / 7,
            **(
                {"segmentation": {"size": [4, number], "counts": "ab;`" * (number % 3)}} if with_masks else {}
            ),
        }
        for number, image_id in enumerate(image_ids)
    ]


@pytest.mark.parametrize("with_masks", [False, True])
def test_lists_come_back_exactly(with_masks):
    results = make_results([5, 5, 2, 9, 2], with_masks)
    found = Predictions.from_results(results)
    assert found.to_results() == results
    assert found.to_results(1, 3) == results[1:3]
    assert pickle.loads(pickle.dumps(found)).to_results() == results
    assert (found.boxes.dtype, found.scores.dtype) == (np.float64, np.float64)


@pytest.mark.parametrize("with_masks", [False, True])
def test_joined_and_sorted_by_image(with_masks):
    results = make_results([5, 5, 2, 9, 2], with_masks)
    parts = [Predictions.from_results(part) for part in (results[:2], [], results[2:])]
    found = Predictions.join(parts)
    assert found.to_results() == results
    in_order = [results[number] for number in (2, 4, 0, 1, 3)]
    assert found.sort_by_image().to_results() == in_order


def test_nothing_found():
    for found in (Predictions.from_results([]), Predictions.join([])):
        assert len(found) == 0
        assert found.sort_by_image().to_results() == []
        assert "".join(found.to_json()) == "[]"


@pytest.mark.parametrize("rows_at_once", [1, 2, 3, 100])
def test_json_in_pieces_is_that_of_the_list(monkeypatch, rows_at_once):
    monkeypatch.setattr(predictions, "_ROWS_AT_ONCE", rows_at_once)
    results = make_results([5, 5, 2, 9], with_masks=True)
    assert "".join(Predictions.from_results(results).to_json()) == json.dumps(results)
