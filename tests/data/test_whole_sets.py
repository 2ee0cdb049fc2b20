"""Whole sets of real pictures through the loader: every image once, with the boxes of the annotation file."""

import itertools
import json
from collections import defaultdict

import pytest
import torch

from lgd.data.coco import load_coco
from lgd.data.loader import test_loader as make_test_loader
from lgd.data.loader import train_loader
from tests.samples import further

SETS = ["sample", "synthetic", *further("bccd", "dice", "nuclei", "coco_mini")]
OPTIONS = {"batch_size": 4, "world_size": 1, "rank": 0, "max_size": 160, "num_workers": 0}
pytestmark = pytest.mark.parametrize("data_set", SETS, indirect=True)


def read_json(folder, split):
    """Image records by id, and (x1, y1, x2, y2) of the objects of each, without the crowds."""
    document = json.loads((folder / "annotations" / f"instances_{split}.json").read_text())
    boxes = defaultdict(list)
    for each in document["annotations"]:
        if not each["iscrowd"]:
            x, y, width, height = each["bbox"]
            boxes[each["image_id"]].append((x, y, x + width, y + height))
    return {record["id"]: record for record in document["images"]}, boxes


def open_set(folder, split):
    return load_coco(folder / "annotations" / f"instances_{split}.json", folder / split, name=folder.name)


def test_every_image_is_evaluated_once_with_its_boxes(data_set):
    records, boxes = read_json(data_set, "val")
    loader = make_test_loader(open_set(data_set, "val"), **OPTIONS, min_size=96)
    seen = []
    for batch in loader:
        for k, number in enumerate(batch.image_ids.tolist()):
            seen.append(number)
            record = records[number]
            assert batch.original_sizes[k].tolist() == [record["height"], record["width"]]
            height, width = batch.sizes[k].tolist()
            scale = torch.tensor([width / record["width"], height / record["height"]]).repeat(2)
            limit = torch.tensor([width, height]).repeat(2)
            expected = (torch.tensor(boxes[number]).reshape(-1, 4) * scale).clamp(min=0).minimum(limit)
            found = batch.targets.boxes[k][batch.targets.valid[k]]
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)
    assert sorted(seen) == sorted(records)


def test_an_epoch_trains_on_every_image_with_objects_once(data_set):
    _, boxes = read_json(data_set, "train")
    # A batch of more is of one shape of image, and may take its last from the next epoch.
    options = OPTIONS | {"batch_size": 1, "seed": 3, "min_sizes": (64, 96)}
    batches = itertools.islice(train_loader(open_set(data_set, "train"), **options), len(boxes))
    assert sorted(batch.image_ids.item() for batch in batches) == sorted(boxes)
