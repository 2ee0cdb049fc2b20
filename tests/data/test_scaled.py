"""JPEGs decoded smaller than they are: the same picture at the same place."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from lgd.data.decoding import Decoding
from lgd.data.errors import ImageError
from lgd.data.images import read_image, read_picture
from lgd.data.samples import Preparation
from lgd.data.transforms import View, Window, resized_size
from tests.data.sets import annotation, open_coco, write_coco


def photograph(height, width):
    """Waves and a sharp white square, so that a shift of a tenth of a pixel shows."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 100 * np.sin(x / 17 + k) * np.cos(y / (23 - k)) for k in range(3)]
    pixels = np.stack(waves, axis=-1).astype(np.uint8)
    pixels[height // 3 : height // 2, width // 4 : width // 2] = 255
    return pixels


def save(path, height=400, width=600, mode="RGB", **options):
    Image.fromarray(photograph(height, width)).convert(mode).save(path, quality=95, **options)
    return path


@pytest.mark.parametrize(("height", "width"), [(400, 600), (401, 599), (407, 605)])
@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_reduced_pixels_stand_for_as_many_of_the_file(tmp_path, height, width, reduction):
    path = save(tmp_path / "a.jpg", height, width)
    picture = read_picture(path, reduction=reduction)
    assert (picture.height, picture.width, picture.reduction) == (height, width, reduction)
    assert picture.pixels.shape == (3, -(-height // reduction), -(-width // reduction))
    inner = height // reduction, width // reduction
    whole = read_image(path)[:, : inner[0] * reduction, : inner[1] * reduction].float()
    means = torch.nn.functional.avg_pool2d(whole, reduction)
    assert (picture.pixels[:, : inner[0], : inner[1]] - means).abs().mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_photographs_are_reduced_too(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    path = save(tmp_path / "a.jpg", exif=exif)
    picture = read_picture(path, reduction=2)
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).size
    assert (picture.width, picture.height) == upright
    assert picture.reduction == 2
    means = torch.nn.functional.avg_pool2d(read_image(path).float(), 2)
    assert (picture.pixels - means).abs().mean() < 2
    odd = save(tmp_path / "odd.jpg", 401, 600, exif=exif)
    assert read_picture(odd, reduction=2).reduction == (2 if orientation == 1 else 1)


def test_what_comes_whole(tmp_path):
    cut = save(tmp_path / "cut.jpg")
    cut.write_bytes(cut.read_bytes()[:-2000])
    with pytest.raises(ImageError, match=r"cut\.jpg"):
        read_picture(cut, reduction=2)
    for path in (save(tmp_path / "inks.jpg", mode="CMYK"), save(tmp_path / "a.png")):
        picture = read_picture(path, reduction=2)
        assert picture.reduction == 1
        assert torch.equal(picture.pixels, read_image(path))


def test_grey_is_reduced(tmp_path):
    picture = read_picture(save(tmp_path / "a.jpg", mode="L"), reduction=4)
    assert picture.pixels.shape == (3, 100, 150)
    assert torch.equal(picture.pixels[0], picture.pixels[2])


@pytest.mark.parametrize(
    ("window", "size", "reduction"),
    [
        (Window(0, 0, 3000, 4000), (800, 1067), 2),
        (Window(0, 0, 1600, 2000), (800, 1000), 1),
        (Window(0, 0, 1601, 2002), (800, 1000), 2),
        (Window(0, 0, 480, 640), (800, 1067), 1),
        (Window(0, 0, 6000, 8000), (700, 933), 8),
        (Window(10, 20, 1000, 4000), (480, 1920), 2),
    ],
)
def test_what_is_left_has_more_pixels_than_the_view(window, size, reduction):
    assert View(window, size, False, "RGB").reduction == reduction


@pytest.mark.parametrize(
    "window",
    [Window(0, 0, 400, 600), Window(0, 0, 401, 603), Window(8, 16, 320, 400), Window(13, 7, 333, 411)],
)
@pytest.mark.parametrize("flip", [False, True])
def test_the_view_is_the_same_picture_at_the_same_place(tmp_path, window, flip):
    height, width = (401, 603) if window.width == 603 else (400, 600)
    path = save(tmp_path / "a.jpg", height, width)
    view = View(window, resized_size(window.height, window.width, 150, 999), flip, "BGR")
    reduced = view(read_picture(path, reduction=2).pixels, 2)
    whole = view(read_image(path))
    assert reduced.shape == whole.shape
    assert (reduced.float() - whole.float()).abs().mean() < 1
    assert all(abs(shift) < 0.03 for shift in shifts(whole.float(), reduced.float()))


def shifts(first, second):
    """By how much the second picture is moved against the first, down and right, pixels (least squares)."""
    slopes = torch.gradient(first, dim=(1, 2))
    return [float((slope * (first - second)).sum() / slope.square().sum()) for slope in slopes]


def test_shifts_are_found():
    moved = torch.from_numpy(photograph(60, 80)[..., 0].astype(np.float32))[None]
    assert shifts(moved, 0.9 * moved + 0.1 * moved.roll(1, dims=2))[1] == pytest.approx(0.1, abs=0.02)


@pytest.fixture
def index(tmp_path):
    record = {"id": 1, "file_name": "1.jpg", "width": 1200, "height": 900}
    path = write_coco(tmp_path, [record], [annotation(1, 1, (30, 50, 601, 403))], with_files=False)
    save(tmp_path / "train/1.jpg", 900, 1200)
    return open_coco(path)


def test_boxes_know_nothing_of_it(index):
    samples = [
        Preparation(index, "RGB", 999, torch.float64, decoding=Decoding(scaled=scaled))(
            0, min_size=300, flip=True, window=Window(5, 3, 891, 1190)
        )
        for scaled in (False, True)
    ]
    whole, reduced = samples
    assert torch.equal(whole.boxes, reduced.boxes)
    assert whole.original_size == reduced.original_size == (900, 1200)
    assert whole.size == reduced.size
    assert not torch.equal(whole.image, reduced.image)
    assert (whole.image.float() - reduced.image.float()).abs().mean() < 1


def test_a_wrong_size_is_found_by_the_pixel(index, tmp_path):
    save(tmp_path / "train/1.jpg", 899, 1200)
    with pytest.raises(ImageError, match="is 1200 x 899 pixels, but"):
        Preparation(index, "RGB", 999, torch.float32)(0, min_size=100, flip=False)


def test_small_pictures_are_decoded_whole(tmp_path):
    record = {"id": 1, "file_name": "1.jpg", "width": 600, "height": 400}
    json_path = write_coco(tmp_path, [record], [annotation(1, 1)], with_files=False)
    path = save(tmp_path / "train/1.jpg")
    index = open_coco(json_path)
    sample = Preparation(index, "RGB", 999, torch.float32)(0, min_size=100, flip=False)
    assert torch.equal(sample.image, View(Window(0, 0, 400, 600), (100, 150), False, "RGB")(read_image(path)))
