import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lgd.data.catalog import open_dataset
from lgd.data.errors import DataError
from lgd.data.loader import test_loader as open_test_loader
from lgd.data.loader import train_loader
from tests.data.boxes_sets import person, write_crowdhuman

HERE = Path()


def test_full_boxes_and_regions_to_ignore(tmp_path):
    spec = write_crowdhuman(
        tmp_path,
        {
            "273271,c9db000d5146c15": [
                person((-10, 5, 30, 50)),
                person((30, 10, 10, 20), ignore=1),
                person((40, 10, 10, 20), ignore=0),
                person((0, 0, 10, 10), tag="mask", ignore=1),
            ],
            "a": [],
        },
    )
    index = open_dataset(spec, HERE)
    assert (index.kind, index.class_names, index.category_ids) == ("crowdhuman", ("person",), (1,))
    assert index.has_annotations
    assert index.image_ids.tolist() == [1, 2]
    assert index.path(0) == tmp_path / "Images" / "273271,c9db000d5146c15.jpg"
    assert (index.heights.tolist(), index.widths.tolist()) == ([48, 48], [64, 64])
    assert index.boxes(0).tolist() == [[-10, 5, 20, 55], [30, 10, 40, 30], [40, 10, 50, 30], [0, 0, 10, 10]]
    assert index.crowd(0).tolist() == [False, True, False, True]
    assert index.labels(0).tolist() == [0, 0, 0, 0]
    assert index.counts.tolist() == [2, 0]
    assert index.warnings == ()
    assert index.segmentation(0) == [None] * 4


def test_loader_clips_the_boxes_and_leaves_out_what_is_ignored(tmp_path):
    spec = write_crowdhuman(tmp_path, {"a": [person((-10, 5, 30, 50)), person((1, 1, 9, 9), tag="mask")]})
    loader = open_test_loader(
        open_dataset(spec, HERE), batch_size=1, world_size=1, rank=0, min_size=0, max_size=999, num_workers=0
    )
    (batch,) = loader
    assert batch.targets.boxes[0].tolist() == [[0, 5, 20, 48]]
    loader = train_loader(
        open_dataset(spec, HERE),
        batch_size=1,
        world_size=1,
        rank=0,
        seed=0,
        min_sizes=(0,),
        max_size=999,
        flip_prob=0,
        num_workers=0,
    )
    assert next(iter(loader)).targets.boxes[0].tolist() == [[0, 5, 20, 48]]


def test_sizes_are_those_of_the_upright_picture(tmp_path):
    spec = write_crowdhuman(tmp_path, {"a": [person((1, 1, 9, 9))]})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(tmp_path / "Images" / "a.jpg", exif=exif)
    index = open_dataset(spec, HERE)
    assert (index.heights.tolist(), index.widths.tolist()) == ([64], [48])


def test_headers_are_read_once(tmp_path, monkeypatch):
    spec = write_crowdhuman(tmp_path, {"a": [person((1, 1, 9, 9))], "b": []})
    first = open_dataset(spec, HERE)
    monkeypatch.setattr("lgd.data.crowdhuman.read_size", None)
    second = open_dataset(spec, HERE)
    assert np.array_equal(first.heights, second.heights)


def test_a_changed_file_is_noticed(tmp_path):
    write_crowdhuman(tmp_path, {"a": [person((1, 1, 9, 9))]})
    spec = write_crowdhuman(tmp_path, {"a": [person((1, 1, 9, 9)), person((2, 2, 9, 9))]})
    assert open_dataset(spec, HERE).counts.tolist() == [2]
    write_crowdhuman(tmp_path, {"a": [person((3, 1, 9, 9)), person((2, 2, 9, 9))]})
    assert open_dataset(spec, HERE).boxes(0)[0].tolist() == [3, 1, 12, 10]


def test_a_set_without_annotations(tmp_path):
    index = open_dataset(write_crowdhuman(tmp_path, {"a": None, "b": None}), HERE)
    assert not index.has_annotations
    assert len(index) == 2


def test_boxes_without_extent_are_dropped(tmp_path):
    boxes = [person((1, 1, 0, 9)), person((70, 1, 9, 9)), person((2, 2, 9, 9))]
    index = open_dataset(write_crowdhuman(tmp_path, {"a": boxes}), HERE)
    assert index.boxes(0).tolist() == [[2, 2, 11, 11]]
    assert [warning.partition(": ")[2] for warning in index.warnings] == [
        "dropped 1 box without a positive size (in a.jpg)",
        "dropped 1 box wholly outside the image (in a.jpg)",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"ID": "b", "gtbo', "annotation_val.odgt, line 3 is not whole JSON"),
        ("[1]", 'line 3 is not an object with an "ID"'),
        ('{"gtboxes": []}', 'line 3 is not an object with an "ID"'),
        ('{"ID": 3, "gtboxes": []}', 'line 3 is not an object with an "ID"'),
        ('{"ID": "a", "gtboxes": []}', "line 3: ID a is in line 1 too"),
        ('{"ID": "b"}', 'line 3: "gtboxes" of b is not a list of objects'),
        ('{"ID": "b", "gtboxes": [3]}', 'line 3: "gtboxes" of b is not a list of objects'),
        (
            '{"ID": "b", "gtboxes": [{"tag": "person"}]}',
            'line 3: "fbox" of box 0 of b is None, not four numbers',
        ),
        (
            '{"ID": "b", "gtboxes": [{"tag": "person", "fbox": [1, 2, 3]}]}',
            'line 3: "fbox" of box 0 of b is [1, 2, 3], not four numbers',
        ),
        (
            '{"ID": "b", "gtboxes": [{"tag": "person", "fbox": [1, 2, 3, NaN]}]}',
            'line 3: "fbox" of box 0 of b is [1, 2, 3, nan], not four numbers',
        ),
        (
            '{"ID": "b", "gtboxes": [{"tag": "person", "fbox": [1, 2, 3, 1' + "0" * 400 + "]}]}",
            "not four numbers of at most 2147483648",
        ),
        ('{"ID": "b", "gtboxes": ' + "[" * 10**5, "line 3 is JSON that is nested too deeply"),
        ('{"ID": "b", "gtboxes": ' + "9" * 5000 + "}", "line 3 is JSON with a number of thousands of digits"),
        ('{"ID": "b", "ID": "c"}', "line 3 is JSON with the key 'ID' twice in an object"),
        ('{"ID": "../b", "gtboxes": []}', "lists images that are not in"),
        ('{"ID": "\\ud800\\n' + "x" * 10**5 + '", "gtboxes": []}', "lists images that are not in"),
    ],
)
def test_broken_lines(tmp_path, line, message):
    spec = write_crowdhuman(tmp_path, {"a": [], "b": []})
    first = json.dumps({"ID": "a", "gtboxes": []})
    (tmp_path / "annotation_val.odgt").write_text(f"{first}\n\n{line}\n")
    with pytest.raises(DataError) as caught:
        open_dataset(spec, HERE)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_absent(tmp_path):
    with pytest.raises(DataError, match=r"no annotations of CrowdHuman .* it is empty"):
        open_dataset(f"crowdhuman:{tmp_path}:val", HERE)
    spec = write_crowdhuman(tmp_path / "s", {"a": [], "b": []})
    (tmp_path / "s" / "Images" / "b.jpg").unlink()
    with pytest.raises(DataError, match=r"lists images that are not in .*Images: b\.jpg"):
        open_dataset(spec, HERE)
    (tmp_path / "s" / "Images" / "b.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"cannot read image .*b\.jpg"):
        open_dataset(spec, HERE)
    (tmp_path / "s" / "annotation_val.odgt").write_text("\n")
    with pytest.raises(DataError, match=r"annotation_val\.odgt is empty"):
        open_dataset(spec, HERE)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "annotation_val.odgt").write_text("")
    with pytest.raises(DataError, match="there is no image folder"):
        open_dataset(f"crowdhuman:{tmp_path}/empty:val", HERE)


def test_an_image_lost_later_is_named(tmp_path):
    spec = write_crowdhuman(tmp_path, {"a": [], "b": [person((1, 1, 9, 9))]})
    open_dataset(spec, HERE)
    (tmp_path / "Images" / "b.jpg").unlink()
    with pytest.raises(DataError, match=r"not in .*Images: b\.jpg \(image 2\)"):
        open_dataset(spec, HERE)


def test_ignore_is_what_its_text_says(tmp_path):
    people = [person((k, 1, 5, 5), ignore=value) for k, value in enumerate(["0", "1", "false", None])]
    index = open_dataset(write_crowdhuman(tmp_path, {"a": people}), Path())
    assert index.crowd(0).tolist() == [False, True, False, False]
    spec = write_crowdhuman(tmp_path / "b", {"a": [person((1, 1, 5, 5), ignore=-1)]})
    with pytest.raises(DataError, match='line 1: "ignore" of a box is -1, neither 0 nor 1'):
        open_dataset(spec, Path())
