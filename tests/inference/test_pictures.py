"""Pictures read ahead in bounded memory, and the frames of videos."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from lgd.data.errors import DataError
from lgd.data.images import read_image
from lgd.inference.pictures import Picture, Unreadable, read_pictures
from lgd.inference.sources import Source


def write(folder, count, side=8):
    for number in range(count):
        Image.new("RGB", (side, side), (number, 0, 0)).save(folder / f"{number:03d}.png")
    return [Source(folder / f"{number:03d}.png", f"{number:03d}.png") for number in range(count)]


def test_order_is_kept_whatever_reads_first(tmp_path):
    sources = write(tmp_path, 40)
    read = read_pictures(sources, lambda source: int(read_image(source.path)[0, 0, 0]), lambda _: 1)
    assert list(read) == list(range(40))


def test_only_so_much_is_read_ahead(tmp_path):
    taken, lock = [], threading.Lock()

    def prepare(picture):
        with lock:
            taken.append(picture.name)
        return picture

    read = read_pictures(write(tmp_path, 60), prepare, lambda _: 2**30)
    next(read)
    large = len(taken)
    read.close()
    assert large < 20
    taken.clear()
    read = read_pictures(write(tmp_path, 60), prepare, lambda _: 1)
    next(read)
    read.close()
    assert len(taken) < 30


def test_what_cannot_be_read_comes_in_its_place(tmp_path):
    sources = write(tmp_path, 3)
    sources[1].path.write_bytes(b"none")
    read = list(read_pictures(sources, lambda source: read_image(source.path).shape, lambda _: 1))
    assert read[0::2] == [(3, 8, 8)] * 2
    assert isinstance(read[1], Unreadable)
    assert "001.png" in str(read[1].error)


def test_a_fault_in_a_thread_is_raised():
    def prepare(picture):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        list(read_pictures([Picture(torch.zeros(3, 2, 2, dtype=torch.uint8))], prepare, lambda _: 1))


def test_videos_ask_for_what_reads_them(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(DataError, match=r"pip install 'lgd\[video\]'"):
        list(read_pictures([Source(tmp_path / "a.mp4", "a.mp4")], lambda picture: picture, lambda _: 1))


def write_video(path, count, size=(64, 48)):
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=5)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(count):
            pixels = np.full((size[1], size[0], 3), 20 * number % 256, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
    return path


def test_frames_come_in_order_with_their_numbers(tmp_path):
    source = Source(write_video(tmp_path / "a.mp4", 6), "a.mp4")
    frames = list(read_pictures([source], lambda picture: picture, lambda _: 1))
    assert [frame.frame for frame in frames] == [0, 1, 2, 3, 4, 5]
    assert frames[0].rate == 5
    assert frames[0].pixels.shape == (3, 48, 64)
    levels = [float(frame.pixels.float().mean()) for frame in frames]
    assert levels == pytest.approx([0, 20, 40, 60, 80, 100], abs=4)


def test_a_broken_video_is_one_that_cannot_be_read(tmp_path):
    pytest.importorskip("av")
    (tmp_path / "a.mp4").write_bytes(b"none")
    (found,) = read_pictures([Source(tmp_path / "a.mp4", "a.mp4")], lambda picture: picture, lambda _: 1)
    assert isinstance(found, Unreadable)
    assert "cannot read video" in str(found.error)
    whole = write_video(tmp_path / "b.mp4", 30).read_bytes()
    (tmp_path / "b.mp4").write_bytes(whole[: len(whole) // 2])
    assert isinstance(
        list(read_pictures([Source(tmp_path / "b.mp4", "b.mp4")], lambda picture: picture, lambda _: 1))[-1],
        Unreadable,
    )


def test_drawn_frames_become_a_video_again(tiny_model, tmp_path):
    from lgd.inference.save import Savers

    path = write_video(tmp_path / "a.mp4", 6)
    with Savers(["images", "yolo", "csv", "coco"], tmp_path / "out", tiny_model) as savers:
        for result in tiny_model.stream(path, score=0.0105):
            savers.add(result)
    copy = Source(tmp_path / "out/images/a.mp4", "a.mp4")
    frames = list(read_pictures([copy], lambda picture: picture, lambda _: 1))
    assert len(frames) == 6
    assert frames[0].pixels.shape == (3, 48, 64)
    assert (tmp_path / "out/labels/a_000005.txt").exists()
    assert '"file_name": "a.mp4#5"' in (tmp_path / "out/predictions.json").read_text()
    assert len(tiny_model.predict(path)) == 6
