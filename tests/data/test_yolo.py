"""YOLO sets: what their YAML leads to, what a line says, and what is refused."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

import lgd.data.yolo as yolo
from lgd.data.catalog import open_dataset
from lgd.data.errors import DataError
from lgd.data.layouts import find_splits
from tests.data.boxes_sets import write_picture

HERE = Path()
BOX = "1 0.5 0.5 0.25 0.5\n"


def write_yolo(
    root: Path,
    labels: Mapping[str, str | None],
    *,
    images: str = "train/images",
    suffix: str = ".png",
    size: tuple[int, int] = (64, 48),
    **document: object,
) -> str:
    """Write pictures, their label files (None: none) and the YAML; return what opens `train`."""
    for name, text in labels.items():
        picture = root / images / f"{name}{suffix}"
        write_picture(picture, *size)
        if text is not None:
            place = Path(str(picture.parent).replace("images", "labels")) / f"{picture.stem}.txt"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
    content = {"train": images, "names": ["cat", "dog"], "nc": 2} | document
    (root / "data.yaml").write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
    return f"yolo:{root}/data.yaml:train"


def test_boxes_and_polygons(tmp_path):
    triangle = "0 0.25 0.25 0.75 0.25 0.5 1\n"
    index = open_dataset(write_yolo(tmp_path, {"a": BOX + "\n" + triangle, "b": "", "c": None}), HERE)
    assert index.kind == "coco"
    assert index.class_names == ("cat", "dog")
    assert index.category_ids == (0, 1)
    assert index.file_names() == ["a.png", "b.png", "c.png"]
    assert index.boxes(0).tolist() == [[24, 12, 40, 36], [16, 12, 48, 48]]
    assert index.labels(0).tolist() == [1, 0]
    box, polygons = index.segmentation(0)
    assert box is None
    assert [polygon.tolist() for polygon in polygons] == [[16, 12, 48, 12, 32, 48]]
    assert index.counts.tolist() == [2, 0, 0]
    assert [remark.kind for remark in index.remarks[0]] == ["pictures_without_labels"]
    assert index.warnings == (
        f"{tmp_path}/data.yaml: 1 picture without a label file, taken as without objects: c.png",
    )
    assert index.layout == "YOLO (data.yaml, pictures of train/images)"


@pytest.mark.parametrize(
    "names", [{0: "cat", 1: "dog"}, {"0": "cat", "1": "dog"}, ["cat", "dog"]], ids=["map", "text", "list"]
)
def test_names_of_classes(tmp_path, names):
    index = open_dataset(write_yolo(tmp_path, {"a": BOX}, names=names), HERE)
    assert (index.class_names, index.labels(0).tolist()) == (("cat", "dog"), [1])


def test_numbers_of_classes_with_gaps(tmp_path):
    spec = write_yolo(tmp_path, {"a": "7 0.5 0.5 1 1\n"}, names={7: 12, 3: "cat"})
    index = open_dataset(spec, HERE)
    assert index.class_names == ("cat", "12")
    assert index.category_ids == (3, 7)
    assert index.labels(0).tolist() == [1]


@pytest.mark.parametrize(
    "written",
    [
        {"train": "../train/images"},  # as Roboflow has it, and does not mean it
        {"train": "./train/images"},
        {"train": "train\\images"},
        {"path": ".", "train": "train/images"},
        {"path": "/home/somebody/datasets/mine", "train": "train/images"},
        {"path": "../datasets/mine", "train": "train/images"},
        {"train": "/content/mine/train/images"},
        {"train": "C:/data/mine/train/images"},
    ],
)
def test_places_of_other_machines(tmp_path, written):
    index = open_dataset(write_yolo(tmp_path / "mine", {"a": BOX}, **written), HERE)
    assert index.path(0) == tmp_path / "mine" / "train" / "images" / "a.png"
    assert index.counts.tolist() == [1]


def test_a_path_that_is_there_counts(tmp_path):
    write_yolo(tmp_path / "set", {"a": BOX})
    (tmp_path / "other").mkdir()
    names = {"path": str(tmp_path / "set"), "train": "train/images", "names": ["x", "y"]}
    (tmp_path / "other" / "my.yaml").write_text(yaml.safe_dump(names))
    index = open_dataset(f"yolo:{tmp_path}/other/my.yaml:train", HERE)
    assert index.class_names == ("x", "y")
    assert index.image_dir == tmp_path / "set" / "train" / "images"
    (tmp_path / "other" / "my.yaml").write_text(yaml.safe_dump(names | {"path": "../set"}))
    assert len(open_dataset(f"{tmp_path}/other/my.yaml", HERE)) == 1


def test_several_folders_and_those_below_them(tmp_path):
    write_yolo(tmp_path, {"a": BOX, "deep/b": BOX}, images="images/one")
    spec = write_yolo(tmp_path, {"c": BOX * 2}, images="images/two", train=["images/one", "images/two"])
    index = open_dataset(spec, HERE)
    assert index.file_names() == ["one/a.png", "one/deep/b.png", "two/c.png"]
    assert index.counts.tolist() == [1, 1, 2]


def test_lists_of_pictures(tmp_path):
    labels = {"a": BOX, "b b": BOX * 2, "c": BOX * 3}
    spec = write_yolo(tmp_path, labels, images="images", train="train.txt", val="lists/val.txt")
    (tmp_path / "train.txt").write_text("./images/c.png\n\nimages/b b.png\n")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "val.txt").write_text(
        f"{tmp_path}/images/a.png\n/home/somebody/mine/images/b b.png\nC:\\mine\\images\\c.png\n"
    )
    train = open_dataset(spec, HERE)
    assert train.file_names() == ["c.png", "b b.png"]
    assert train.counts.tolist() == [3, 2]
    val = open_dataset(spec.replace(":train", ":valid"), HERE)
    assert val.file_names() == ["a.png", "b b.png", "c.png"]
    assert open_dataset(spec, HERE).file_names() == train.file_names()


def test_a_list_cannot_lead_out_of_the_set(tmp_path):
    write_picture(tmp_path / "secret.png")
    spec = write_yolo(tmp_path / "set", {"a": BOX}, images="images", train="train.txt")
    for line in ("../secret.png", f"{tmp_path}/secret.png", "images/../../secret.png"):
        (tmp_path / "set" / "train.txt").write_text(f"images/a.png\n{line}\n")
        with pytest.raises(
            DataError, match=r"train\.txt, line 2: .*secret\.png is not there; looked for below"
        ):
            open_dataset(spec, HERE)
    (tmp_path / "set" / "train.txt").write_text("images/a.png\n./images/a.png\n")
    with pytest.raises(DataError, match=r"images/a\.png is in train more than once"):
        open_dataset(spec, HERE)


def test_labels_beside_the_pictures(tmp_path):
    spec = write_yolo(tmp_path, {"a": BOX}, images="pictures")
    assert (tmp_path / "pictures" / "a.txt").exists()
    assert open_dataset(spec, HERE).counts.tolist() == [1]


def test_a_set_without_any_label_file_is_refused(tmp_path):
    spec = write_yolo(tmp_path, {"a": None, "b": None})
    with pytest.raises(DataError, match=r"none of the 2 pictures has a label file, .*images/a\.png$"):
        open_dataset(spec, HERE)


def test_labels_without_pictures_are_counted(tmp_path):
    spec = write_yolo(tmp_path, {"a": BOX})
    (tmp_path / "train" / "labels" / "gone.txt").write_text(BOX)
    (tmp_path / "train" / "labels" / "classes.txt").write_text("cat\ndog\n")
    index = open_dataset(spec, HERE)
    assert [(each.kind, each.count) for each in index.remarks[0]] == [("labels_without_pictures", 1)]


def test_classes_alone_with_folders_called_after_the_splits(tmp_path):
    write_yolo(tmp_path, {"a": BOX}, images="train/images")
    write_yolo(tmp_path, {"b": BOX}, images="valid/images", train=None)
    assert [split.spec for split in find_splits(tmp_path)] == [
        f"yolo:{tmp_path}:train",
        f"yolo:{tmp_path}:valid",
    ]
    assert open_dataset(f"{tmp_path}:val", HERE).file_names() == ["b.png"]


def test_a_list_of_classes_in_place_of_the_yaml(tmp_path):
    write_yolo(tmp_path, {"a": BOX}, images="images")
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    index = open_dataset(f"yolo:{tmp_path}", HERE)
    assert index.class_names == ("cat", "dog")
    assert open_dataset(str(tmp_path), HERE).labels(0).tolist() == [1]


def test_darknet(tmp_path):
    write_picture(tmp_path / "obj_train_data" / "a.jpg")
    (tmp_path / "obj_train_data" / "a.txt").write_text(BOX)
    (tmp_path / "obj.names").write_text("cat\ndog\n")
    (tmp_path / "obj.data").write_text("classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n")
    (tmp_path / "train.txt").write_text("data/obj_train_data/a.jpg\n")
    index = open_dataset(f"yolo:{tmp_path}:train", HERE)
    assert index.boxes(0).tolist() == [[24, 12, 40, 36]]


def test_an_absent_split_is_found_only_where_it_is_wanted(tmp_path):
    spec = write_yolo(tmp_path, {"a": BOX}, val="../valid/images", test=None)
    assert [split.name for split in find_splits(tmp_path)] == ["train"]
    with pytest.raises(DataError, match=r"data\.yaml: val leads to \.\./valid/images, which is not there"):
        open_dataset(spec.replace(":train", ":valid"), HERE)
    with pytest.raises(DataError, match=r"has no split test; it has yolo:.*data\.yaml:train"):
        open_dataset(spec.replace(":train", ":test"), HERE)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", "the class is '2'; the set has 0 to 1"),
        ("-1 0.5 0.5 0.1 0.1", "the class is '-1'"),
        ("0.5 0.5 0.5 0.1 0.1", "the class is '0.5'"),
        ("nan 0.5 0.5 0.1 0.1", "the class is 'nan'"),
        ("0 0.5 0.5 0.1", "it has 4 numbers, not 5 (a box), or 7, 9, ... (a polygon)"),
        ("0 0.5 0.5 0.1 0.1 0.9", "it has 6 numbers, not 5"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "it has 8 numbers, not 5"),
        ("0", "it has 1 number, not 5"),
        ("0 1.5 0.5 0.1 0.1", "'1.5' is not in 0..1"),
        ("0 0.5 -0.1 0.1 0.1", "'-0.1' is not in 0..1"),
        ("0 0.5 0.5 nan 0.1", "'nan' is not in 0..1"),
        ("0 0.5 0.5 inf 0.1", "'inf' is not in 0..1"),
        ("0 0.1 0.1 0.2 0.2 0.3 1.2", "'1.2' is not in 0..1"),
        ("0 12 30 200 100", "'12' is not in 0..1"),
        ("cat 0.5 0.5 0.1 0.1", "'cat' is not a number"),
        ("0 0.5 0.5 0.1 0.1_5", "'0.1_5' is not a number"),
        ("0,0.5,0.5,0.1,0.1", "'0,0.5,0.5,0.1,0.1' is not a number"),
    ],
)
def test_lines_that_are_refused(tmp_path, line, message):
    spec = write_yolo(tmp_path, {"a": BOX, "b": f"{BOX}\n{line}\n"})
    with pytest.raises(DataError) as caught:
        open_dataset(spec, HERE)
    assert str(caught.value).startswith(f"{tmp_path}/train/labels/b.txt, line 3: {message}")
    assert "\n" not in str(caught.value)


def test_rounding_is_no_error_and_no_size_is_dropped(tmp_path):
    spec = write_yolo(tmp_path, {"a": "1 0.5 0.5 1.000001 1\n0 0.5 0.5 0 0.1\n"})
    index = open_dataset(spec, HERE)
    assert index.counts.tolist() == [1]
    assert index.remarks[0][0].kind == "boxes_without_size"


def test_keypoints_are_left_out_with_a_word(tmp_path):
    pose = "0 0.5 0.5 0.5 0.5 0.1 0.1 2 0.2 0.2 1\n"
    spec = write_yolo(tmp_path, {"a": pose}, kpt_shape=[2, 3])
    index = open_dataset(spec, HERE)
    assert index.boxes(0).tolist() == [[16, 12, 48, 36]]
    assert index.remarks[0][0].kind == "keypoints"
    spec = write_yolo(tmp_path, {"a": BOX}, kpt_shape=[2, 3])
    with pytest.raises(DataError, match="line 1: it has 5 numbers, not 11"):
        open_dataset(spec, HERE)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"names": None}, "has no names; write names:"),
        ({"names": []}, r"has \[\] for names"),
        ({"names": "cat"}, "has 'cat' for names"),
        ({"names": ["cat", None]}, "the name of class 1 is None, not a name"),
        ({"names": ["cat", "cat"]}, "names has a class twice"),
        ({"names": {"a": "cat", "b": "dog"}}, "names has the key 'a', not the number of a class"),
        ({"nc": 3}, "nc is 3, but names has 2"),
        ({"train": 7}, "train is 7, not a folder"),
        ({"train": ["train/images", 7]}, "train is .*, not a folder"),
        ({"path": 7}, "path is 7, not a folder"),
        ({"train": "data.yaml"}, r"data\.yaml is neither a folder nor a list of pictures"),
        ({"train": "train"}, "there are no pictures in"),
    ],
)
def test_yaml_that_is_refused(tmp_path, document, message):
    spec = write_yolo(tmp_path, {"a": BOX}, **document)
    if document == {"train": "train"}:
        for path in (tmp_path / "train" / "images").iterdir():
            path.unlink()
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(spec, HERE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a, b", "is not whole YAML: .* at line 1"),
        ("- a\n- b\n", "holds a list, not keys"),
        ("names: !!python/object/apply:os.system ['true']\n", "is not whole YAML: could not determine"),
        ("[" * 5000, "is not whole YAML"),
        ("names: [a]\n#" + "x" * 2**20, "is of 1048588 bytes; at most 1048576 are read"),
    ],
)
def test_yaml_that_is_damaged(tmp_path, text, message):
    spec = write_yolo(tmp_path, {"a": BOX})
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(spec, HERE)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_what_is_kept_hangs_on_labels_and_on_the_sizes_of_pictures(tmp_path, monkeypatch):
    spec = write_yolo(tmp_path, {"a": BOX, "b": None})
    labels = tmp_path / "train" / "labels"
    first = open_dataset(spec, HERE)
    old = 1_000_000_000_000_000_000
    with monkeypatch.context() as patch:
        patch.setattr(yolo, "_parse", None)
        assert open_dataset(spec, HERE).content_hash == first.content_hash
    write_picture(tmp_path / "train" / "images" / "a.png", 32, 48)
    smaller = open_dataset(spec, HERE)
    assert smaller.boxes(0).tolist() == [[12, 12, 20, 36]]
    (labels / "b.txt").write_text(BOX * 2)
    assert open_dataset(spec, HERE).counts.tolist() == [1, 2]
    write_picture(tmp_path / "train" / "images" / "0.png")
    more = open_dataset(spec, HERE)
    assert more.file_names() == ["0.png", "a.png", "b.png"]
    for path in [*labels.iterdir(), *(tmp_path / "train" / "images").iterdir()]:
        os.utime(path, ns=(old, old))
    (labels / "a.txt").write_text("")
    assert open_dataset(spec, HERE).counts.tolist() == [0, 0, 2]


def test_splits_do_not_take_each_others_cache(tmp_path):
    write_yolo(tmp_path, {"a": BOX}, images="images/train")
    spec = write_yolo(tmp_path, {"a": BOX}, images="images/val", train="images/train", val="images/val")
    for _ in range(2):
        assert open_dataset(spec, HERE).path(0) == tmp_path / "images" / "train" / "a.png"
        assert open_dataset(spec.replace(":train", ":val"), HERE).path(0).parent.name == "val"
    assert len(list((tmp_path / ".lgd").glob("*.lgd-index"))) == 2


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    spec = write_yolo(tmp_path, {"a": BOX})
    (tmp_path / "train" / "images" / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"cannot read image .*a\.png"):
        open_dataset(spec, HERE)
