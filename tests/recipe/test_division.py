"""One set in two, and the JSON that the parts are written as."""

import json

import numpy as np
import pytest

from lgd.data.catalog import open_dataset
from lgd.data.coco_writer import write_coco as write_part
from lgd.data.errors import DataError
from lgd.data.outlines import read_outlines
from lgd.inspect.contents import read_contents
from lgd.recipe.division import divide, write_division
from tests.data.sets import annotation, image_record, open_coco, write_coco


def contents_of(root, labels):
    """An image for each list of category ids."""
    images = [image_record(k + 1) for k in range(len(labels))]
    pairs = [(k, category) for k, each in enumerate(labels) for category in each]
    annotations = [annotation(n + 1, k + 1, category=category) for n, (k, category) in enumerate(pairs)]
    return read_contents(open_coco(write_coco(root, images, annotations)))


def test_a_fifth_is_left_out_and_always_the_same(tmp_path):
    contents = contents_of(tmp_path, [[1]] * 50)
    flags = divide(contents, np.arange(50))
    assert flags.sum() == 10
    assert np.array_equal(flags, divide(contents, np.arange(50)))


def test_pictures_that_are_alike_stay_together(tmp_path):
    contents = contents_of(tmp_path, [[1]] * 40)
    groups = np.arange(40) // 4
    flags = divide(contents, groups).reshape(10, 4)
    assert (flags.all(axis=1) == flags.any(axis=1)).all()
    assert flags.sum() == 8


def test_no_class_leaves_training(tmp_path):
    contents = contents_of(tmp_path, [[1]] * 8 + [[3], [7, 1]])
    flags = divide(contents, np.arange(10))
    assert flags.sum() == 2
    assert not flags[8:].any()


@pytest.mark.parametrize("labels", [[[1]], [[1], [1]]])
def test_too_little_to_divide_is_an_error(labels, tmp_path):
    with pytest.raises(DataError, match="validate"):
        divide(contents_of(tmp_path, labels), np.zeros(len(labels), dtype=np.int64))


def test_parts_read_back_as_what_they_are_of(tmp_path):
    annotations = [
        annotation(7, 2, segmentation=[[4, 6, 24, 6, 24, 16]], area=77.5),
        annotation(3, 2, category=1, iscrowd=1, segmentation={"size": [48, 64], "counts": [10, 3062]}),
        annotation(5, 4, (50.5, 40, 30, 30), category=7),
        annotation(6, 4, (1, 1, 0, 5)),
    ]
    index = open_coco(write_coco(tmp_path, [image_record(k) for k in (1, 2, 4)], annotations))
    path = tmp_path / "parts" / "one.json"
    write_part(index, np.array([1, 2]), path)
    part = open_dataset(f"coco:{path}:{tmp_path / 'train'}", tmp_path)
    assert part.file_names() == index.file_names()[1:]
    assert (part.class_names, part.category_ids) == (index.class_names, index.category_ids)
    for name in ("xywh", "labels", "annotation_ids", "areas", "crowd", "usable"):
        assert np.array_equal(part.columns[name], index.columns[name]), name
    for i in (0, 1):
        assert np.array_equal(read_outlines(part, i).edges, read_outlines(index, i + 1).edges)
        assert part.path(i) == index.path(i + 1)


def test_both_parts_together_are_the_set(tmp_path):
    contents = contents_of(tmp_path, [[1], [3]] * 10)
    index = open_coco(tmp_path / "annotations" / "instances_train.json")
    lines = write_division(index, contents, tmp_path / "out" / "data")
    train, val = (open_dataset(line, tmp_path) for line in lines)
    assert (len(train), len(val)) == (16, 4)
    assert sorted([*train.file_names(), *val.file_names()]) == index.file_names()
    assert json.loads((tmp_path / "out" / "data" / "val.json").read_text())["images"]
