"""Large pictures kept as they were decoded: the same samples, and nothing that stays when it should not."""

import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lgd.data import picture_cache
from lgd.data.decoding import Decoding
from lgd.data.errors import ImageError
from lgd.data.images import read_picture
from lgd.data.picture_cache import make_cache, read_cached
from lgd.data.samples import Preparation
from tests.data.sets import annotation, open_coco, write_coco


def save(path, seed=0, *, mode="RGB", height=1024, width=1030, **options):
    small = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 16)
    elif mode != "RGB":
        image = image.convert(mode)
    path.parent.mkdir(exist_ok=True)
    image.save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    make_cache(tmp_path / "kept/pictures")
    return tmp_path / "kept/pictures"


@pytest.fixture
def decoded(monkeypatch):
    """What was decoded, in turn."""
    paths = []

    def read(path, *arguments):
        paths.append(path)
        return read_picture(path, *arguments)

    monkeypatch.setattr(picture_cache, "read_picture", read)
    return paths


def same(first, second):
    sizes = [(each.height, each.width, each.reduction) for each in (first, second)]
    return sizes[0] == sizes[1] and torch.equal(first.pixels, second.pixels)


@pytest.mark.parametrize("reduction", [1, 2, 4])
@pytest.mark.parametrize(
    ("name", "mode"), [("a.jpg", "RGB"), ("a.jpg", "L"), ("a.png", "P"), ("a.png", "I;16")]
)
def test_a_kept_picture_is_the_decoded_one(tmp_path, folder, decoded, name, mode, reduction):
    path = save(tmp_path / name, mode=mode)
    value_range = (0.0, 4095.0)
    expected = read_picture(path, value_range, reduction)
    for _ in range(3):
        assert same(read_cached(folder, path, value_range, reduction), expected)
    assert decoded == [path]


def test_each_way_of_decoding_is_kept_by_itself(tmp_path, folder, decoded):
    path = save(tmp_path / "a.png", mode="I;16")
    ways = [(None, 1), ((0.0, 4095.0), 1), (None, 2)]
    for value_range, reduction in ways * 2:
        kept = read_cached(folder, path, value_range, reduction)
        assert same(kept, read_picture(path, value_range, reduction))
    assert len(decoded) == 3


def test_a_picture_that_changes_is_decoded_anew(tmp_path, folder, decoded):
    path = save(tmp_path / "a.bmp")
    first = read_cached(folder, path, None, 1)
    status = path.stat()
    save(path, seed=1)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert path.stat().st_size == status.st_size
    second = read_cached(folder, path, None, 1)
    assert not torch.equal(first.pixels, second.pixels)
    assert len(decoded) == 2
    path.unlink()
    with pytest.raises(ImageError, match=r"a\.bmp: No such file"):
        read_cached(folder, path, None, 1)


def test_unfit_pictures_are_not_kept(tmp_path, folder):
    path = save(tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes()[:5000])
    for _ in range(2):
        with pytest.raises(ImageError, match=r"a\.jpg"):
            read_cached(folder, path, None, 1)
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    "damage", [lambda content: b"", lambda content: content[:-100], lambda content: b"?" * 99]
)
def test_a_damaged_entry_is_made_anew(tmp_path, folder, decoded, damage):
    path = save(tmp_path / "a.png")
    expected = read_cached(folder, path, None, 1)
    (entry,) = folder.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    assert same(read_cached(folder, path, None, 1), expected)
    assert entry.read_bytes() == whole
    assert len(decoded) == 2


def test_a_disk_without_room_stops_nothing(tmp_path, folder, monkeypatch):
    path = save(tmp_path / "a.png")
    usage = SimpleNamespace(total=1000 * 2**20, free=101 * 2**20)
    monkeypatch.setattr(picture_cache, "shutil", SimpleNamespace(disk_usage=lambda folder: usage))
    expected = read_picture(path)
    assert same(read_cached(folder, path, None, 1), expected)
    assert not list(folder.iterdir()), "3 MiB more would leave less than a tenth"
    usage.free = 200 * 2**20
    shutil.rmtree(folder)
    folder.write_text("a file, so that nothing can be written")
    assert same(read_cached(folder, path, None, 1), expected)


def test_what_was_left_half_written_goes_once_it_is_old(folder):
    old, new = (folder / f".entry.{digit * 32}.tmp" for digit in "ab")
    for path in (old, new):
        path.write_bytes(b"half")
    an_hour_ago = time.time() - 3700
    os.utime(old, (an_hour_ago, an_hour_ago))
    make_cache(folder)
    assert list(folder.iterdir()) == [new]


def test_samples_are_the_same(tmp_path, folder):
    sizes = {1: (1024, 1030), 2: (1600, 1300), 3: (100, 120)}
    records = [{"id": i, "file_name": f"{i}.jpg", "width": w, "height": h} for i, (h, w) in sizes.items()]
    json_path = write_coco(tmp_path, records, [annotation(i, i) for i in sizes], with_files=False)
    for i, (height, width) in sizes.items():
        save(tmp_path / f"train/{i}.jpg", i, height=height, width=width)
    index = open_coco(json_path)
    plain, keeping = (
        Preparation(index, "BGR", 999, torch.float32, decoding=Decoding(cache_dir=cache_dir))
        for cache_dir in (None, folder)
    )
    for _ in range(2):
        for i in range(3):
            expected, sample = (prepare(i, min_size=90, flip=True) for prepare in (plain, keeping))
            assert torch.equal(sample.image, expected.image)
            assert torch.equal(sample.boxes, expected.boxes)
    assert len(list(folder.iterdir())) == 2, "of the two large ones"


def test_the_setting(tmp_path, monkeypatch):
    from lgd.build.training import build_decoding, build_train_loader
    from lgd.config.load import load_config
    from lgd.config.values import ConfigError

    monkeypatch.setenv("HOME", str(tmp_path))
    cfg = load_config("demo", ["DATALOADER.CACHE_DIR", "~/pictures"])
    assert build_decoding(cfg).cache_dir == tmp_path / "pictures"
    assert build_decoding(load_config("demo", [])).cache_dir is None
    (tmp_path / "pictures").write_text("")
    with pytest.raises(
        ConfigError, match=r"DATALOADER\.CACHE_DIR .*pictures cannot be written to: File exists"
    ):
        build_train_loader(cfg, None, first_step=0, device=torch.device("cpu"))
    assert Path(cfg.dataloader.cache_dir).is_file()
