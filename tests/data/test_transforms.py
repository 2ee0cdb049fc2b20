import numpy as np
import pytest
import torch
from PIL import Image

from lgd.data.transforms import (
    Crop,
    Resize,
    View,
    Window,
    crop_image,
    resize_image,
    resized_size,
)


@pytest.mark.parametrize(
    ("size", "min_size", "max_size", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),  # 1066.67
        ((640, 480), 800, 1333, (1067, 800)),
        ((427, 640), 800, 1333, (800, 1199)),  # 1199.06
        ((240, 640), 800, 1333, (500, 1333)),  # 499.875: the long side's cap
        ((100, 100), 33, 1333, (33, 33)),
        ((2, 640), 800, 1333, (4, 1333)),  # 4.17
        ((1, 4000), 800, 1333, (1, 1333)),  # 0.33 would round to 0
        ((1, 1), 800, 1333, (800, 800)),
        ((480, 640), 0, 100, (480, 640)),  # no resizing at all
        ((3, 5), 3, 1333, (3, 5)),
        ((8, 20), 5, 1333, (5, 13)),  # 12.5 is rounded up
    ],
)
def test_resized_size(size, min_size, max_size, expected):
    assert resized_size(*size, min_size, max_size) == expected


def test_resized_size_never_zero_nor_above_the_cap():
    generator = np.random.default_rng(0)
    for _ in range(2000):
        height, width = (int(2 ** generator.uniform(0, 12)) for _ in range(2))
        size = resized_size(height, width, int(generator.integers(1, 900)), 1333)
        assert min(size) >= 1
        assert max(size) <= 1333


def test_drawn_sizes_cover_the_choice_and_the_range():
    generator = np.random.default_rng(0)
    choice = Resize((640, 672, 704), 1333)
    assert {choice.draw(generator) for _ in range(200)} == {640, 672, 704}
    between = Resize((10, 14), 1333, "range")
    assert {between.draw(generator) for _ in range(200)} == {10, 11, 12, 13, 14}


@pytest.mark.parametrize(
    ("sizes", "sampling", "message"),
    [
        ((), "choice", r"min_sizes is \(\); give at least one"),
        ((-1,), "choice", r"min_sizes is \(-1,\)"),
        ((5,), "range", "needs"),
        ((6, 5), "range", "needs"),
    ],
)
def test_sizes_that_cannot_be(sizes, sampling, message):
    with pytest.raises(ValueError, match=message):
        Resize(sizes, 1333, sampling)


@pytest.mark.parametrize("size", [(20, 31), (90, 120), (7, 100), (60, 80)])
def test_resizing_is_pillows_within_one(size):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    expected = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR)
    resized = resize_image(image, size)
    assert resized.dtype == torch.uint8
    difference = resized.permute(1, 2, 0).int() - torch.from_numpy(np.array(expected)).int()
    assert difference.abs().max() <= 1


WHOLE = Window(top=0, left=0, height=100, width=50)


def test_boxes_follow_the_image():
    boxes = np.array([[10.0, 20.0, 30.0, 40.0]])
    assert View(WHOLE, (50, 150), False, "RGB").boxes(boxes)[0].tolist() == [[30, 10, 90, 20]]
    assert View(WHOLE, (100, 50), True, "RGB").boxes(boxes)[0].tolist() == [[20, 20, 40, 40]]
    assert View(WHOLE, (50, 150), True, "RGB").boxes(boxes)[0].tolist() == [[60, 10, 120, 20]]
    window = Window(top=10, left=5, height=50, width=25)
    assert View(window, (50, 75), False, "RGB").boxes(boxes)[0].tolist() == [[15, 10, 75, 30]]
    assert boxes.tolist() == [[10, 20, 30, 40]]
    for flip in (False, True):
        none, has_extent = View(WHOLE, (50, 150), flip, "RGB").boxes(boxes[:0])
        assert (none.shape, has_extent.shape) == ((0, 4), (0,))


def test_edges_follow_the_image():
    """Both ends mirrored where they are: an edge is no box; and nothing is clipped."""
    edges = torch.tensor([[30.0, 20.0, 10.0, 40.0]], dtype=torch.float64)
    assert View(WHOLE, (50, 150), False, "RGB").edges(edges).tolist() == [[90, 10, 30, 20]]
    assert View(WHOLE, (100, 50), True, "RGB").edges(edges).tolist() == [[20, 20, 40, 40]]
    window = Window(top=30, left=0, height=50, width=50)
    assert View(window, (50, 50), False, "RGB").edges(edges).tolist() == [[30, -10, 10, 10]]
    assert View(WHOLE, (100, 50), True, "RGB").edges(edges[:0]).shape == (0, 4)


def test_clipping_tells_which_boxes_are_left():
    boxes = np.array([[-5.0, -5, 5, 5], [5, 5, 50, 60], [40, 5, 50, 6], [1, 1, 1.000001, 4]])
    view = View(Window(0, 0, 20, 30), (20, 30), False, "RGB")
    clipped, has_extent = view.boxes(boxes)
    assert clipped[:3].tolist() == [[0, 0, 5, 5], [5, 5, 30, 20], [30, 5, 30, 6]]
    assert has_extent.tolist() == [True, True, False, False]


def windows(kind: str, size: tuple[float, float], height: int, width: int) -> list[Window]:
    generator = np.random.default_rng(0)
    drawn = [Crop(kind, size).draw(generator, height, width) for _ in range(400)]
    for window in drawn:
        assert 0 <= window.top <= height - window.height
        assert 0 <= window.left <= width - window.width
    return drawn


def test_crops_of_a_fraction():
    drawn = windows("relative", (0.5, 0.8), 31, 40)
    assert {(window.height, window.width) for window in drawn} == {(16, 32)}
    assert {window.top for window in drawn} == set(range(16))
    assert {window.left for window in drawn} == set(range(9))


def test_crops_of_a_range_of_fractions():
    drawn = windows("relative_range", (0.5, 0.8), 20, 40)
    assert {window.height for window in drawn} == set(range(10, 21))
    assert {window.width for window in drawn} == set(range(32, 41))


def test_crops_of_so_many_pixels():
    assert {window[2:] for window in windows("absolute", (12, 30), 20, 40)} == {(12, 30)}
    assert set(windows("absolute", (30, 50), 20, 40)) == {(0, 0, 20, 40)}


def test_crops_of_a_range_of_pixels():
    drawn = windows("absolute_range", (10, 13), 20, 12)
    assert {window.height for window in drawn} == {10, 11, 12, 13}
    assert {window.width for window in drawn} == {10, 11, 12}
    assert {window[2:] for window in windows("absolute_range", (30, 50), 20, 12)} == {(20, 12)}


def test_a_crop_has_at_least_a_pixel():
    assert {window[2:] for window in windows("relative", (0.01, 0.01), 10, 10)} == {(1, 1)}


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("relative", (0.5, 1.5), "relative needs fractions of at most 1"),
        ("relative_range", (0.0, 0.5), "give two numbers above 0"),
        ("absolute", (10.5, 10), "absolute needs whole pixels"),
        ("absolute_range", (20, 10), r"absolute_range needs \(least, most\)"),
    ],
)
def test_crops_that_cannot_be(kind, size, message):
    with pytest.raises(ValueError, match=message):
        Crop(kind, size)


def test_pixels_of_a_crop():
    image = torch.arange(3 * 6 * 8, dtype=torch.uint8).view(3, 6, 8)
    assert torch.equal(crop_image(image, Window(top=2, left=3, height=3, width=4)), image[:, 2:5, 3:7])


@pytest.mark.parametrize("size", [(21, 33), (90, 120)])
@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
@pytest.mark.parametrize("flip", [False, True])
def test_a_view_is_cropped_then_resized_then_mirrored(size, image_format, flip):
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    image = pixels.permute(2, 0, 1)  # channels last in memory, as decoders return it
    window = Window(top=5, left=7, height=40, width=50)
    expected = resize_image(crop_image(image, window), size)
    expected = expected.flip(2) if flip else expected
    expected = expected.flip(0) if image_format == "BGR" else expected
    assert torch.equal(View(window, size, flip, image_format)(image), expected)
