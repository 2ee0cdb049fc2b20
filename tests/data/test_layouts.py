"""What annotation tools leave in a folder is found and opened; what may mean two things is not."""

import json
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lgd.data.catalog import open_dataset
from lgd.data.coco_layouts import find_image_dir
from lgd.data.errors import DataError
from lgd.data.layouts import find_splits
from tests.data.boxes_sets import voc_object, voc_xml, write_crowdhuman, write_picture, write_voc
from tests.data.sets import CATEGORIES, annotation, image_record, open_joined
from tests.data.test_yolo import BOX, write_yolo

HERE = Path()


def write(root: Path, json_path: str, images: str, names: Sequence[str] = ("a.png",), **other: Any) -> None:
    """Write a JSON and its pictures; `names` are what the JSON calls them."""
    records = [image_record(k) | {"file_name": name} for k, name in enumerate(names, 1)]
    document = {"images": records, "annotations": [annotation(1, 1)], "categories": CATEGORIES} | other
    (root / json_path).parent.mkdir(parents=True, exist_ok=True)
    (root / json_path).write_text(json.dumps(document))
    for name in names:
        write_picture(root / images / name.replace("\\", "/").rpartition("/")[2])


def refused(spec: str) -> str:
    with pytest.raises(DataError) as caught:
        open_dataset(spec, HERE)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000
    return str(caught.value)


@pytest.mark.parametrize(
    ("json_path", "images", "wanted", "layout"),
    [
        ("annotations/instances_train.json", "train", "train", "COCO ({}, pictures in train/)"),
        ("train/_annotations.coco.json", "train", "train", "Roboflow ({} beside the pictures)"),
        ("valid/_annotations.coco.json", "valid", "val", "Roboflow ({} beside the pictures)"),
        ("validation/_annotations.coco.json", "validation", "val", None),
        ("annotations/instances_val.json", "val", "valid", None),
        ("annotations/instances_val.json", "valid", "val", None),
        ("_annotations.coco.json", ".", "train", "Roboflow ({} beside the pictures)"),
        ("annotations/instances_default.json", "images/default", "default",
         "CVAT or Datumaro ({}, pictures in images/default/)"),
        ("annotations/instances_default.json", "images", "default", None),
        ("annotations/instances_train.json", "images/train", "train", None),
        ("annotations/train.json", "images/train", "train", "COCO ({}, pictures in images/train/)"),
        ("annotations/person_keypoints_train.json", "train", "train", None),
        ("annotations/image_info_test2017.json", "test2017", "test2017", None),
        ("result.json", "images", "train", "Label Studio ({}, pictures in images/)"),
        ("labels.json", "data", "train", "FiftyOne ({}, pictures in data/)"),
        ("train/labels.json", "train/data", "train", "FiftyOne ({}, pictures in train/data/)"),
        ("train/result.json", "train/images", "train", None),
        ("train.json", "train", "train", None),
        ("train.json", "images", "train", None),
        ("train.json", ".", "train", "COCO ({} beside the pictures)"),
        ("instances_train.json", "images/train", "train", None),
        ("annotations_train.json", "images", "train", None),
        ("train_coco.json", "train", "train", None),
        ("dataset.json", "pictures", "train", None),
        ("via_export_coco.json", ".", "train", None),
        ("train/anything.json", "train", "train", None),
        ("train/annotations/instances_default.json", "train/images/default", "train", None),
        ("train/annotations/instances_default.json", "train/images", "train", None),
    ],
)  # fmt: skip
def test_layouts_of_coco(tmp_path, json_path, images, wanted, layout):
    write(tmp_path, json_path, images)
    for spec in (f"coco:{tmp_path}:{wanted}", f"coco:{tmp_path}", f"{tmp_path}:{wanted}", str(tmp_path)):
        index = open_dataset(spec, HERE)
        assert index.path(0) == tmp_path / images / "a.png"
        assert index.name == spec
        assert layout is None or index.layout == layout.format(json_path)
    (split,) = find_splits(tmp_path)
    assert open_dataset(split.spec, HERE).path(0) == index.path(0)
    by_file = open_dataset(f"coco:{tmp_path / json_path}:{tmp_path / images}", HERE)
    assert by_file.path(0) == index.path(0)
    if json_path.count("/") < 2:  # from a JSON alone the folder of the whole set is not known
        assert open_dataset(f"{tmp_path / json_path}", HERE).path(0) == index.path(0)


@pytest.mark.parametrize(
    ("json_path", "name", "picture", "image_dir"),
    [
        ("result.json", "images/a.png", "images", "."),
        ("annotations/train.json", "JPEGImages/a.png", "JPEGImages", "."),
        ("annotations/instances_train.json", "train/a.png", "train", "."),
        ("annotations/instances_train.json", "deep/a.png", "images/train/deep", "images/train"),
        ("voc07.json", "VOC2007/JPEGImages/a.png", "VOC2007/JPEGImages", "."),
    ],
)
def test_names_with_folders(tmp_path, json_path, name, picture, image_dir):
    write(tmp_path, json_path, picture, [name])
    index = open_dataset(f"coco:{tmp_path}", HERE)
    assert index.image_dir == tmp_path / image_dir
    assert index.path(0).exists()


def test_pictures_of_other_names_do_not_count(tmp_path):
    write(tmp_path, "annotations/instances_train.json", "images/train")
    write_picture(tmp_path / "train" / "other.png")
    assert open_dataset(f"coco:{tmp_path}:train", HERE).image_dir == tmp_path / "images" / "train"


def test_roboflow_as_a_whole(tmp_path):
    for split in ("test", "valid", "train"):
        write(tmp_path, f"{split}/_annotations.coco.json", split)
    found = find_splits(tmp_path)
    assert [split.name for split in found] == ["train", "valid", "test"]
    assert [split.spec for split in found] == [
        f"coco:{tmp_path}:{name}" for name in ("train", "valid", "test")
    ]
    assert {split.kind for split in found} == {"coco"}
    message = refused(f"coco:{tmp_path}")
    assert "may mean one of 3; write which: " in message
    assert all(split.spec in message for split in found)
    message = refused(f"coco:{tmp_path}:tets")
    assert f"has no split tets; did you mean coco:{tmp_path}:test?; it has coco:{tmp_path}:train" in message


def test_two_layouts_that_fit_are_an_error_with_the_lines_to_type(tmp_path):
    write(tmp_path, "annotations/instances_train.json", "train")
    write(tmp_path, "train/_annotations.coco.json", "train", info={})
    first, second = (
        f"coco:{tmp_path}/annotations/instances_train.json",
        f"coco:{tmp_path}/train/_annotations.coco.json",
    )
    message = refused(f"coco:{tmp_path}:train")
    assert first in message
    assert second in message
    for spec in (first, second):
        assert open_dataset(spec, HERE).path(0) == tmp_path / "train" / "a.png"
    shutil.copy(
        tmp_path / "annotations" / "instances_train.json", tmp_path / "train" / "_annotations.coco.json"
    )
    assert open_dataset(f"coco:{tmp_path}:train", HERE).json_path.parent.name == "annotations"


def test_pictures_in_two_folders_are_an_error_unless_they_are_the_same(tmp_path):
    write(tmp_path, "annotations/instances_train.json", "train")
    (tmp_path / "images").mkdir()
    shutil.copy(tmp_path / "train" / "a.png", tmp_path / "images" / "a.png")
    assert open_dataset(f"coco:{tmp_path}:train", HERE).image_dir == tmp_path / "train"
    Image.new("RGB", (64, 48)).save(tmp_path / "images" / "a.png")
    message = refused(f"coco:{tmp_path}:train")
    for folder in ("train", "images"):
        spec = f"coco:{tmp_path}/annotations/instances_train.json:{tmp_path}/{folder}"
        assert spec in message
        assert open_dataset(spec, HERE).image_dir == tmp_path / folder


def test_what_is_not_divided_is_trained_on_but_not_tested_on_unasked(tmp_path):
    write(tmp_path, "result.json", "images")
    for spec in (f"coco:{tmp_path}:train", f"coco:{tmp_path}:all", f"coco:{tmp_path}"):
        assert len(open_dataset(spec, HERE)) == 1
    message = refused(f"coco:{tmp_path}:val")
    assert f"has no split val; it is not divided: all of it is coco:{tmp_path} (Label Studio" in message


def test_other_jsons_are_no_sets(tmp_path):
    write(tmp_path, "train.json", "images")
    write(tmp_path, "annotations/instances_val.json", "val")
    write(tmp_path, "annotations/captions_val.json", "val")
    write(tmp_path, "annotations/person_keypoints_val.json", "val", info={})
    write(tmp_path, "annotations/panoptic_train.json", "val")
    (tmp_path / "package.json").write_text('{"name": "x"}')
    (tmp_path / "export.json").write_text('[{"annotations": [{"id": 1}]}]')
    (tmp_path / "a.json").write_text('{"version": "5.0", "shapes": [], "imagePath": "a.png"}')
    (tmp_path / "broken.json").write_bytes(b"\xff\xfe")
    assert [split.name for split in find_splits(tmp_path)] == ["train", "val"]


def test_a_json_with_its_pictures_by_name(tmp_path, monkeypatch):
    write(tmp_path, "somewhere/all.json", "elsewhere/deep")
    spec = f"coco:{tmp_path}/somewhere/all.json"
    assert open_dataset(f"{spec}:{tmp_path}/elsewhere/deep", HERE).counts.tolist() == [1]
    assert "lists images that are not in" in refused(spec)
    assert "there is no image folder nowhere, neither here nor beside" in refused(f"{spec}:nowhere")
    (tmp_path / "elsewhere").rename(tmp_path / "somewhere" / "with:colons")
    assert open_dataset(f"{spec}:with:colons/deep", HERE).counts.tolist() == [1]
    monkeypatch.chdir(tmp_path / "somewhere")
    assert open_dataset("all.json:with:colons/deep", HERE).counts.tolist() == [1]
    assert open_dataset("coco:./all.json:./with:colons/deep", HERE).counts.tolist() == [1]


def test_pictures_named_by_their_place_on_this_machine(tmp_path):
    pictures = tmp_path / "labelled"
    write(tmp_path, "runs/dataset.json", "labelled", [f"{pictures}/a.png"])
    assert f"write coco:{tmp_path}/runs/dataset.json:{pictures}" in refused(f"coco:{tmp_path}/runs")


def test_colons_in_folders(tmp_path):
    for name in ("a:b", "a"):
        write(tmp_path / name, "annotations/instances_train.json", "train", [f"{len(name)}.png"])
    assert open_dataset(f"coco:{tmp_path}/a:b:train", HERE).file_names() == ["3.png"]
    assert open_dataset(f"coco:{tmp_path}/a:b", HERE).file_names() == ["3.png"]
    assert open_dataset(f"{tmp_path}/a:b:train", HERE).file_names() == ["3.png"]
    assert open_dataset(f"coco:{tmp_path}/a:train", HERE).file_names() == ["1.png"]
    assert "there is no file or folder" in refused(f"coco:{tmp_path}/c:d:train")


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "mine/train/_annotations.coco.json", "mine/train")
    for spec in (
        "coco:~/mine:train",
        "~/mine:train",
        "~/mine",
        "coco:~/mine/train/_annotations.coco.json:~/mine/train",
    ):
        assert open_dataset(spec, HERE).path(0) == tmp_path / "mine" / "train" / "a.png"
    assert "there is no home folder of ~no_such_user" in refused("coco:~no_such_user/x:train")


def test_what_is_there_is_listed(tmp_path):
    for k in range(20):
        (tmp_path / f"{k:02}.txt").touch()
    (tmp_path / "folder").mkdir()
    message = refused(f"coco:{tmp_path}:train")
    assert f"no annotations of COCO (JSON) were found in {tmp_path}; it holds folder/, 00.txt, " in message
    assert " and 13 more. " in message
    assert message.endswith("can be named: coco:FILE.json:IMAGES")
    assert "it is empty" in refused(f"coco:{tmp_path}/folder")


def test_the_nearest_line_to_type(tmp_path):
    write_yolo(tmp_path / "yolo", {"a": BOX})
    write(tmp_path / "outer", "inner/annotations/instances_train.json", "inner/train")
    write(tmp_path / "outer", "inner/annotations/instances_val.json", "inner/val")
    assert f"did you mean yolo:{tmp_path}/yolo:train?" in refused(f"coco:{tmp_path}/yolo:train")
    assert f"did you mean coco:{tmp_path}/outer/inner:val?" in refused(f"coco:{tmp_path}/outer:val")
    assert f"did you mean {tmp_path}/yolo?" in refused(f"yolo:{tmp_path}/yolp:train")


def test_kinds_that_are_recognised(tmp_path):
    write_voc(tmp_path / "voc", {"1": []})
    write_yolo(tmp_path / "yolo", {"a": BOX})
    write_crowdhuman(tmp_path / "crowd", {"a": []}, split="train")
    write(tmp_path / "coco", "result.json", "images")
    places = {name: tmp_path / name for name in ("coco", "yolo", "voc", "crowd")}
    found = {name: find_splits(place) for name, place in places.items()}
    assert [found[name][0].kind for name in places] == ["coco", "yolo", "voc", "crowdhuman"]
    assert {len(splits) for splits in found.values()} == {1}
    for name, place in places.items():
        index = open_dataset(str(place), HERE)
        assert index.layout
        assert index.layout.partition(" ")[0] in ("Label", "YOLO", "VOC", "CrowdHuman"), name
    assert find_splits(tmp_path / "yolo" / "data.yaml")[0].spec == f"yolo:{tmp_path}/yolo/data.yaml:train"
    assert find_splits(tmp_path / "coco" / "result.json")[0].spec == f"coco:{tmp_path}/coco/result.json"
    assert [split.spec for split in find_splits(tmp_path)] == [f"coco:{tmp_path}"]


def test_a_folder_of_two_formats_must_be_told_apart(tmp_path):
    write_yolo(tmp_path, {"a": BOX}, images="images/train")
    write(tmp_path, "annotations/instances_train.json", "images/train")
    message = refused(f"{tmp_path}:train")
    assert f"coco:{tmp_path}:train" in message
    assert f"yolo:{tmp_path}:train" in message
    assert [split.kind for split in find_splits(tmp_path)] == ["coco", "yolo"]


def test_the_layout_survives_pickling_and_joining(tmp_path):
    write(tmp_path, "train/_annotations.coco.json", "train")
    write(tmp_path, "valid/_annotations.coco.json", "valid")
    specs = [f"coco:{tmp_path}:train", f"coco:{tmp_path}:valid"]
    first = open_dataset(specs[0], HERE)
    assert pickle.loads(pickle.dumps(first)).layout == first.layout
    joined = open_joined(specs, HERE)
    assert joined.layout == "; ".join(open_dataset(spec, HERE).layout for spec in specs)
    assert pickle.loads(pickle.dumps(joined)).layout == joined.layout


def objects(*boxes: Sequence[float]) -> list[str]:
    return [voc_object("cat", box) for box in boxes]


def write_xml(folder: Path, name: str, images: Path | None, suffix: str = ".jpg", **change: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    text = voc_xml(name.rpartition("/")[2], objects((1, 1, 9, 9)))
    for old, new in change.items():
        text = text.replace(f"<{old}>{name}.jpg<", f"<{old}>{new}<")
    (folder / f"{name}.xml").write_text(text)
    if images is not None:
        write_picture(images / f"{name}{suffix}")


@pytest.mark.parametrize(
    ("annotations", "images", "wanted"),
    [
        ("Annotations", "JPEGImages", "train"),
        ("annotations", "images", "all"),
        ("Annotations/train", "JPEGImages/train", "train"),
        ("annotations/train", "images", "train"),
        ("train", "train", "train"),
        ("valid", "valid", "val"),
        (".", ".", "train"),
        ("train/Annotations", "train/JPEGImages", "train"),
        ("train/annotations", "train/images", "train"),
        ("Annotations", "Annotations", "all"),
        ("Annotations", ".", "all"),
    ],
)
def test_layouts_of_voc_without_lists(tmp_path, annotations, images, wanted):
    write_xml(tmp_path / annotations, "b b", tmp_path / images)
    write_xml(tmp_path / annotations, "a", tmp_path / images, ".png")
    for spec in (f"voc:{tmp_path}:{wanted}", f"voc:{tmp_path}", f"{tmp_path}:{wanted}"):
        index = open_dataset(spec, HERE)
        assert [index.path(i) for i in range(2)] == [
            tmp_path / images / name for name in ("a.png", "b b.jpg")
        ]
        assert index.boxes(0).tolist() == [[0, 0, 9, 9]]
    assert len(find_splits(tmp_path)) == 1
    write_xml(tmp_path / annotations, "c", tmp_path / images)
    assert len(open_dataset(f"voc:{tmp_path}", HERE)) == 3


def test_voc_in_sub_folders(tmp_path):
    for name in ("cam/a", "cam/b", "c"):
        write_xml(tmp_path / "Annotations", name, tmp_path / "JPEGImages")
    assert open_dataset(f"voc:{tmp_path}", HERE).file_names() == ["c.jpg", "cam/a.jpg", "cam/b.jpg"]
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("cam/b\nc\n")
    assert open_dataset(f"voc:{tmp_path}:val", HERE).file_names() == ["cam/b.jpg", "c.jpg"]
    assert open_dataset(f"voc:{tmp_path}:valid", HERE).file_names() == ["cam/b.jpg", "c.jpg"]


def test_voc_lists_of_names_with_blanks(tmp_path):
    spec = write_voc(tmp_path, {"my cat": objects((1, 1, 9, 9)), "scene 1": [], "x": []}, split="train")
    path = tmp_path / "ImageSets" / "Main" / "train.txt"
    path.write_text("my cat\nscene 1\nx\n")
    assert open_dataset(spec, HERE).file_names() == ["my cat.jpg", "scene 1.jpg", "x.jpg"]
    path.write_text('"my cat"  1\nscene 1 -1\nx  0\n')
    assert open_dataset(spec, HERE).file_names() == ["my cat.jpg", "scene 1.jpg", "x.jpg"]
    path.write_text("my cat  2\n")
    with pytest.raises(DataError, match=r"train\.txt lists my cat  2, but there is no"):
        open_dataset(spec, HERE)


def test_voc_lists_of_a_class_are_found_only_by_name(tmp_path):
    write_voc(tmp_path, {"1": [], "2": []}, split="train")
    (tmp_path / "ImageSets" / "Main" / "cat_train.txt").write_text("2  1\n")
    assert [split.name for split in find_splits(tmp_path)] == ["train"]
    assert open_dataset(f"voc:{tmp_path}:cat_train", HERE).file_names() == ["2.jpg"]


def test_voc_pictures_by_the_name_in_the_file(tmp_path):
    write_xml(tmp_path / "Annotations", "1", None, filename="IMG 7.jpg")
    write_xml(tmp_path / "Annotations", "2", None, filename="C:\\pictures\\b.png")
    write_xml(tmp_path / "Annotations", "3", None, filename="3.png")
    for name in ("IMG 7.jpg", "b.png", "3.png", "3.jpg"):
        write_picture(tmp_path / "JPEGImages" / name)
    assert open_dataset(f"voc:{tmp_path}", HERE).file_names() == ["IMG 7.jpg", "b.png", "3.png"]


def test_voc_classes_of_a_label_map(tmp_path):
    spec = write_voc(tmp_path, {"1": objects((1, 1, 9, 9))})
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:::\ndog:::\ncat:::\n")
    index = open_dataset(spec, HERE)
    assert index.class_names == ("dog", "cat")
    assert index.warnings == ()


def test_other_xml_is_not_voc(tmp_path):
    (tmp_path / "annotations.xml").write_text("<?xml version='1.0'?><annotations><image/></annotations>")
    assert find_splits(tmp_path) == []


@pytest.mark.parametrize("name", ["images\\a.png", "images/a.png"])
def test_names_with_backslashes_tell_the_folder_as_well(tmp_path, name):
    write(tmp_path, "result.json", "images", [name])
    write_picture(tmp_path / "other" / "b.png")
    (split,) = find_splits(tmp_path)
    assert find_image_dir(split) == tmp_path


@pytest.mark.parametrize(
    "name", ["../../media/upload/4/a%20b.png", "s3://bucket/x/a%20b.png", "/gone/a b.png"]
)
def test_names_of_other_places_tell_the_folder_by_their_last_part(tmp_path, name):
    write(tmp_path, "result.json", "images", [name])
    write_picture(tmp_path / "images" / "a b.png")
    (split,) = find_splits(tmp_path)
    assert find_image_dir(split) == tmp_path / "images"


def test_names_of_several_lines_are_no_splits(tmp_path):
    write(tmp_path, "train.json", "images")
    write(tmp_path, "a\nb.json", "images")
    write(tmp_path, "c\nd/_annotations.coco.json", "c\nd")
    assert [split.name for split in find_splits(tmp_path)] == ["train"]


def test_large_files_are_told_by_their_beginning(tmp_path):
    write(tmp_path, "all.json", "images", info={"description": "x" * 70_000})
    document = json.loads((tmp_path / "all.json").read_text())
    first = {"annotations": document["annotations"] * 2000, "categories": document["categories"]}
    (tmp_path / "all.json").write_text(json.dumps(first | {"images": document["images"]}))
    (split,) = find_splits(tmp_path)
    assert find_image_dir(split) == tmp_path / "images"


def test_folders_that_go_round_and_round(tmp_path):
    spec = write_yolo(tmp_path, {"a": BOX}, images="images")
    (tmp_path / "images" / "again").symlink_to(tmp_path / "images")
    (tmp_path / "images" / "more").symlink_to(tmp_path / "elsewhere")
    write_picture(tmp_path / "elsewhere" / "b.png")
    assert open_dataset(spec, HERE).file_names() == ["a.png", "more/b.png"]


def test_voc_lists_of_pictures_in_the_folder_of_the_set(tmp_path):
    write_xml(tmp_path / "Annotations", "a", tmp_path / "JPEGImages")
    (tmp_path / "train.txt").write_text("JPEGImages/a.jpg\n")
    (tmp_path / "readme.txt").write_text("hello\n")
    assert [split.spec for split in find_splits(tmp_path)] == [f"voc:{tmp_path}:train"]
    assert open_dataset(f"voc:{tmp_path}:train", HERE).file_names() == ["a.jpg"]


def test_voc_of_datumaro_lists_pictures_without_a_file(tmp_path):
    spec = write_voc(tmp_path, {"1": objects((1, 1, 9, 9)), "2": []})
    (tmp_path / "Annotations" / "2.xml").unlink()
    with pytest.raises(DataError, match=r"trainval\.txt lists 2, but there is no"):
        open_dataset(spec, HERE)
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:::\ncat:::\n")
    index = open_dataset(spec, HERE)
    assert index.counts.tolist() == [1, 0]
    assert (index.image(1).width, index.image(1).height) == (64, 48)
    assert "1 listed picture without an XML file, taken as without objects: 2" in index.warnings[0]
    write_picture(tmp_path / "JPEGImages" / "2.jpg", 30, 20)
    assert open_dataset(spec, HERE).image(1).width == 30
