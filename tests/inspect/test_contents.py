"""Counts and sizes against hotcoco's, and what is advised for sets of known shape."""

import hotcoco
import numpy as np
import pytest

from lgd.inspect.advice import advise, choose_anchors, choose_detections, choose_sides, scaled_boxes
from lgd.inspect.contents import find_doubts, read_contents
from lgd.inspect.histogram import bars, octaves, quantiles, say_quantiles
from tests.data.sets import CATEGORIES, annotation, image_record, open_coco, write_coco


def contents_of(root, boxes, *, images=1, width=64, height=48, **other):
    """A set with these boxes, spread over so many images, of which the files are there and never read."""
    records = [image_record(k + 1, width, height) for k in range(images)]
    annotations = [annotation(k + 1, k % images + 1, box, **other) for k, box in enumerate(boxes)]
    path = write_coco(root, records, annotations, with_files=False)
    for record in records:
        (root / "train" / record["file_name"]).touch()
    return read_contents(open_coco(path))


def test_counts_are_hotcocos(tmp_path):
    generator = np.random.default_rng(3)
    annotations = [
        annotation(
            k + 1,
            int(generator.integers(1, 9)),
            (*generator.uniform(0, 20, 2).tolist(), *generator.uniform(2, 20, 2).tolist()),
            category=int(generator.choice([1, 3])),
            area=1.0,
            iscrowd=0,
        )
        for k in range(60)
    ]
    path = write_coco(tmp_path, [image_record(k) for k in range(1, 11)], annotations)
    contents = read_contents(open_coco(path))
    stats = hotcoco.COCO(str(path)).stats()
    assert (contents.images, contents.objects) == (stats["image_count"], stats["annotation_count"])
    theirs = {each["name"]: (each["ann_count"], each["img_count"]) for each in stats["per_category"]}
    assert {each.name: (each.objects, each.images) for each in contents.classes} == theirs
    assert contents.per_image.sum() == 60
    assert contents.used_images == len({each["image_id"] for each in annotations})


def test_boxes_are_measured_within_their_image(tmp_path):
    contents = contents_of(tmp_path, [(54, 40, 20, 20), (0, 0, 9, 4)])
    assert contents.sides.tolist() == [[10, 8], [9, 4]]
    assert contents.box_sizes.tolist() == pytest.approx([80**0.5, 6])


def test_doubts_name_what_is_worth_a_look(tmp_path):
    boxes = [(0, 0, 64, 48), (0, 0, 64, 48), (3, 3, 20, 1)]
    mask = {"segmentation": [[0, 0, 9, 0, 9, 9]]}
    contents = contents_of(tmp_path, boxes, **mask)
    absent, few, tiny, whole = find_doubts(contents)
    assert "dog, cow" in absent
    assert "cat (3)" in few
    assert tiny.endswith("high: 1")
    assert whole.endswith("picture: 2 of 3")


@pytest.mark.parametrize(("number", "kept"), [(30, 100), (100, 100), (101, 200), (369, 600)])
def test_detections_leave_room_beyond_the_fullest_image(number, kept, tmp_path):
    contents = contents_of(tmp_path, [(1, 1, 8, 8)] * number)
    assert choose_detections(contents).value == kept


def test_small_objects_are_given_larger_pictures_but_never_more_than_twice_their_own(tmp_path):
    large = contents_of(tmp_path / "a", [(9, 9, 200, 200)] * 9, width=1000, height=600)
    assert choose_sides(large, "base").test == 480
    small = contents_of(tmp_path / "b", [(9, 9, 20, 20)] * 9, width=1000, height=600)
    assert choose_sides(small, "base").test == 704  # the next of 24 / 20 * 600 = 720 by 32
    tiny = contents_of(tmp_path / "c", [(9, 9, 4, 4)] * 9, width=330, height=300)
    assert choose_sides(tiny, "base").test == 608
    assert max(choose_sides(tiny, "small").train) == choose_sides(tiny, "small").test == 384


def test_anchors_follow_sizes_and_shapes(tmp_path):
    usual = contents_of(tmp_path / "a", [(1, 1, 60 + k, 64) for k in range(9)], width=500, height=480)
    anchors = choose_anchors(usual, choose_sides(usual, "base"))
    assert (anchors.scale, anchors.ratios) == (1.0, (0.5, 1.0, 2.0))
    tall = contents_of(tmp_path / "b", [(1, 1, 24, 110 + k) for k in range(9)], width=500, height=480)
    assert choose_anchors(tall, choose_sides(tall, "base")).ratios == (1.0, 2.0, 3.0)
    tiny = contents_of(tmp_path / "c", [(1, 1, 7, 7)] * 9, width=500, height=480)
    sides = choose_sides(tiny, "base")
    anchors = choose_anchors(tiny, sides)
    size = float(np.sqrt(scaled_boxes(tiny, sides).prod(axis=1)).mean())
    assert anchors.scale < 1
    assert anchors.sizes(dense=True)[0][0] / 2 < size


def test_advice_has_a_reason_for_every_setting(tmp_path):
    advice = advise(contents_of(tmp_path, [(1, 1, 30, 30)]))
    assert all(each.why for each in advice)
    assert {each.key: each.value for each in advice}["NUM_CLASSES"] == len(CATEGORIES)


def test_a_cache_is_for_photographs(tmp_path):
    def found(name, **size):
        advice = advise(contents_of(tmp_path / name, [(1, 1, 300, 300)], **size))
        return [each.why for each in advice if each.key == "DATALOADER.CACHE_DIR"]

    assert not found("small", width=1600, height=1200)
    (why,) = found("large", width=8000, height=6000)
    assert "48 megapixels" in why
    assert "0.1 GiB" in why, "one picture, at 1/8: 2 MiB"


def test_histogram_is_of_powers_of_two():
    assert octaves(np.array([0.2, 1, 3, 8, 15.9])) == [(1, 2, 2), (2, 4, 1), (4, 8, 0), (8, 16, 2)]
    assert octaves(np.array([])) == []
    lines = list(bars([("a", 1), ("bb", 40), ("c", 0)]))
    assert [line.count("#") for line in lines] == [1, 40, 0]
    assert len({line.index("%") for line in lines}) == 1


def test_quantiles_are_among_the_numbers():
    values = np.array([5, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11])
    assert quantiles(values) == {"least": 1, "p10": 2, "median": 6, "p90": 10, "most": 11}
    assert quantiles(np.array([])) == {}
    assert say_quantiles(np.array([7, 7])) == "all 7"
