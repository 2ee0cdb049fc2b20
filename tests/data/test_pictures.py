"""Names of pictures that are those of another machine: found below the image folder, or refused."""

import logging
import re

import pytest

from lgd.data import pictures
from lgd.data.coco import load_coco
from lgd.data.errors import DataError
from tests.data.boxes_sets import write_picture
from tests.data.sets import annotation, image_record, open_coco, write_coco


def make(tmp_path, names, there):
    """A set of images of these names, and pictures below the image folder."""
    for name in there:
        write_picture(tmp_path / "train" / name)
    records = [image_record(k) | {"file_name": name} for k, name in enumerate(names, 1)]
    annotations = [annotation(k, k, (k, 1, 5, 5)) for k in range(1, len(names) + 1)]
    return write_coco(tmp_path, records, annotations, with_files=False)


def expect_error(path, message):
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        open_coco(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("cam\\a.png", "cam/a.png"),
        ("./cam//a.png", "cam/a.png"),
        ("train/cam/a.png", "cam/a.png"),
        ("train\\cam\\a.png", "cam/a.png"),
        ("../train/cam/a.png", "cam/a.png"),
        ("cam/../cam/a.png", "cam/a.png"),
        ("../../media/upload/4/a.png", "cam/a.png"),
        ("s3://bucket/x/a.png", "cam/a.png"),
        ("/home/somebody/pictures/a.png", "cam/a.png"),
        ("C:\\Users\\x\\a.png", "cam/a.png"),
        ("c:a.png", "cam/a.png"),
        ("/data/local-files/?d=dir%2Fsub/b%20%C3%BC.png", "b ü.png"),
    ],
)
def test_where_a_name_leads(tmp_path, name, taken, caplog):
    there = ["cam/a.png", "b ü.png", "c.png"]
    path = make(tmp_path, [name, "c.png"], there)
    with caplog.at_level(logging.WARNING):
        index = open_coco(path)
    if index.remarks[0]:  # "./cam//a.png" is a path as it stands
        assert index.file_names() == [taken, "c.png"]
        (remark,) = index.remarks[0]
        assert (remark.kind, remark.count) == ("file_names_found", 1)
        assert remark.text in caplog.text
    assert index.path(0).samefile(tmp_path / "train" / taken)
    assert index.boxes(0).tolist() == [[1, 1, 6, 6]]
    assert open_coco(path).cache_path == index.cache_path


def test_absolute_names_of_this_machine(tmp_path):
    path = make(tmp_path, [str(tmp_path / "train" / "a" / "1.png")], ["a/1.png", "b/1.png"])
    assert open_coco(path).file_names() == ["a/1.png"]


def test_names_below_a_root_that_is_told(tmp_path):
    path = make(tmp_path / "set", ["pictures/a/1.png"], ["a/1.png", "b/1.png"])
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "pictures").symlink_to(tmp_path / "set" / "train")
    image_dir = tmp_path / "root" / "pictures"
    assert load_coco(path, image_dir, name="a set", root=tmp_path / "root").file_names() == ["a/1.png"]


def test_a_name_that_may_be_several_pictures(tmp_path):
    path = make(tmp_path, ["../x/1.png"], ["a/1.png", "b/1.png"])
    expect_error(path, "file_name of image 1, '../x/1.png', may be each of a/1.png, b/1.png in ")


@pytest.mark.parametrize("names", [("../a/1.png", "../b/1.png"), ("1.png", "../b/1.png")])
def test_two_names_are_not_one_picture(tmp_path, names):
    expect_error(make(tmp_path, names, ["1.png"]), "would all be 1.png in ")


def test_names_that_mean_one_picture_are_said(tmp_path):
    index = open_coco(make(tmp_path, ["cam/1.png", "cam\\1.png"], ["cam/1.png"]))
    assert index.file_names() == ["cam/1.png"] * 2
    assert [remark.kind for remark in index.remarks[0]] == ["file_names_found", "pictures_twice"]


@pytest.mark.parametrize(
    "name", ["../1.png", "a/../../1.png", "a\\..\\..\\1.png", "..", "//a/1.png", "/", "\\"]
)
def test_nothing_outside_is_opened(tmp_path, name, monkeypatch):
    (tmp_path / "1.png").touch()
    looked_at = []
    names_in = pictures.find_absent.__globals__["names_in"]
    monkeypatch.setitem(
        pictures.find_absent.__globals__,
        "names_in",
        lambda folder: looked_at.append(folder) or names_in(folder),
    )
    path = make(tmp_path, [name], ["2.png"])
    expect_error(path, f"lists images that are not in {tmp_path / 'train'}: ")
    assert all(folder.resolve().is_relative_to(tmp_path / "train") for folder in looked_at)


def test_absolute_names_outside_are_absent(tmp_path):
    write_picture(tmp_path / "1.png")
    expect_error(make(tmp_path, [str(tmp_path / "1.png")], ["2.png"]), "lists images that are not in")


def test_links_are_followed_once(tmp_path):
    path = make(tmp_path, ["../x/1.png"], ["a/2.png"])
    write_picture(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "train" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "train")
    assert open_coco(path).file_names() == ["linked/1.png"]


def test_the_search_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_MAX_FILES", 2)
    expect_error(make(tmp_path, ["../x/1.png"], ["1.png", "2.png", "3.png"]), "has more than 2 files")


def test_pictures_that_moved_are_found_again(tmp_path):
    path = make(tmp_path, ["../x/1.png"], ["a/1.png"])
    assert open_coco(path).file_names() == ["a/1.png"]
    (tmp_path / "train" / "a" / "1.png").rename(tmp_path / "train" / "1.png")
    assert open_coco(path).file_names() == ["1.png"]
    (tmp_path / "train" / "1.png").unlink()
    expect_error(path, "lists images that are not in")
