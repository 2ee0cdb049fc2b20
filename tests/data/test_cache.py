"""What is kept beside annotation files: where it lies, and that nothing damaged or planted is believed."""

import json
import logging
import os
import pickle
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from lgd.data import cache, folder, presence
from lgd.data.cache import cached_columns
from lgd.data.catalog import open_dataset
from lgd.data.columns import open_columns, write_columns
from lgd.data.errors import DataError
from tests.data.boxes_sets import voc_object, write_voc
from tests.data.sets import annotation, image_record, open_coco, open_joined, write_coco

TRIANGLE = [[0, 0, 8, 0, 8, 8]]


@pytest.fixture
def settled(monkeypatch):
    """Files that have just been written are trusted to be as they are."""
    for module in (cache, presence):
        monkeypatch.setattr(module, "SETTLED", -(10**9))


def make(root: Path, name: str = "cow") -> Path:
    categories = [{"id": 1, "name": "dog"}, {"id": 3, "name": name}]
    annotations = [annotation(1, 1, segmentation=TRIANGLE), annotation(2, 2, (1, 1, 0, 5))]
    return write_coco(root, [image_record(1), image_record(2)], annotations, categories=categories)


def columns_file(annotation_file: Path) -> Path:
    (path,) = (annotation_file.parent / ".lgd").glob("*.lgd-index")
    return path


def content(path: Path) -> tuple:
    """What an opened set says."""
    index = open_coco(path)
    columns = {name: column.tolist() for name, column in index.columns.items()}
    return columns, index.class_names, index.category_ids, index.content_hash, index.warnings


class TestFolder:
    def test_all_lies_in_one_folder_that_keeps_itself_out_of_commits(self, tmp_path, settled):
        path = make(tmp_path)
        open_coco(path)
        assert sorted(entry.name for entry in path.parent.iterdir()) == [".lgd", path.name]
        assert (path.parent / ".lgd" / ".gitignore").read_text().split() == ["*"]
        assert len(list((path.parent / ".lgd").iterdir())) == 4  # also the columns and two notes

    def test_it_holds_no_path_of_this_machine(self, tmp_path, settled):
        specs = [f"coco:{tmp_path / name}:train" for name in ("one", "two")]
        for name in ("one", "two"):
            make(tmp_path / name)
        open_joined(specs, tmp_path)
        open_dataset(
            write_voc(tmp_path / "voc", {"1": [voc_object("helmet", (1, 1, 9, 9))] * 2, "2": []}), tmp_path
        )
        kept = [entry for entry in tmp_path.rglob(".lgd/*") if entry.is_file()]
        assert len(kept) == 4 + 1 + 4 + 4
        for entry in kept:
            assert os.fsencode(tmp_path) not in entry.read_bytes()
            assert tmp_path.name.encode() not in entry.read_bytes()

    def test_a_set_can_be_moved_with_it(self, tmp_path, settled, monkeypatch):
        path = make(tmp_path / "old")
        before = content(path)
        shutil.move(tmp_path / "old", tmp_path / "new")
        moved = tmp_path / "new" / path.relative_to(tmp_path / "old")
        monkeypatch.setattr("lgd.data.coco.parse_coco", None)
        after = content(moved)
        assert after[:4] == before[:4]
        assert [text.startswith(f"{moved}: ") for text in after[4]] == [True]

    def test_it_can_be_deleted_while_a_set_is_open(self, tmp_path):
        path = make(tmp_path)
        index = open_coco(path)
        shutil.rmtree(path.parent / ".lgd")
        copy = pickle.loads(pickle.dumps(index))
        assert copy.boxes(0).tolist() == index.boxes(0).tolist()
        assert content(path)[3] == index.content_hash

    @pytest.mark.parametrize("obstacle", ["file", "link", "read-only"])
    def test_where_there_can_be_none_the_users_cache_is_taken(self, tmp_path, monkeypatch, obstacle):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        path = make(tmp_path / "set")
        place = path.parent / ".lgd"
        (tmp_path / "elsewhere").mkdir()
        if obstacle == "file":
            place.touch()
        elif obstacle == "link":
            place.symlink_to(tmp_path / "elsewhere")
        else:
            place.mkdir()
            place.chmod(0o555)
        assert content(path) == content(path)
        assert not list((tmp_path / "elsewhere").iterdir())
        assert not list((tmp_path / "set").rglob("*.lgd-index"))
        assert len(list((tmp_path / "cache" / "lgd").rglob("*.lgd-index"))) == 1

    def test_a_user_without_a_home(self, tmp_path, monkeypatch):
        def no_home():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(folder.Path, "home", no_home)
        path = make(tmp_path)
        assert content(path) == content(path)
        path.parent.chmod(0o555)
        shutil.rmtree(path.parent / ".lgd")
        try:
            with pytest.raises(DataError, match="set XDG_CACHE_HOME to a folder that can be written to"):
                open_coco(path)
        finally:
            path.parent.chmod(0o755)

    def test_names_of_any_length(self, tmp_path):
        path = make(tmp_path)
        longer = path.rename(path.with_name("ü" * 120 + ".json"))
        assert content(longer) == content(longer)


class TestWhichContent:
    def test_another_content_of_equal_size_and_time(self, tmp_path, settled):
        path = make(tmp_path)
        assert content(path)[1] == ("dog", "cow")
        status = path.stat()
        path.write_text(path.read_text().replace("cow", "hen"))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert path.stat().st_mtime_ns == status.st_mtime_ns
        assert content(path)[1] == ("dog", "hen")

    def test_a_file_that_was_written_a_moment_ago_is_always_read(self, tmp_path):
        path = make(tmp_path)
        open_coco(path)
        assert not list((path.parent / ".lgd").glob("*.lgd-source"))

    def test_another_set_with_the_cache_of_its_model(self, tmp_path, settled):
        first, second = make(tmp_path / "a"), make(tmp_path / "b", "hen")
        open_coco(first)
        shutil.copytree(first.parent / ".lgd", second.parent / ".lgd")
        assert content(second)[1] == ("dog", "hen")

    def test_a_cache_under_another_ones_name(self, tmp_path, caplog):
        first, second = make(tmp_path / "a"), make(tmp_path / "b", "hen")
        expected = content(second)
        open_coco(first)
        shutil.copy(columns_file(first), columns_file(second))
        assert content(second) == expected
        assert "cannot be used and is made anew: it is of another content" in caplog.text

    @pytest.mark.parametrize(
        "note", ["", "[]", "{", '{"stamp": 1}', '{"stamp": "S", "content_hash": "../../x"}', "[" * 10**5]
    )
    def test_damaged_notes(self, tmp_path, settled, note):
        path = make(tmp_path)
        expected = content(path)
        (source,) = (path.parent / ".lgd").glob("*.lgd-source")
        (present,) = (path.parent / ".lgd").glob("*.lgd-present")
        stamp = json.loads(source.read_text())["stamp"]
        source.write_text(note.replace("S", stamp))
        present.write_text(note)
        assert content(path) == expected

    def test_a_file_that_changes_while_it_is_read(self, tmp_path):
        path = make(tmp_path)

        def build(content_hash):
            path.write_text(path.read_text() + " ")
            return {}, {}

        with pytest.raises(DataError, match=r"train\.json changed while it was read; start again"):
            cached_columns(path, build)

    def test_pictures_of_another_format(self, tmp_path):
        spec = write_voc(tmp_path, {"1": [voc_object("cat", (1, 1, 9, 9))]}, suffix=".png")
        assert open_dataset(spec, tmp_path).file_names() == ["1.png"]
        (tmp_path / "JPEGImages" / "1.png").rename(tmp_path / "JPEGImages" / "1.bmp")
        assert open_dataset(spec, tmp_path).file_names() == ["1.bmp"]
        (tmp_path / "JPEGImages" / "1.bmp").unlink()
        with pytest.raises(DataError, match=r"lists images that are not in .*: 1\.jpg \(image 1\)"):
            open_dataset(spec, tmp_path)


def seal(arrays, *, end=64, metadata=None, body=bytes(64)) -> bytes:
    """A file of columns whose checksum is right, whatever it says."""
    header = json.dumps({"arrays": arrays, "end": end, "metadata": metadata or {}}).encode()
    header += b" " * (-(20 + len(header)) % 64)
    rest = struct.pack("<q", len(header)) + header + body
    return b"LGDCOLS2" + struct.pack("<I", zlib.crc32(rest)) + rest


PLANTED = {
    "objects": seal({"a": ["|O", [8], 0]}),
    "texts": seal({"a": ["<U2", [8], 0]}),
    "bytes": seal({"a": ["|S8", [8], 0]}),
    "void": seal({"a": ["|V8", [8], 0]}),
    "dates": seal({"a": ["<M8[s]", [8], 0]}),
    "records": seal({"a": [[["x", "<i8"]], [8], 0]}),
    "arrays in arrays": seal({"a": ["(2,)<i8", [4], 0]}),
    "no type": seal({"a": ["nonsense", [8], 0]}),
    "beyond the end": seal({"a": ["<i8", [9], 0]}),
    "begins beyond the end": seal({"a": ["<i8", [1], 64]}),
    "begins before the file": seal({"a": ["<i8", [1], -64]}),
    "negative": seal({"a": ["<i8", [-1, -8], 0]}),
    "overflow": seal({"a": ["<i8", [2**32, 2**32], 0]}),
    "overflow to nothing": seal({"a": ["<i8", [2**63, 2], 0]}),
    "too many axes": seal({"a": ["<i8", [1] * 70, 0]}),
    "a fraction": seal({"a": ["<i8", [1.5], 0]}),
    "no list": seal({"a": 7}),
    "no shape": seal({"a": ["<i8", "88", 0]}),
    "longer than it is": seal({}, end=2**40),
    "shorter than it is": seal({}, end=0),
    "no end": seal({}, end="64"),
    "other columns": seal({"a": ["<i8", [8], 0]}),
    "nested": b"LGDCOLS2" + struct.pack("<Iq", 0, 10**5) + b"[" * 10**5,
    "a header beyond the file": b"LGDCOLS2" + struct.pack("<Iq", 0, 2**62) + bytes(64),
    "a negative header": b"LGDCOLS2" + struct.pack("<Iq", 0, -1) + bytes(64),
    "no header": b"LGDCOLS2" + struct.pack("<Iq", 0, 64) + bytes(64),
    "an older one": b"LGDCOLS1" + bytes(200),
    "nothing": b"",
    "something else": b"something else altogether, and long enough",
}


class TestDamage:
    def test_every_bit_counts(self, tmp_path, caplog):
        path = make(tmp_path)
        expected = content(path)
        file = columns_file(path)
        whole = file.read_bytes()
        generator = np.random.default_rng(0)
        places = [*range(40), *generator.integers(0, len(whole), 60).tolist(), len(whole) - 1]
        for place in places:
            damaged = bytearray(whole)
            damaged[place] ^= 1 << int(generator.integers(8))
            file.write_bytes(damaged)
            caplog.clear()
            assert content(path) == expected
            assert caplog.text.count("is made anew") == 1, place
        assert file.read_bytes() == whole

    @pytest.mark.parametrize("damage", [-1, -64, 20, 100])
    def test_a_file_that_is_cut_short(self, tmp_path, caplog, damage):
        path = make(tmp_path)
        expected = content(path)
        file = columns_file(path)
        file.write_bytes(file.read_bytes()[:damage])
        assert content(path) == expected
        assert "is made anew" in caplog.text

    @pytest.mark.parametrize("planted", PLANTED)
    def test_a_file_that_was_planted(self, tmp_path, caplog, planted):
        path = make(tmp_path)
        expected = content(path)
        columns_file(path).write_bytes(PLANTED[planted])
        assert content(path) == expected
        assert caplog.text.count("is made anew") == 1

    @pytest.mark.parametrize("planted", ["folder", "pipe", "device", "dangling link"])
    def test_something_else_than_a_file(self, tmp_path, monkeypatch, planted):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        path = make(tmp_path)
        expected = content(path)
        file = columns_file(path)
        file.unlink()
        if planted == "folder":
            file.mkdir()
        elif planted == "pipe":
            os.mkfifo(file)
        else:
            file.symlink_to("/dev/zero" if planted == "device" else "nowhere")
        assert content(path) == expected == content(path)

    def test_columns_whose_lengths_do_not_fit_together(self, tmp_path, caplog):
        path = make(tmp_path)
        expected = content(path)
        file = columns_file(path)
        columns, metadata = open_columns(file)
        changes = [
            {"labels": columns["labels"][:-1]},
            {"labels": columns["labels"].astype(np.int32)},
            {"xywh": columns["xywh"][:, :2]},
            {"heights": columns["heights"].reshape(-1, 1)},
            {"points": columns["points"][:-1]},
            {"annotation_offsets": columns["annotation_offsets"] + 1},
            {"counts": np.array(3)},
        ]
        for change in changes:
            write_columns(file, columns | change, metadata)
            caplog.clear()
            assert content(path) == expected
            assert "is made anew" in caplog.text
        for key, value in {
            "class_names": ["a"],
            "remarks": "none",
            "kind": [],
            "category_ids": ["1", 2],
        }.items():
            write_columns(file, columns, metadata | {key: value})
            assert content(path) == expected

    @pytest.mark.parametrize(
        "array", [np.array([{}]), np.array(["a"]), np.zeros(2, dtype="V8,i4"), np.zeros(2, ">i8")]
    )
    def test_only_numbers_are_written(self, tmp_path, array):
        with pytest.raises(ValueError, match=r"column a is of .*, not of booleans, integers or floats"):
            write_columns(tmp_path / "columns", {"a": array}, {})
        assert not list(tmp_path.iterdir())

    def test_the_line_in_the_log_names_the_file(self, tmp_path, caplog):
        path = make(tmp_path)
        open_coco(path)
        file = columns_file(path)
        file.write_bytes(b"")
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="lgd.data.cache"):
            open_coco(path)
        (record,) = [record for record in caplog.records if record.name == "lgd.data.cache"]
        assert record.getMessage() == f"{file} cannot be used and is made anew: it is no file of columns"
