"""What the reader accepts is scored right: whatever ids and names it has, whatever training drops of it."""

import json

import numpy as np
import pytest

from lgd.evaluation.predictions import Predictions
from lgd.evaluation.results import write_predictions
from lgd.evaluation.score import score
from tests.data.sets import open_coco, write_coco
from tests.evaluation.test_coco import BACKENDS, TWELVE, both_backends, detection, write_ground_truth
from tests.evaluation.test_coco_masks import both, found, polygon, rectangle, uncompress

IDS = (-(2**63) + 1, -5, 0, 7, 2**53, 2**53 + 1, 2**62, 2**63 - 1)
SIZES = ((9, 9), (40, 50), (150, 120))


def write_set(root, ids=IDS, names=None):
    """An image and a class of each id, in another order; every image has three objects of its own class."""
    boxes = [(5 + 3 * k, 5 + 2 * k, *size) for k, size in enumerate(SIZES)]
    images = [
        {"id": i, "file_name": f"{k}.jpg", "width": 640, "height": 480} for k, i in enumerate(ids[::-1])
    ]
    categories = [{"id": i, "name": (names or [f"class {i}" for i in ids])[k]} for k, i in enumerate(ids)]
    objects = [(image, ids[-1 - k], box) for k, image in enumerate(ids) for box in boxes]
    annotations = [
        {
            "id": number - 5,
            "image_id": image,
            "category_id": category,
            "bbox": list(box),
            "area": box[2] * box[3],
            "iscrowd": 0,
            "segmentation": [polygon(*box)],
        }
        for number, (image, category, box) in enumerate(objects)
    ]
    path = write_coco(root, images, annotations, categories=categories, with_files=False)
    for image in images:
        (root / "train" / image["file_name"]).touch()
    results = [
        {**detection(image, category, box, 0.9), "segmentation": rectangle(*box)}
        for image, category, box in objects
    ]
    return path, results


@pytest.mark.parametrize("backend", BACKENDS)
def test_perfect_detections_of_any_ids(tmp_path, backend):
    path, results = write_set(tmp_path)
    index = open_coco(path)
    found = {"student": Predictions.from_results(results).sort_by_image()}
    metrics = score(index, found, with_masks=True, backend=backend)["student"]
    for kind in ("bbox", "segm"):
        assert [metrics[kind][name] for name in TWELVE if name != "AR1"] == [pytest.approx(100)] * 11
        assert [metrics[kind][f"AP-class {i}"] for i in IDS] == [pytest.approx(100)] * len(IDS)
    write_predictions(tmp_path / "predictions.json", found["student"])
    written = json.loads((tmp_path / "predictions.json").read_text())
    assert {(each["image_id"], each["category_id"]) for each in written} == set(
        zip(IDS, IDS[::-1], strict=True)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_neighbours_beyond_the_floats_are_not_one(tmp_path, backend):
    """2**53 and 2**53 + 1 are the same float: what is found in one image is not found in the other."""
    path, results = write_set(tmp_path, ids=(2**53, 2**53 + 1))
    swapped = [{**each, "image_id": 2**54 + 1 - each["image_id"]} for each in results]
    metrics = score(
        open_coco(path), {"student": Predictions.from_results(swapped)}, with_masks=True, backend=backend
    )
    assert metrics["student"]["bbox"]["AP"] == metrics["student"]["segm"]["AP"] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_names_that_are_numbers_or_alike(tmp_path, backend):
    path, results = write_set(tmp_path, ids=(1, 2, 3, 4), names=[7, "7", "50", 0.5])
    index = open_coco(path)
    assert index.class_names == ("7 (1)", "7 (2)", "50", "0.5")
    metrics = score(index, {"student": Predictions.from_results(results)}, with_masks=True, backend=backend)
    for kind in ("bbox", "segm"):
        numbers = metrics["student"][kind]
        assert len(numbers) == len(TWELVE) + 4
        assert all(numbers[f"AP-{name}"] == pytest.approx(100) for name in index.class_names)


def test_masks_of_all_kinds_and_crowds_as_the_file_has_them(tmp_path):
    """Run lengths of both kinds, areas that are not the masks', crowds; some without a size, or outside."""
    random = np.random.default_rng(5)
    objects, results = [], []
    for number in range(60):
        x, y, width, height = *random.integers(0, 300, 2).tolist(), *random.integers(5, 90, 2).tolist()
        mask = [[polygon(x, y, width, height)], rectangle(x, y, width, height)][number % 2]
        if number % 4 == 3:
            mask = uncompress(mask)
        box = (x, y, width, height) if number % 7 else (x, y, 0, -height)
        extra = {
            "segmentation": mask,
            "area": width * height * 0.9,
            "iscrowd": int(number % 4 and number % 5 == 0),
        }
        image, category = int(random.integers(1, 5)), int(random.integers(1, 3))
        objects.append((image, category, box if number % 11 else (9000, 9000, 5, 5), extra))
        shift = int(random.integers(0, 4))
        near = rectangle(x + shift, y, width, height)
        box = (x + shift, y, width, height)
        results.append(found(image, category, near, round(random.random(), 1), box=box))
    path = write_ground_truth(tmp_path, objects, images=(1, 2, 3, 4))
    assert 5 < both(path, results)["AP"] < 95
    assert 5 < both_backends(path, results)["AP"] < 95
