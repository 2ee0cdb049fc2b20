"""Files that grow, on disks that refuse."""

import argparse
import errno
import logging
import os
from pathlib import Path

import pytest

from lgd.files import (
    GrowingFile,
    at_home,
    clear_leftovers,
    open_file,
    prepare_file,
    read_small,
    replacing,
    temporary_name,
    typed_path,
)


class Disk:
    """Stands for a file on a disk with room for so many more bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def fileno(self):
        return self.file.fileno()

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        part = data[: self.room]
        self.room -= len(part)
        return self.file.write(part)

    def truncate(self, size):
        self.room += self.file.seek(0, 2) - size
        self.file.truncate(size)

    def close(self):
        self.file.close()


@pytest.fixture
def growing(tmp_path):
    file = GrowingFile(tmp_path / "sub" / "file")
    file._file = Disk(file._file, 1000)
    yield file
    file.close()


def test_what_the_disk_refuses_waits_and_nothing_is_half_there(growing, caplog):
    caplog.set_level(logging.INFO)
    growing.append(b"first\n")
    growing._file.room = 4
    for entry in (b"second\n", b"3\n"):
        growing.append(entry)
    assert growing.path.read_bytes() == b"first\n"
    assert growing.waiting() == [b"second\n", b"3\n"]
    assert growing.flush() == "No space left on device"
    assert caplog.text.count("No space left on device; kept until there is room") == 1
    growing._file.room = 8
    assert growing.flush() == "No space left on device"  # for one entry, not for both
    assert growing.path.read_bytes() == b"first\nsecond\n"
    growing._file.room = 1000
    growing.append(b"fourth\n")
    assert growing.path.read_bytes() == b"first\nsecond\n3\nfourth\n"
    assert growing.waiting() == []
    assert "can be written to again; nothing is missing" in caplog.text


def test_it_goes_on_behind_what_is_there(tmp_path):
    for entry in (b"a", b"b"):
        file = GrowingFile(tmp_path / "file")
        file.append(entry)
        file.close()
    assert (tmp_path / "file").read_bytes() == b"ab"


def test_leftovers_are_known_by_their_names(tmp_path):
    temporary_name(tmp_path / "x.pth", "0" * 32).touch()
    kept = [".x.tmp", "x.pth", ".x.pth.123.tmp", f".x.{'g' * 32}.tmp"]
    for name in kept:
        (tmp_path / name).touch()
    clear_leftovers(tmp_path)
    clear_leftovers(tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_a_place_that_refuses_is_named_as_the_user_knows_it(tmp_path):
    path = tmp_path / f"{'x' * 240}.onnx"
    with pytest.raises(OSError, match="too long") as refusal, replacing(path):
        pass
    assert refusal.value.filename == str(path)


def test_a_home_is_known_where_no_shell_has_seen_to_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert typed_path("~/found") == tmp_path / "found"
    assert str(typed_path("found/~")) == "found/~"
    with pytest.raises(argparse.ArgumentTypeError, match=r"~nobody\.here's home is not known"):
        typed_path("~nobody.here/found")
    assert at_home("~/found") == tmp_path / "found"
    assert str(at_home("~nobody.here/found")) == "~nobody.here/found"


def test_an_empty_path_is_no_folder():
    """As of a variable that is not set: `lgd predict $RUN --out "$OUT"`."""
    with pytest.raises(argparse.ArgumentTypeError, match="the path is empty"):
        typed_path("")


def test_a_file_that_cannot_be_written_is_known_before_the_work(tmp_path):
    prepare_file(tmp_path / "new" / "page.md")
    assert [*tmp_path.rglob("*")] == [tmp_path / "new"]
    for path in (tmp_path / "new", tmp_path / "new" / "file" / "page.md", Path("/proc/page.md")):
        (tmp_path / "new" / "file").touch()
        with pytest.raises(OSError, match=str(path.parent)):
            prepare_file(path)


def test_half_a_line_is_ended(tmp_path):
    (tmp_path / "file").write_bytes(b"one\nha")
    for entry in (b"two\n", b"three\n"):
        file = GrowingFile(tmp_path / "file", of_lines=True)
        file.append(entry)
        file.close()
    assert (tmp_path / "file").read_bytes() == b"one\nha\ntwo\nthree\n"


def test_what_is_no_file_keeps_nobody_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"12345")
    assert read_small(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="larger than the 4 bytes"):
        read_small(tmp_path / "file", 4)
    for path, said in (
        (tmp_path / "pipe", "a pipe or a device"),
        ("/dev/zero", "device"),
        (tmp_path, "Is a dir"),
    ):
        with pytest.raises(OSError, match=said):
            open_file(path)
        with pytest.raises(OSError, match=said):
            read_small(path, 5)
    with pytest.raises(OSError, match="No such device or address"):
        GrowingFile(tmp_path / "pipe")


def test_a_pipe_may_be_waited_for(tmp_path):
    receive, send = os.pipe()
    os.write(send, b"12345")
    path = f"/dev/fd/{receive}"
    with pytest.raises(OSError, match=r"not written to its end in 0\.05 s"):
        read_small(path, 9, patience=0.05)
    os.write(send, b"678")
    os.close(send)
    assert read_small(path, 9, patience=5) == b"678"
    os.close(receive)
