"""Two models on the same pictures."""

import numpy as np
import pytest

from lgd.analyse.comparison import compare, most_changed
from lgd.analyse.findings import analyse
from lgd.analyse.images import count_by_image
from lgd.evaluation.ground_truth import ground_truth_of
from lgd.evaluation.predictions import Predictions
from tests.analyse.scenes import right_ones, scene


def compared(index, first, second):
    truth = ground_truth_of(index, with_masks=False)
    analyses = [
        analyse(index, truth, Predictions.from_results(results), name)
        for name, results in (("one", first), ("two", second))
    ]
    counts = [count_by_image(each, len(index)) for each in analyses]
    return compare(truth, analyses, counts, rounds=200)


def test_a_model_against_itself(tmp_path):
    found = right_ones()[:-3]
    comparison = compared(scene(tmp_path), found, found)
    for each in (*comparison.metrics, *comparison.classes):
        assert (each.difference, each.low, each.high) == (0, 0, 0)
        assert not each.is_clear
    assert comparison.objects.chance == comparison.pictures.chance == 1
    assert (comparison.objects.both, comparison.objects.neither) == (13, 3)
    assert most_changed(comparison.gains, 4) == ([], [])


def test_a_model_that_misses_the_dogs_of_half_of_the_pictures(tmp_path):
    found = right_ones()
    worse = [each for each in found if each["category_id"] == 3 or each["image_id"] % 2]
    comparison = compared(scene(tmp_path), worse, found)
    by_class = {each.name: each for each in comparison.classes}
    assert list(by_class) == ["dog", "cat"]  # there is no cow to be found
    assert (by_class["cat"].difference, by_class["cat"].low, by_class["cat"].high) == (0, 0, 0)
    dog = by_class["dog"]
    assert dog.second == pytest.approx(100)
    assert dog.low <= dog.difference <= dog.high
    assert dog.is_clear
    assert dog.low > 0
    objects, pictures = comparison.objects, comparison.pictures
    assert (objects.both, objects.only_first, objects.only_second, objects.neither) == (12, 0, 4, 0)
    assert objects.chance == pytest.approx(2 / 2**4)
    assert (pictures.only_first, pictures.only_second, pictures.both) == (0, 4, 4)
    better, worse_ones = most_changed(comparison.gains, 3)
    assert better == [1, 3, 5]
    assert worse_ones == []
    assert np.flatnonzero(comparison.gains).tolist() == [1, 3, 5, 7]
