"""Values as annotation tools write them: read as what they say, repaired and counted, or refused."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from lgd.data.coco_json import parse_coco
from lgd.data.errors import DataError, ImageError
from lgd.data.outlines import require_masks
from lgd.data.samples import Preparation
from lgd.evaluation.predictions import Predictions
from lgd.evaluation.results import write_predictions
from tests.data.sets import CATEGORIES, annotation, image_record, open_coco, write_coco

NAN, INFINITE = float("nan"), float("inf")


def make(tmp_path, annotations, images=None, **options):
    return open_coco(
        write_coco(tmp_path, images or [image_record(1), image_record(2)], annotations, **options)
    )


def said(index):
    """What was remarked: kinds with counts."""
    return {remark.kind: remark.count for remark in index.remarks[0]}


def expect_error(path, message):
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        open_coco(path)
    assert "\n" not in str(caught.value)


def spread(number, image=1, **other):
    """An annotation whose box no other number has."""
    return annotation(number, image, (number, 1, 5, 5), **other)


@pytest.mark.parametrize(
    ("value", "crowd"),
    [
        ("0", False),
        ("1", True),
        ("false", False),
        ("True", True),
        (" 1 ", True),
        (True, True),
        (False, False),
    ],
)
def test_crowds_are_what_their_text_says(tmp_path, value, crowd):
    others = [spread(k) for k in range(2, 30)]
    index = make(tmp_path, [spread(1, iscrowd=value), *others])
    assert index.crowd(0).tolist() == [crowd] + [False] * 28
    assert said(index) == ({"iscrowd_text": 1} if isinstance(value, str) else {})


def test_many_crowds_may_be_objects(tmp_path):
    index = make(tmp_path, [spread(k, iscrowd=int(k < 3)) for k in range(8)])
    assert said(index) == {"crowds": 3}
    assert "3 of 8 objects are marked iscrowd" in index.warnings[0]
    assert "DATASETS.CROWDS object" in index.warnings[0]


def test_few_crowds_are_crowds(tmp_path):
    assert said(make(tmp_path, [spread(k, iscrowd=int(k < 1)) for k in range(40)])) == {}


@pytest.mark.parametrize("area", [-200, INFINITE, -INFINITE, NAN, 1e11, 10**400, 0])
def test_areas_that_cannot_be_are_those_of_the_boxes(tmp_path, area):
    index = make(tmp_path, [spread(1, area=area), spread(2, area=20.5)])
    assert index.area(0).tolist() == [25, 20.5]
    assert said(index) == {"areas_from_boxes": 1}
    assert index.warnings[0].endswith("taken from the boxes (annotations 1)")


@pytest.mark.parametrize("area", [None, []])
def test_no_area_is_that_of_the_box_without_a_word(tmp_path, area):
    index = make(tmp_path, [spread(1, area=area)])
    assert index.area(0).tolist() == [25]
    assert index.warnings == ()


def test_repeated_annotation_ids_are_numbered_anew(tmp_path):
    records = [spread(7, 2), spread(8, 1), spread(7, 1)]
    index = make(tmp_path, records)
    assert index.columns["annotation_ids"].tolist() == [2, 3, 1]
    assert index.columns["xywh"][:, 0].tolist() == [8, 7, 7]
    assert said(index) == {"annotation_ids_repeated": 1}
    assert "1 annotation has the id of another (7): all 3 are numbered anew" in index.warnings[0]


def test_equal_boxes_are_counted_and_stay(tmp_path):
    same = (1, 2, 3, 4)
    records = [
        annotation(1, 1, same),
        annotation(2, 1, same),
        annotation(3, 2, same),
        annotation(4, 1, same, category=7),
        annotation(5, 1, (1, 2, 3, 4.5)),
        annotation(6, 1, same),
    ]
    index = make(tmp_path, records)
    assert index.counts.tolist() == [5, 1]
    assert said(index) == {"boxes_repeated": 2}
    assert "(annotations 2, 6)" in index.warnings[0]


def test_one_picture_in_two_records(tmp_path):
    images = [image_record(1), image_record(2), image_record(3) | {"file_name": "001.png"}]
    index = make(tmp_path, [], images)
    assert len(index) == 3
    assert said(index) == {"pictures_twice": 1}
    assert "001.png of image 3" in index.warnings[0]


def test_one_record_twice_is_one_image(tmp_path):
    index = make(tmp_path, [spread(1), spread(2, 2)], [image_record(1), image_record(2), image_record(1)])
    assert index.image_ids.tolist() == [1, 2]
    assert index.counts.tolist() == [1, 1]
    assert said(index) == {"images_merged": 1}


def test_points_are_dropped_and_counted(tmp_path):
    point = annotation(5, 1, (), area=[], segmentation=[[]])
    index = make(tmp_path, [spread(1), point])
    assert index.annotation_ids(0).tolist() == [1]
    assert said(index) == {"annotations_empty": 1}
    assert "(annotations 5)" in index.warnings[0]


@pytest.mark.parametrize("absence", [{"bbox": None}, {"bbox": []}, {}])
@pytest.mark.parametrize(
    ("segmentation", "box"),
    [
        ([[1, 2, 8, 2, 8, 9.5], [3, 3, 10, 3, 10, 4]], [1, 2, 9, 7.5]),
        # Rows 5 to 14 of column 0, rows 7 and 8 of column 2.
        ({"size": [48, 64], "counts": [5, 10, 88, 2, 48 * 64 - 105]}, [0, 5, 3, 10]),
        # From row 47 of column 1 to row 0 of column 2.
        ({"size": [48, 64], "counts": [95, 2, 48 * 64 - 97]}, [1, 0, 2, 48]),
    ],
)
def test_a_box_that_is_absent_is_taken_around_the_mask(tmp_path, absence, segmentation, box):
    record = {"id": 5, "image_id": 1, "category_id": 3, "segmentation": segmentation} | absence
    index = make(tmp_path, [spread(1, segmentation=[[0, 0, 4, 0, 4, 4]]), record])
    assert index.columns["xywh"][1].tolist() == box
    assert said(index) == {"boxes_from_masks": 1}


@pytest.mark.parametrize("bbox", [None, []])
def test_a_box_cannot_be_taken_from_a_broken_mask(tmp_path, bbox):
    path = write_coco(tmp_path, [image_record(1)], [annotation(5, 1, segmentation="x") | {"bbox": bbox}])
    expect_error(path, "bbox of annotation 5 is not four numbers")


def test_fractions_are_no_pixels(tmp_path):
    boxes = [(0.1, 0.2, 0.5, 0.3), (0, 0, 1, 1)]
    path = write_coco(tmp_path, [image_record(1)], [annotation(k, 1, box) for k, box in enumerate(boxes)])
    expect_error(path, "lies within 0..1: they are fractions of the image")
    assert len(make(tmp_path, [annotation(1, 1, (0, 0, 1, 1))]).boxes(0)) == 1
    assert len(make(tmp_path, [annotation(1, 1, (0.1, 0.2, 0.5, 1.5))]).boxes(0)) == 1


def test_boxes_that_look_like_corners(tmp_path):
    corners = [annotation(k, 1, (30 + k, 20 + k, 50 + k, 30 + k)) for k in range(12)]
    assert "boxes_look_like_corners" in said(make(tmp_path, corners))
    assert "boxes_look_like_corners" not in said(
        make(tmp_path, [*corners, annotation(99, 1, (30, 30, 5, 5))])
    )


def test_image_ids_of_digits_are_numbers(tmp_path):
    index = make(tmp_path, [spread(1, "2"), spread(2, "1"), spread(3, 2)])
    assert index.counts.tolist() == [1, 2]
    assert said(index) == {"image_id_text": 2}
    images = [image_record(1) | {"id": "12"}, image_record(2) | {"id": "5"}]
    index = open_coco(write_coco(tmp_path, images, [spread(1, "12"), spread(2, 5)], with_files=False))
    assert index.image_ids.tolist() == [5, 12]
    assert index.annotation_ids(1).tolist() == [1]
    assert index.written_ids() == ({5: "5", 12: "12"}, {})


def test_names_for_ids_come_back_in_predictions(tmp_path):
    (tmp_path / "train").mkdir()
    images = [image_record(k) | {"id": name} for k, name in ((1, "b.png"), (2, "ä"), (3, 7))]
    for record in images:
        Image.new("RGB", (64, 48)).save(tmp_path / "train" / record["file_name"])
    categories = [{"id": "dog", "name": "Dog"}, {"id": "cat", "name": "Cat"}]
    records = [spread(1, "ä", category=3) | {"category_id": "cat"}, spread(2, 7) | {"category_id": "dog"}]
    index = open_coco(write_coco(tmp_path, images, records, categories=categories, with_files=False))
    assert index.image_ids.tolist() == [1, 2, 3]
    assert index.class_names == ("Dog", "Cat")
    assert index.counts.tolist() == [0, 1, 1]
    assert index.labels(1).tolist() == [1]
    assert said(index) == {"image_ids_text": 2, "category_ids_text": 2}
    found = Predictions(
        np.array([3, 2]), np.array([1, 2]), np.array([[0.0, 1, 2, 3]] * 2), np.array([0.5, 0.25])
    )
    write_predictions(tmp_path / "predictions.json", found, index)
    written = json.loads((tmp_path / "predictions.json").read_text())
    assert [(each["image_id"], each["category_id"]) for each in written] == [(7, "dog"), ("ä", "cat")]


def test_an_id_as_number_and_as_text(tmp_path):
    images = [image_record(1), image_record(2) | {"id": "1"}]
    expect_error(
        write_coco(tmp_path, images, with_files=False), "image ids '1' are there as text and as a number"
    )


def test_digits_that_are_names(tmp_path):
    images = [image_record(1) | {"id": "01"}, image_record(2) | {"id": "1"}]
    for name in ("001.png", "002.png"):
        (tmp_path / "train").mkdir(exist_ok=True)
        Image.new("RGB", (64, 48)).save(tmp_path / "train" / name)
    index = open_coco(write_coco(tmp_path, images, [spread(1, "1")], with_files=False))
    assert index.counts.tolist() == [0, 1]
    assert index.written_ids()[0] == {1: "01", 2: "1"}


@pytest.mark.parametrize("number", [-7, 2**53 + 1, 2**62])
def test_ids_of_64_bits(tmp_path, number):
    images = [image_record(1) | {"id": number}, image_record(2) | {"id": number - 1}]
    (tmp_path / "train").mkdir()
    for name in ("001.png", "002.png"):
        Image.new("RGB", (64, 48)).save(tmp_path / "train" / name)
    index = open_coco(write_coco(tmp_path, images, [spread(1, number)], with_files=False))
    assert index.image_ids.tolist() == [number - 1, number]
    assert index.counts.tolist() == [0, 1]


@pytest.mark.parametrize("size", [{"width": None, "height": None}, {"width": None}, {}])
def test_a_size_that_is_not_said_is_the_pictures(tmp_path, size):
    path = write_coco(tmp_path, [image_record(1), image_record(2, 30, 40)], [spread(1, 2), spread(9, 1)])
    document = json.loads(path.read_text())
    record = document["images"][1]
    del record["width"], record["height"]
    record.update(size)
    rle = {"size": [40, 30], "counts": [100, 7, 1093]}
    document["annotations"][0]["segmentation"] = rle
    path.write_text(json.dumps(document))
    index = open_coco(path)
    assert (index.heights.tolist(), index.widths.tolist()) == ([48, 40], [64, 30])
    assert index.segmentation(1)[0].counts.tolist() == rle["counts"]
    assert index.counts.tolist() == [1, 1]
    assert said(index) == {"sizes_read": 1}
    Image.new("RGB", (20, 10)).save(tmp_path / "train" / "002.png")  # nothing of the old one is kept
    assert open_coco(path).heights.tolist() == [48, 10]


def test_a_size_that_nobody_says(tmp_path):
    path = write_coco(tmp_path, [image_record(1) | {"width": None, "height": None}], with_files=False)
    (tmp_path / "train" / "001.png").write_text("no picture")
    expect_error(path, "does not say the size of 1 image, and of one it cannot be found: cannot read image")


def test_sizes_as_text(tmp_path):
    index = make(tmp_path, [], [image_record(1), image_record(2)])
    path = index.json_path
    document = json.loads(path.read_text())
    document["images"][0] |= {"width": "64", "height": 48.0}
    path.write_text(json.dumps(document))
    index = open_coco(path)
    assert (index.widths.tolist(), index.heights.tolist()) == ([64, 64], [48, 48])
    assert said(index) == {"sizes_text": 1}
    document["images"][0] |= {"width": "6e1"}
    path.write_text(json.dumps(document))
    expect_error(path, "the size of image 1, '6e1' x 48.0, is not two whole numbers")


def test_the_columns_of_a_plain_set_are_made_once(tmp_path):
    """Nothing is looked for, and nothing derived, where the file says it all."""
    index = make(tmp_path, [spread(1)])
    columns, metadata = parse_coco(index.json_path, index.content_hash)
    assert metadata == index.metadata
    assert all(np.array_equal(columns[name], index.columns[name]) for name in index.columns)
    assert len(list(index.cache_path.parent.glob("*.lgd-index"))) == 1
    assert [each["name"] for each in CATEGORIES if each["id"] == 3] == ["cat"]
    with pytest.raises(DataError, match="have no mask"):
        require_masks(index)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_size_that_fits_before_the_exif_turn(tmp_path, orientation):
    index = make(tmp_path, [spread(1)], [image_record(1, 30, 40)])
    exif = Image.Exif()
    exif[274] = orientation
    size = (40, 30) if orientation == 1 else (30, 40)  # as stored; upright it is 40 x 30
    Image.new("RGB", size).save(tmp_path / "train" / "001.png", exif=exif)
    prepare = Preparation(index, "BGR", 100, torch.float32)
    with pytest.raises(ImageError, match=r"is 40 x 30 pixels, but .* says 30 x 40, ") as caught:
        prepare(0, min_size=40, flip=False)
    assert ("before its EXIF orientation turns it" in str(caught.value)) == (orientation == 6)
