"""The same picture twice: by content, and by its looks."""

import io

import numpy as np
import pytest
from PIL import Image

from lgd.inspect.duplicates import describe_duplicates, find_duplicates
from tests.data.sets import image_record, open_coco, write_coco


def scene(seed):
    """A picture with something to see: a few blobs, as any photograph has."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:120, :160]
    grey = sum(
        generator.uniform(-90, 90) * np.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * s**2))
        for a, b, s in zip(
            *(generator.uniform(low, high, 8) for low, high in ((0, 160), (0, 120), (8, 30))), strict=True
        )
    )
    return Image.fromarray(np.clip(128 + grey, 0, 255).astype(np.uint8)).convert("RGB")


def write_set(root, pictures, split="train"):
    """A set of encoded pictures (bytes), whatever their suffix says."""
    records = [image_record(k + 1, 160, 120) for k in range(len(pictures))]
    path = write_coco(root, records, [], split=split, with_files=False)
    for record, content in zip(records, pictures, strict=True):
        (root / split / record["file_name"]).write_bytes(content)
    return open_coco(path, split)


def encoded(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def test_equal_files_are_found_and_those_of_equal_size_only_are_not(tmp_path):
    noise = [bytes([k]) * 20_000 for k in range(3)]
    middle = noise[0][:9000] + b"x" + noise[0][9001:]  # both ends and the size are equal
    found = find_duplicates([write_set(tmp_path, [*noise, noise[1], middle])], look=False)
    assert found.files[1] == found.files[3]
    assert len(set(found.files.tolist())) == 4
    assert found.looks is None


@pytest.mark.parametrize(
    "change",
    [
        lambda picture: encoded(picture, "JPEG", quality=40),
        lambda picture: encoded(picture.resize((320, 240))),
        lambda picture: encoded(picture.point(lambda value: int(0.9 * value) + 5)),
    ],
    ids=["quality", "size", "brightness"],
)
def test_a_changed_copy_looks_alike_and_other_pictures_do_not(change, tmp_path):
    others = [encoded(scene(seed)) for seed in range(1, 12)]
    train = write_set(tmp_path, [encoded(scene(0)), *others])
    val = write_set(tmp_path, [change(scene(0)), encoded(scene(50))], "val")
    found = find_duplicates([train, val])
    assert len(set(found.files.tolist())) == 14
    assert found.looks[0] == found.looks[12]
    assert len(set(found.looks.tolist())) == 13
    ((number, line),) = describe_duplicates(found)
    assert number == 0
    assert "001.png = 001.png" in line


def test_blank_pictures_look_like_nothing(tmp_path):
    blank = [encoded(Image.new("L", (160, 120), level)) for level in (0, 1, 200)]
    found = find_duplicates([write_set(tmp_path, blank)])
    assert len(set(found.looks.tolist())) == 3


def test_equal_pictures_are_said_once(tmp_path):
    content = encoded(scene(0))
    found = find_duplicates([write_set(tmp_path, [content, content, content])])
    ((_, line),) = describe_duplicates(found)
    assert "in this set: 2 " in line


def test_a_picture_that_is_damaged_or_gone_is_no_duplicate(tmp_path):
    index = write_set(tmp_path, [b"damaged", encoded(scene(0)), b"other  "])
    (tmp_path / "train" / "002.png").unlink()
    found = find_duplicates([index])
    assert len(set(found.files.tolist())) == len(set(found.looks.tolist())) == 3


def test_thumbnails_are_kept_until_a_picture_changes(tmp_path, monkeypatch):
    index = write_set(tmp_path, [encoded(scene(0)), encoded(scene(1))])
    find_duplicates([index])
    monkeypatch.setattr("lgd.inspect.pictures.Image.open", lambda path: pytest.fail("decoded again"))
    find_duplicates([index])
    monkeypatch.undo()
    (tmp_path / "train" / "002.png").write_bytes(encoded(scene(0).resize((80, 60))))
    found = find_duplicates([index])
    assert found.looks[0] == found.looks[1]
