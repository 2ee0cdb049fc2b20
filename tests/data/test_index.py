import json
import multiprocessing
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest

from lgd.data import cache, coco
from lgd.data.columns import open_columns, write_columns
from lgd.data.errors import DataError
from tests.data.sets import annotation, image_record, open_coco, write_coco


@pytest.fixture
def parsed(monkeypatch):
    """The names of the annotation files parsed from here on."""
    names: list[str] = []

    def count(path: Path, *rest):
        names.append(path.name)
        return original(path, *rest)

    original = coco.parse_coco
    monkeypatch.setattr(coco, "parse_coco", count)
    return names


def make(tmp_path: Path) -> Path:
    return write_coco(tmp_path, [image_record(1), image_record(2)], [annotation(1, 1), annotation(2, 2)])


def age(path: Path, seconds: float) -> None:
    moment = time.time_ns() - int(seconds * 1e9)
    os.utime(path, ns=(moment, moment))


@pytest.fixture
def settled(monkeypatch):
    """Files that have just been written are trusted to be as they are."""
    monkeypatch.setattr(cache, "SETTLED", -(10**9))


def caches(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.lgd-index"))


def test_columns_round_trip(tmp_path):
    arrays = {
        "a": np.arange(5, dtype=np.int64),
        "none": np.zeros((0, 4)),
        "b": np.array([[True, False]]),
        "c": np.linspace(0, 1, 7),
    }
    path = tmp_path / "columns"
    write_columns(path, arrays, {"names": ["x", "ü"]})
    opened, metadata = open_columns(path)
    assert metadata == {"names": ["x", "ü"]}
    for name, array in arrays.items():
        assert opened[name].dtype == array.dtype
        assert np.array_equal(opened[name], array)
        assert not opened[name].flags.writeable
    assert list(tmp_path.iterdir()) == [path]


def test_failed_writing_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        write_columns(tmp_path / "columns", {"a": np.arange(3)}, {})
    assert list(tmp_path.iterdir()) == []


def test_second_opening_does_not_parse_nor_hash(tmp_path, parsed, settled, monkeypatch):
    path = make(tmp_path)
    first = open_coco(path)
    monkeypatch.setattr("hashlib.file_digest", None)
    second = open_coco(path)
    assert parsed == [path.name]
    assert second.content_hash == first.content_hash
    assert second.boxes(1).tolist() == first.boxes(1).tolist()


def test_touched_file_is_hashed_but_not_parsed(tmp_path, parsed, settled, monkeypatch):
    path = make(tmp_path)
    open_coco(path)
    age(path, 60)
    open_coco(path)
    monkeypatch.setattr("hashlib.file_digest", None)
    open_coco(path)
    assert parsed == [path.name]


def test_changed_content_of_equal_size_is_noticed_at_once(tmp_path, parsed):
    path = make(tmp_path)
    before = open_coco(path)
    status = path.stat()
    path.write_text(path.read_text().replace("cow", "hen"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = open_coco(path)
    assert (before.class_names[2], after.class_names[2]) == ("cow", "hen")
    assert before.content_hash != after.content_hash
    assert len(parsed) == len(caches(tmp_path)) == 2


def test_damaged_cache_is_made_anew(tmp_path, parsed):
    path = make(tmp_path)
    open_coco(path)
    (cache,) = caches(tmp_path)
    content = cache.read_bytes()
    for damaged in (content[:-50], content[:20], b"", b"something else altogether, and long enough"):
        cache.write_bytes(damaged)
        assert len(open_coco(path)) == 2
    assert len(parsed) == 5


def test_read_only_folder(tmp_path, parsed, monkeypatch):
    path = make(tmp_path / "set")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path.parent.chmod(0o555)
    try:
        assert len(open_coco(path)) == 2
        assert len(open_coco(path)) == 2
    finally:
        path.parent.chmod(0o755)
    assert parsed == [path.name]
    assert caches(tmp_path / "set") == []
    assert len(caches(tmp_path / "cache" / "lgd")) == 1


def test_sets_of_one_name_in_two_folders_do_not_mix_in_the_user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    paths = [make(tmp_path / name) for name in ("one", "two")]
    paths[1].write_text(paths[1].read_text().replace("cow", "hen"))
    moment = time.time_ns() - 60 * 10**9
    names = []
    for path in paths:
        os.utime(path, ns=(moment, moment))
        path.parent.chmod(0o555)
    try:
        names = [open_coco(path).class_names[2] for path in paths]
    finally:
        for path in paths:
            path.parent.chmod(0o755)
    assert names == ["cow", "hen"]


def test_no_place_for_the_cache(tmp_path, monkeypatch):
    path = make(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path.parent.chmod(0o555)
    try:
        with pytest.raises(DataError, match="set XDG_CACHE_HOME to a folder that can be written to"):
            open_coco(path)
    finally:
        path.parent.chmod(0o755)


def _open_and_sum(path: Path) -> float:
    index = open_coco(path)
    return float(sum(index.boxes(i).sum() for i in range(len(index))))


def test_racing_processes_all_get_the_whole(tmp_path):
    images = [image_record(k) for k in range(1, 300)]
    path = write_coco(tmp_path, images, [annotation(k, k) for k in range(1, 300)], with_files=False)
    for record in images:
        (tmp_path / "train" / record["file_name"]).touch()
    with multiprocessing.get_context("fork").Pool(6) as pool:
        sums = pool.map(_open_and_sum, [path] * 24)
    assert set(sums) == {299 * (4 + 6 + 24 + 16)}
    assert len(caches(tmp_path)) == 1
    assert not list(tmp_path.rglob("*.tmp"))


def test_pickle_holds_the_place_not_the_columns(tmp_path):
    path = make(tmp_path)
    index = open_coco(path)
    content = pickle.dumps(index)
    copy = pickle.loads(content)
    assert len(content) < 1000
    assert (copy.name, copy.json_path, copy.image_dir) == (index.name, index.json_path, index.image_dir)
    assert copy.boxes(0).tolist() == index.boxes(0).tolist()


def test_content_hash_is_that_of_the_file(tmp_path):
    import hashlib

    path = make(tmp_path)
    assert open_coco(path).content_hash == hashlib.sha256(path.read_bytes()).hexdigest()
    assert json.loads(path.read_text())
