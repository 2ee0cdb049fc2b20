"""Which images are looked for, and when their folder is believed to be as it was."""

import json
import os

import pytest

from lgd.data import presence
from lgd.data.errors import DataError
from lgd.data.presence import check_images_present
from tests.data.sets import image_record, open_coco, write_coco


@pytest.fixture
def listed(monkeypatch):
    """The folders that are listed from here on; those that have just changed are trusted, too."""
    folders, list_names = [], presence.names_in

    def note_and_list(folder):
        folders.append(folder.name)
        return list_names(folder)

    monkeypatch.setattr(presence, "SETTLED", -(10**9))
    monkeypatch.setattr(presence, "names_in", note_and_list)
    return folders


def make(tmp_path, names):
    records = [image_record(k) | {"file_name": name} for k, name in enumerate(names, 1)]
    for name in names:
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
    return write_coco(tmp_path, records)


def test_names_of_several_folders_and_languages(tmp_path):
    path = make(tmp_path, ["1.png", "a/1.png", "a/b/ü.png", "図.png"])
    index = open_coco(path)
    assert index.file_names() == ["1.png", "a/1.png", "a/b/ü.png", "図.png"]
    index.path(2).unlink()
    index.path(3).unlink()
    with pytest.raises(DataError) as caught:
        check_images_present(index)
    image_dir = tmp_path / "train"
    assert str(caught.value) == (
        f"{path} lists images that are not in {image_dir}: a/b/ü.png (image 3), 図.png (image 4)"
    )


def test_a_name_counts_in_its_own_folder_only(tmp_path):
    index = open_coco(make(tmp_path, ["a/1.png", "b/2.png"]))
    index.path(0).rename(tmp_path / "train" / "b" / "1.png")
    with pytest.raises(DataError, match=r"train: a/1\.png \(image 1\)$"):
        check_images_present(index)


def test_of_many_absent_images_three_are_named(tmp_path):
    index = open_coco(make(tmp_path, [f"{k}.png" for k in range(9)]))
    for i in range(2, 9):
        index.path(i).unlink()
    with pytest.raises(DataError, match=r"2\.png \(image 3\), .*, 4\.png \(image 5\) and 4 more$"):
        check_images_present(index)


def test_an_absent_folder_is_named_by_its_images(tmp_path):
    index = open_coco(make(tmp_path, ["a/1.png"]))
    index.path(0).unlink()
    (tmp_path / "train" / "a").rmdir()
    with pytest.raises(DataError, match=r"a/1\.png"):
        check_images_present(index)


def test_a_folder_is_listed_again_only_where_it_has_changed(tmp_path, listed):
    index = open_coco(make(tmp_path, ["a/1.png", "b/2.png"]))
    assert sorted(listed) == ["a", "b"]
    check_images_present(index)
    assert len(listed) == 2
    (tmp_path / "train" / "a" / "more.png").touch()
    check_images_present(index)
    assert len(listed) == 4
    index.path(0).unlink()
    for _ in range(2):
        with pytest.raises(DataError, match=r"a/1\.png"):
            check_images_present(index)


def test_a_time_that_was_set_back_deceives_nobody(tmp_path, listed):
    index = open_coco(make(tmp_path, ["1.png", "2.png"]))
    folder = tmp_path / "train"
    before = folder.stat()
    index.path(1).unlink()
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DataError, match=r"2\.png"):
        check_images_present(index)


def test_a_folder_that_changed_a_moment_ago_is_not_believed(tmp_path):
    index = open_coco(make(tmp_path, ["1.png"]))
    assert not index.cache_path.with_suffix(".lgd-present").exists()


def test_each_image_folder_has_a_memory_of_its_own(tmp_path, listed):
    path = make(tmp_path, ["1.png"])
    first = open_coco(path)
    (tmp_path / "other").mkdir()
    second = type(first)(first.cache_path, name="b", json_path=path, image_dir=tmp_path / "other")
    with pytest.raises(DataError, match="other: 1"):
        check_images_present(second)
    (tmp_path / "other" / "1.png").touch()
    for _ in range(2):
        check_images_present(first)
        check_images_present(second)
    assert listed == ["train", "other", "other"]


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"\xff\xfe", b'{"else": 1}'])
def test_a_damaged_memory_is_made_anew(tmp_path, listed, content):
    index = open_coco(make(tmp_path, ["1.png"]))
    memory = index.cache_path.with_suffix(".lgd-present")
    whole = json.loads(memory.read_text())
    memory.write_bytes(content)
    check_images_present(index)
    assert json.loads(memory.read_text()).items() >= whole.items()


def test_a_folder_that_cannot_be_written_to_costs_a_listing(tmp_path, listed, monkeypatch):
    def refuse(path, content):
        raise PermissionError(path)

    monkeypatch.setattr(presence, "write_note", refuse)
    index = open_coco(make(tmp_path, ["1.png"]))
    check_images_present(index)
    assert listed == ["train", "train"]
