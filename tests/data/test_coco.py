import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest

from lgd.data.errors import DataError
from lgd.data.index import AnnotationIndex, ImageRecord, RunLengths
from lgd.data.outlines import require_masks
from tests.data.sets import annotation, image_record, open_coco, write_coco

NAN, INFINITE = float("nan"), float("inf")


def make(tmp_path: Path, annotations: list[dict], images: list[dict] | None = None) -> AnnotationIndex:
    return open_coco(write_coco(tmp_path, images or [image_record(1), image_record(2)], annotations))


def test_reads_images_boxes_and_labels_in_order_of_ids(tmp_path):
    images = [image_record(9), image_record(4, 30, 40), image_record(6)]
    annotations = [
        annotation(50, 9, (1, 2, 3, 4), category=7, area=5.5),
        annotation(40, 4, (0.5, 1, 2.25, 3), category=1),
        annotation(60, 9, (5, 6, 7, 8), category=3, iscrowd=1),
    ]
    index = make(tmp_path, annotations, images)
    assert len(index) == 3
    assert index.class_names == ("dog", "cat", "cow")
    assert index.category_ids == (1, 3, 7)
    assert index.has_annotations
    assert index.image(0) == ImageRecord(4, "004.png", 40, 30)
    assert index.path(2) == tmp_path / "train" / "009.png"
    assert index.image_ids.tolist() == [4, 6, 9]
    assert index.heights.tolist() == [40, 48, 48]
    assert index.widths.tolist() == [30, 64, 64]
    assert index.counts.tolist() == [1, 0, 1]
    assert index.boxes(0).tolist() == [[0.5, 1, 2.75, 4]]
    assert index.boxes(1).shape == (0, 4)
    assert index.boxes(2).tolist() == [[1, 2, 4, 6], [5, 6, 12, 14]]
    assert index.labels(2).tolist() == [2, 1]
    assert index.annotation_ids(2).tolist() == [50, 60]
    assert index.crowd(2).tolist() == [False, True]
    assert index.area(2).tolist() == [5.5, 56]
    assert index.area(0).tolist() == [2.25 * 3]


def test_reads_polygons_and_run_lengths(tmp_path):
    parts = [[0, 0, 8, 0, 8, 8.5], [10, 10, 20, 10, 20, 20, 10, 20]]
    rle = {"size": [48, 64], "counts": [10, 5, 48 * 64 - 15]}
    index = make(
        tmp_path,
        [
            annotation(1, 1, segmentation=parts),
            annotation(2, 1, segmentation=rle),
            annotation(3, 1, segmentation=[]),
            annotation(4, 2),
        ],
    )
    polygons, runs, nothing = index.segmentation(0)
    assert [polygon.tolist() for polygon in polygons] == parts
    assert isinstance(runs, RunLengths)
    assert (runs.height, runs.width, runs.counts.tolist()) == (48, 64, rle["counts"])
    assert nothing is None
    assert index.segmentation(1) == [None]


def test_a_test_set_may_have_no_annotations(tmp_path):
    index = open_coco(write_coco(tmp_path, [image_record(1)], None))
    assert not index.has_annotations
    assert index.boxes(0).shape == (0, 4)


def test_file_names_may_have_folders_and_any_letters(tmp_path):
    record = image_record(1) | {"file_name": "sub/ÜPPER ñ.png"}
    path = write_coco(tmp_path, [record], [], with_files=False)
    (tmp_path / "train" / "sub").mkdir()
    (tmp_path / "train" / "sub" / "ÜPPER ñ.png").touch()
    assert open_coco(path).file_name(0) == "sub/ÜPPER ñ.png"


def expect_error(path: Path, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        open_coco(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["images", "categories"])
def test_missing_part(tmp_path, key):
    path = write_coco(tmp_path, [image_record(1)], [])
    document = json.loads(path.read_text())
    del document[key]
    path.write_text(json.dumps(document))
    expect_error(path, f'has no "{key}"; it has ')


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("images", "file_name"),
        ("categories", "name"),
        ("annotations", "bbox"),
        ("annotations", "image_id"),
        ("annotations", "category_id"),
    ],
)
def test_missing_key_of_a_record(tmp_path, part, key):
    path = write_coco(tmp_path, [image_record(1)], [annotation(5, 1)])
    document = json.loads(path.read_text())
    number = document[part][0]["id"]
    del document[part][0][key]
    path.write_text(json.dumps(document))
    kind = {"images": "image", "categories": "category", "annotations": "annotation"}[part]
    expect_error(path, f'no "{key}" in {kind} {number}')


def test_missing_id_is_named_by_place(tmp_path):
    record = annotation(5, 1)
    del record["id"]
    path = write_coco(tmp_path, [image_record(1)], [annotation(4, 1), record])
    expect_error(path, 'no "id" in annotation number 1')


def test_truncated_json_names_line_and_column(tmp_path):
    path = write_coco(tmp_path, [image_record(1)], [annotation(5, 1)])
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1)[:100])
    with pytest.raises(DataError, match=r"is not whole JSON: .* at line \d+, column \d+") as caught:
        open_coco(path)
    assert str(path) in str(caught.value)


def test_not_json_at_all(tmp_path):
    path = write_coco(tmp_path, [image_record(1)])
    path.write_bytes(b"\xff\xfe\x00")
    expect_error(path, "is not UTF-8 text")
    path.write_text("[]")
    expect_error(path, "holds a list, not an object")
    path.write_text('{"categories": [3], "images": []}')
    expect_error(path, '"categories" is not a list of objects')


def test_empty_parts(tmp_path):
    expect_error(write_coco(tmp_path, [image_record(1)], categories=[]), '"categories" is empty')
    expect_error(write_coco(tmp_path, []), '"images" is empty')


def test_unknown_category(tmp_path):
    path = write_coco(tmp_path, [image_record(1)], [annotation(5, 1), annotation(6, 1, category=2)])
    expect_error(path, "annotations 6 are of category 2, which the file does not list")


def test_unknown_image(tmp_path):
    path = write_coco(tmp_path, [image_record(1)], [annotation(5, 1), annotation(6, 77), annotation(7, 78)])
    expect_error(path, "annotations 6, 7 are of image 77, 78, which the file does not list")


def test_duplicate_ids(tmp_path):
    path = write_coco(tmp_path, [image_record(4), image_record(4) | {"file_name": "b.png"}])
    expect_error(path, "image id 4 occurs more than once, as '004.png' and 'b.png'")
    path = write_coco(
        tmp_path, [image_record(1)], categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]
    )
    expect_error(path, "category id 1 occurs more than once")


def test_many_ids_are_counted_not_listed(tmp_path):
    path = write_coco(tmp_path, [image_record(1)], [annotation(k, 1, (0, 0, NAN, 1)) for k in range(9)])
    expect_error(path, "bbox of annotation 0, 1, 2, 3, 4 and 4 more is NaN or infinite")


@pytest.mark.parametrize("value", [NAN, INFINITE, -INFINITE])
def test_box_that_is_not_finite(tmp_path, value):
    path = write_coco(tmp_path, [image_record(1)], [annotation(3, 1), annotation(9, 1, (1, value, 4, 4))])
    expect_error(path, "bbox of annotation 9 is NaN or infinite")


@pytest.mark.parametrize("bbox", [[1, 2, 3], [1, 2, 3, "4"], None, [1, 2, 3, None], {}])
def test_box_that_is_not_four_numbers(tmp_path, bbox):
    path = write_coco(tmp_path, [image_record(1)], [annotation(9, 1) | {"bbox": bbox}])
    expect_error(path, "bbox of annotation 9 is not four numbers")


@pytest.mark.parametrize("value", [7.5, None, 10**30, True, "", "a\nb", NAN])
def test_ids_are_whole_numbers(tmp_path, value):
    path = write_coco(tmp_path, [image_record(1)], [annotation(9, 1) | {"image_id": value}])
    expect_error(path, f'"image_id" of annotation 9 is {value!r}, not a whole number')


def test_image_size_and_name_must_make_sense(tmp_path):
    path = write_coco(tmp_path, [image_record(1), image_record(2) | {"height": 0}], with_files=False)
    expect_error(path, "the size of image 2, 64 x 0, is not positive")
    path = write_coco(tmp_path, [image_record(1) | {"file_name": ""}], with_files=False)
    expect_error(path, "file_name of image 1, '', is not a name")


def test_area_must_be_a_number(tmp_path):
    path = write_coco(tmp_path, [image_record(1)], [annotation(9, 1, area="big")])
    expect_error(path, "area of annotation 9 is not a number")


def test_degenerate_boxes_are_dropped_and_counted(tmp_path, caplog):
    boxes = [(4, 6, 20, 10), (1, 1, 0, 5), (1, 1, 5, -2), (1, 1, 1e-6, 5)]
    with caplog.at_level(logging.WARNING):
        index = make(tmp_path, [annotation(k, 1, box) for k, box in enumerate(boxes, start=10)])
    assert index.annotation_ids(0).tolist() == [10]
    assert index.counts.tolist() == [1, 0]
    text = "dropped 3 boxes without a positive size (annotations 11, 12, 13)"
    assert index.warnings == (f"{index.json_path}: {text}",)
    assert text in caplog.text


def test_warnings_come_again_when_the_cache_is_used(tmp_path, caplog):
    path = write_coco(tmp_path, [image_record(1)], [annotation(1, 1, (1, 1, 0, 5))])
    open_coco(path)
    caplog.clear()
    open_coco(path)
    assert "dropped 1 box without a positive size" in caplog.text


def test_boxes_outside_the_image(tmp_path):
    boxes = [(70, 6, 20, 10), (-9, -9, 5, 5), (60, 40, 20, 20), (60, 40, 4.5, 8)]
    index = make(tmp_path, [annotation(k, 1, box) for k, box in enumerate(boxes, start=10)])
    assert index.annotation_ids(0).tolist() == [12, 13]
    assert index.boxes(0)[0].tolist() == [60, 40, 80, 60]
    dropped, clipped = index.warnings
    assert dropped.endswith("dropped 2 boxes wholly outside the image (annotations 10, 11)")
    assert clipped.endswith("clipped 1 box reaching more than a pixel outside the image (annotations 12)")


def test_absent_files(tmp_path):
    path = write_coco(tmp_path, [image_record(k) for k in range(1, 7)])
    for k in (2, 3, 5, 6):
        (tmp_path / "train" / f"{k:03d}.png").unlink()
    expect_error(path, "002.png (image 2), 003.png (image 3), 005.png (image 5) and 1 more")
    with pytest.raises(DataError, match="there is no image folder"):
        open_coco(path, "nowhere")
    path.unlink()
    expect_error(path, "there is no annotation file")


def test_small_polygons_are_dropped_and_the_box_stays(tmp_path):
    index = make(
        tmp_path,
        [
            annotation(1, 1, segmentation=[[1, 1, 2, 2]]),
            annotation(2, 1, (1, 2, 3, 4), segmentation=[[1, 1, 2, 2, 3], [0, 0, 4, 0, 4, 4]]),
        ],
    )
    first, second = index.segmentation(0)
    assert first is None
    assert second is not None
    assert np.array_equal(second[0], [0, 0, 4, 0, 4, 4])
    assert index.warnings[0].endswith("dropped 2 polygons of fewer than three points (annotations 1, 2)")


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[0, 0, 1, 1, NAN, 2]], "is NaN or infinite"),
        ([["0", "0", "1", "1", "2", "2"]], "it is neither a list of polygons (x, y, x, y, ...) nor an RLE"),
        ([[[0, 0], [1, 1], [2, 2, 2]]], "it is neither a list of polygons"),
        ([[0, 0, 1, 0, 1, 2**20 + 1]], "or reaches beyond 1048576 pixels"),
        ([[0, 0, 1, 0, 1, 10**400]], "a number in it is out of range"),
        ({"size": [48, 64], "counts": "o" * 10**5}, "the compressed RLE has a run beyond 64 bits"),
        ({"size": "x" * 10**5, "counts": "0"}, "the RLE is of size 'xxx"),
        ("polygon", "it is neither a list of polygons"),
        ({"counts": [48 * 64]}, "the RLE has no 'size'"),
        ({"size": [64, 48], "counts": [48 * 64]}, "the RLE is of size [64, 48], the image of [48, 64]"),
        ({"size": [48, 64], "counts": [7]}, "the RLE covers 7 pixels, the image has 3072"),
        ({"size": [48, 64], "counts": [-1, 3073]}, "a number in it is out of range"),
        ({"size": [48, 64], "counts": "\x7f"}, "is no character of a compressed RLE"),
        ({"size": [48, 64], "counts": "P"}, "the compressed RLE is cut short"),
        ({"size": [48, 64], "counts": 3}, "it is neither a list of polygons"),
    ],
)
def test_broken_masks_are_an_error_only_where_masks_are_read(tmp_path, segmentation, message):
    whole = [[0, 0, 1, 0, 1, 1]]
    broken = annotation(9, 1, (1, 2, 3, 4), segmentation=segmentation)
    others = [annotation(k, 1, (k, 1, 5, 5), segmentation=whole) for k in (8, 10)]
    index = open_coco(write_coco(tmp_path, [image_record(1)], [others[0], broken, others[1]]))
    assert index.boxes(0)[1].tolist() == [1, 2, 4, 6]
    first, second, third = index.segmentation(0)
    assert second is None
    assert [polygons[0].tolist() for polygons in (first, third)] == [whole[0]] * 2
    (remark,) = index.remarks[0]
    assert (remark.kind, remark.count) == ("masks_broken", 1)
    assert message in remark.text
    assert "(annotations 9)" in remark.text
    with pytest.raises(
        DataError, match=r"annotation 9: .*; mend or remove them, or go without masks"
    ) as caught:
        require_masks(index)
    assert str(index.json_path) in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("polygon", [[1, 1, 8, 1, 8, 9], [[1, 1], [8, 1], [8, 9]]])
@pytest.mark.parametrize("in_a_list", [False, True])
def test_polygons_as_tools_write_them(tmp_path, polygon, in_a_list):
    record = annotation(9, 1, segmentation=[polygon] if in_a_list else polygon)
    index = make(tmp_path, [record])
    (polygons,) = index.segmentation(0)
    assert [each.tolist() for each in polygons] == [[1, 1, 8, 1, 8, 9]]
    assert index.warnings == ()


@pytest.mark.parametrize("segmentation", [None, [], [[]], {}])
def test_no_mask_in_many_words(tmp_path, segmentation):
    index = make(tmp_path, [annotation(9, 1, segmentation=segmentation)])
    assert index.segmentation(0) == [None]
    assert index.warnings == ()


def test_links_inside_the_folder_are_followed(tmp_path):
    record = image_record(1) | {"file_name": "linked/..1.png"}
    path = write_coco(tmp_path, [record], with_files=False)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "..1.png").touch()
    (tmp_path / "train" / "linked").symlink_to(tmp_path / "elsewhere")
    assert open_coco(path).path(0).exists()


@pytest.mark.parametrize("name", ["a\nb.png", "a\0.png", "\ud800.png", 7, None, ["1.png"]])
def test_file_names_are_text_of_one_line(tmp_path, name):
    path = write_coco(tmp_path, [image_record(1) | {"file_name": name}], with_files=False)
    expect_error(path, "file_name of image 1")
    expect_error(path, "is not a name")


def test_a_folder_name_that_is_too_long_is_absent(tmp_path):
    path = write_coco(tmp_path, [image_record(1) | {"file_name": "a" * 300 + "/1.png"}], with_files=False)
    expect_error(path, "lists images that are not in")


@pytest.mark.parametrize("size", [(2**20 + 1, 1), (1, 10**18), (2**20, 2**20), (65536, 65536)])
def test_sizes_of_images_are_bounded(tmp_path, size):
    path = write_coco(tmp_path, [image_record(7, *size)], with_files=False)
    expect_error(
        path, f"the size of image 7, {size[0]} x {size[1]}, is beyond 1048576 pixels a side or 2147483647"
    )


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((7, 2.5, "b"), ("7", "2.5", "b")),
        ((7, "7", "b"), ("7 (1)", "7 (3)", "b")),
        (("a", "a", "a (3)"), ("a (1)", "a (3) (3)", "a (3)")),
        (("cow", "cow", "cow"), ("cow (1)", "cow (3)", "cow (7)")),
    ],
)
def test_names_are_told_apart(tmp_path, names, expected):
    categories = [{"id": number, "name": name} for number, name in zip((1, 3, 7), names, strict=True)]
    index = open_coco(write_coco(tmp_path, [image_record(1)], categories=categories))
    assert index.class_names == expected
    assert len(index.warnings) == (expected != tuple(map(str, names)))


@pytest.mark.parametrize(
    "name", [None, "", " ", True, NAN, [], {"a": 1}, "a\nb", "\x1b[31m", "\udc80", "x" * 1001]
)
def test_what_is_no_name(tmp_path, name):
    path = write_coco(tmp_path, [image_record(1)], categories=[{"id": 5, "name": name}])
    expect_error(path, '"name" of category 5 is ')
    expect_error(path, ", not a name")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 10**5, "is JSON that is nested too deeply"),
        ('{"a":' * 10**5, "is JSON that is nested too deeply"),
        ('{"images": ' + "9" * 5000 + "}", "is JSON with a number of thousands of digits"),
        ('{"images": [], "images": []}', "is JSON with the key 'images' twice in an object"),
        ('{"images": [{"id": 1, "id": 2}]}', "is JSON with the key 'id' twice in an object"),
        ('{"images": 1}{}', "is not whole JSON: Extra data at line 1, column 14"),
        ("\ufeff{}", "is not whole JSON: Unexpected UTF-8 BOM"),
        ("NaN", "holds a float, not an object"),
    ],
)
def test_json_beyond_reason(tmp_path, text, message):
    path = write_coco(tmp_path, [image_record(1)])
    path.write_text(text)
    expect_error(path, message)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = write_coco(tmp_path, [image_record(1)])
    with path.open("r+b") as file:
        file.truncate(2**35 + 1)  # takes no room on the disk
    expect_error(path, "is of 34359738369 bytes; at most 34359738368 are read")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [10**400, 0, 1, 1]}, "bbox of annotation 9 is NaN or infinite"),
        ({"bbox": [0, 0, 10**12, 1]}, "bbox of annotation 9 is beyond 2147483648 pixels"),
        ({"bbox": {"x": 1}}, "bbox of annotation 9 is not four numbers"),
        ({"bbox": [True, 0, 1, 1]}, "bbox of annotation 9 is not four numbers"),
        ({"area": True}, "area of annotation 9 is not a number"),
        ({"iscrowd": "no"}, "iscrowd of annotation 9 is neither 0 nor 1"),
        ({"iscrowd": -1}, "iscrowd of annotation 9 is neither 0 nor 1"),
        ({"iscrowd": 2}, "iscrowd of annotation 9 is neither 0 nor 1"),
        ({"iscrowd": []}, "iscrowd of annotation 9 is neither 0 nor 1"),
        ({"id": {"a": "b\nc"}}, "\"id\" of annotation {'a': 'b\\nc'} is {'a': 'b\\nc'}, not a whole number"),
        ({"id": 2**63}, "is 9223372036854775808, not a whole number of at most 64 bits"),
        ({"image_id": -(2**63)}, "is -9223372036854775808, not a whole number of at most 64 bits"),
        ({"category_id": 10**3000}, '"category_id" of annotation 9 is 100000000'),
    ],
)
def test_values_beyond_reason(tmp_path, change, message):
    path = write_coco(tmp_path, [image_record(1)], [annotation(8, 1), annotation(9, 1) | change])
    expect_error(path, message)
    with pytest.raises(DataError) as caught:
        open_coco(path)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("crowd", [1, 1.0, True])
def test_crowds_as_tools_write_them(tmp_path, crowd):
    annotations = [
        annotation(1, 1, iscrowd=crowd),
        annotation(2, 1, iscrowd=None),
        annotation(3, 1, iscrowd=0),
    ]
    assert make(tmp_path, annotations).crowd(0).tolist() == [True, False, False]


def test_what_training_drops_is_kept_for_the_evaluation(tmp_path):
    boxes = [(4, 6, 20, 10), (1, 1, 0, 5), (7, 8, 3, 3), (100, 1, 5, 5)]
    index = make(
        tmp_path,
        [annotation(k, 1, box, segmentation=[[0, 0, k, 0, k, k]]) for k, box in enumerate(boxes, start=10)],
    )
    assert index.columns["xywh"].tolist() == [list(box) for box in boxes]
    assert index.columns["usable"].tolist() == [True, False, True, False]
    assert index.boxes(0).tolist() == [[4, 6, 24, 16], [7, 8, 10, 11]]
    assert index.annotation_ids(0).tolist() == [10, 12]
    assert [polygons[0].max() for polygons in index.segmentation(0)] == [10, 12]
    assert index.counts.tolist() == [2, 0]
