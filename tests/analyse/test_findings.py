"""What became of detections, and the numbers that come of it."""

import numpy as np
import pytest

from lgd.analyse.findings import analyse, threshold_of
from lgd.analyse.images import count_by_image
from lgd.analyse.matches import BACKGROUND, BOTH, CLASS, DUPLICATE, IGNORED, LOCATION, RIGHT, match
from lgd.analyse.suspects import NOT_FOUND, OTHER_CLASS, UNLABELLED, find_suspects
from lgd.data.index import AnnotationIndex
from lgd.evaluation.coco import hotcoco_evaluator
from lgd.evaluation.ground_truth import ground_truth_of, numbered
from lgd.evaluation.outcome import find_outcome
from lgd.evaluation.predictions import Predictions
from tests.analyse.scenes import (
    CAT,
    COW,
    DOG,
    IDS,
    detection,
    random_truth_and_detections,
    right_ones,
    scene,
)
from tests.data.sets import annotation, image_record, open_coco, write_coco


def analysed(index: AnnotationIndex, results):
    truth = ground_truth_of(index, with_masks=False)
    return analyse(index, truth, Predictions.from_results(results), "model")


@pytest.fixture(params=[1, 2, 3])
def random_scene(request, tmp_path):
    objects, found = random_truth_and_detections(request.param)
    annotations = [
        annotation(k, image, box, IDS[label]) for k, (image, label, box) in enumerate(objects, start=1)
    ]
    path = write_coco(tmp_path, [image_record(k) for k in range(1, 41)], annotations, split="val")
    results = [detection(image, IDS[label], box, score) for image, label, box, score in found]
    return open_coco(path, "val"), results


def test_each_kind_of_error(tmp_path):
    objects = [
        annotation(1, 1, (0, 0, 20, 20), 3),
        annotation(2, 1, (40, 0, 20, 20), 1),
        annotation(3, 1, (0, 24, 24, 24), 7, iscrowd=1),
    ]
    index = open_coco(write_coco(tmp_path, [image_record(1)], objects, split="val"), "val")
    found = [
        detection(1, 3, (0, 0, 20, 19), 0.9),
        detection(1, 3, (0, 0, 19, 20), 0.8),
        detection(1, 3, (8, 0, 20, 20), 0.7),
        detection(1, 3, (40, 0, 20, 20), 0.6),
        detection(1, 3, (50, 0, 14, 20), 0.5),
        detection(1, 3, (30, 36, 8, 8), 0.4),
        detection(1, 7, (2, 26, 8, 8), 0.3),
    ]
    matches = analysed(index, found).matches
    assert matches.kinds.tolist() == [RIGHT, DUPLICATE, LOCATION, CLASS, BOTH, BACKGROUND, IGNORED]
    assert matches.partners.tolist() == [0, 0, 0, 1, 1, -1, -1]
    assert matches.object_scores.tolist() == [0.9, 0, 0]
    assert matches.rivals.tolist() == [-1, 3, -1]
    assert matches.in_crowd.tolist() == [False] * 6 + [True]


def test_kinds_are_as_many_as_hotcoco_counts(random_scene):
    index, results = random_scene
    truth = ground_truth_of(index, with_masks=False)
    found = numbered(index, Predictions.from_results(results))
    counts = hotcoco_evaluator(truth, found).tide_errors()["counts"]
    kinds = match(truth, found).kinds
    expected = {"Loc": LOCATION, "Cls": CLASS, "Dupe": DUPLICATE, "Bkg": BACKGROUND, "Both": BOTH}
    assert {name: int((kinds == kind).sum()) for name, kind in expected.items()} == {
        name: counts[name] for name in expected
    }
    assert min(counts[name] for name in expected) > 0


def test_no_other_threshold_is_better(random_scene):
    index, results = random_scene
    analysis = analysed(index, results)
    matches = analysis.matches
    for label, numbers in enumerate(analysis.findings.classes):

        def f1_at(score, label=label, numbers=numbers):
            taken = (matches.labels == label) & (matches.scores >= score)
            right = (taken & (matches.kinds == RIGHT)).sum()
            return 2 * right / (taken.sum() + numbers.objects)

        assert numbers.f1 == pytest.approx(f1_at(numbers.threshold))
        assert numbers.f1 >= max(f1_at(score) for score in np.unique(matches.scores)) - 1e-12
        hit = (matches.labels == label) & (matches.scores >= numbers.threshold)
        assert numbers.precision == pytest.approx((matches.kinds[hit] == RIGHT).mean())


def test_equal_scores_are_all_taken_or_none(tmp_path):
    found = [*right_ones(2, score=0.5), detection(1, 3, (4, 26, 10, 10), 0.5)]
    analysis = analysed(scene(tmp_path, 2), found)
    threshold, f1, precision, recall = threshold_of(analysis.matches, CAT, 2)
    assert (threshold, recall) == (0.5, 1)
    assert precision == pytest.approx(2 / 3)
    assert f1 == pytest.approx(0.8)


def test_a_model_without_faults(tmp_path):
    analysis = analysed(scene(tmp_path), right_ones())
    findings = analysis.findings
    assert findings.metrics["AP"] == pytest.approx(100)
    assert [each.cost for each in findings.errors] == pytest.approx([0] * 6)
    assert [each.count for each in findings.errors] == [0] * 6
    assert findings.confusion.counts == [[8, 0, 0, 0], [0, 8, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert findings.classes[COW].ap is None
    assert findings.classes[COW].curve is None
    assert findings.calibration.mean_error == pytest.approx(0.1)
    assert find_suspects(analysis) == []


def test_missed_objects_cost_what_they_are_worth(tmp_path):
    """Half of the dogs is missed: without them the AP of dogs would be 100."""
    found = [each for each in right_ones() if each["category_id"] == 3 or each["image_id"] % 2]
    findings = analysed(scene(tmp_path), found).findings
    missed = next(each for each in findings.errors if each.name == "missed")
    assert findings.metrics["AP50"] == pytest.approx((100 + 100 * 51 / 101) / 2)
    assert missed.cost == pytest.approx(100 - findings.metrics["AP50"])
    assert missed.count == missed.count_at_threshold == 4


def test_a_class_of_which_nothing_is_right(tmp_path):
    found = [each for each in right_ones() if each["category_id"] == 3]
    findings = analysed(scene(tmp_path), found).findings
    assert findings.classes[DOG].threshold is None
    assert findings.hopeless == ["dog"]


def test_errors_of_each_image_at_the_thresholds(tmp_path):
    found = right_ones(3)
    found[0]["category_id"] = 7  # cow instead of cat in the first picture
    del found[3]  # the dog of the second
    analysis = analysed(scene(tmp_path, 3), [*found, detection(3, 3, (10, 30, 8, 8), 0.01)])
    counts = count_by_image(analysis, 3)
    assert counts.right.tolist() == [1, 1, 2]
    assert counts.missed.tolist() == [1, 1, 0]
    assert counts.wrong.tolist() == [1, 0, 0]
    assert counts.f1.tolist() == pytest.approx([0.5, 2 / 3, 1])
    assert counts.worst(9) == [0, 1]


def test_an_image_without_anything_is_right(tmp_path):
    path = write_coco(tmp_path, [image_record(1), image_record(2)], [annotation(1, 1)], split="val")
    analysis = analysed(open_coco(path, "val"), [])
    assert count_by_image(analysis, 2).f1.tolist() == [0, 1]


def test_planted_label_errors_are_suspected(tmp_path):
    """Labels are taken away, called otherwise, and made up; the model knows better."""
    truth = right_ones(8)
    labels = [dict(each) for each in truth]
    gone, renamed = labels.pop(9), labels[4]
    renamed["category_id"] = 7
    made_up = {"image_id": 6, "category_id": 1, "bbox": [2, 30, 16, 16]}
    objects = [
        annotation(k, each["image_id"], each["bbox"], each["category_id"])
        for k, each in enumerate([*labels, made_up], start=1)
    ]
    path = write_coco(tmp_path, [image_record(k) for k in range(1, 9)], objects, split="val")
    suspects = find_suspects(analysed(open_coco(path, "val"), truth))
    said = [(each.reason, each.image + 1, each.label, each.found) for each in suspects]
    assert said == [
        (UNLABELLED, gone["image_id"], None, DOG),
        (OTHER_CLASS, renamed["image_id"], COW, CAT),
        (NOT_FOUND, 6, DOG, None),
    ]
    assert suspects[2].box == (2, 30, 18, 46)


def test_pictures_of_an_evaluation_show_what_an_analysis_says(random_scene):
    index, results = random_scene
    findings = analysed(index, results).findings
    outcome = find_outcome(index, Predictions.from_results(results))
    assert outcome.confusion == findings.confusion
    said = {each.name: each.curve for each in findings.classes if each.curve is not None}
    assert {name: curve.tolist() for name, curve in outcome.curves.items()} == said
