import numpy as np
import pytest

from lgd.data.canvases import fit_canvas, static_canvases, tight_canvas
from lgd.data.transforms import resized_size


def test_canvases_of_coco_at_many_scales():
    canvases = static_canvases((640, 672, 704, 736, 768, 800), 1333)
    assert canvases == ((800, 1088), (800, 1344), (1088, 800), (1344, 800), (1344, 1344))


@pytest.mark.parametrize(
    ("min_sizes", "max_size", "expected"),
    [
        ((48,), 64, ((64, 64),)),
        ((800,), 640, ((640, 640),)),  # the cap is below the short side: every long side is the cap
        ((800,), 1000, ((800, 1024), (1024, 800), (1024, 1024))),
    ],
)
def test_few_canvases_where_few_are_needed(min_sizes, max_size, expected):
    assert static_canvases(min_sizes, max_size) == expected


@pytest.mark.parametrize(("min_sizes", "max_size"), [((640, 800), 1333), ((400, 600), 1000), ((800,), 640)])
@pytest.mark.parametrize("size_divisibility", [32, 128])
def test_every_batch_fits_one(min_sizes, max_size, size_divisibility):
    canvases = static_canvases(min_sizes, max_size, size_divisibility)
    generator = np.random.default_rng(0)
    for _ in range(2000):
        sizes = [
            resized_size(*(int(2 ** generator.uniform(0, 13)) for _ in range(2)), short, max_size)
            for short in generator.integers(min_sizes[0], min_sizes[-1] + 1, 2).tolist()
        ]
        canvas = tight_canvas(sizes, size_divisibility)
        assert fit_canvas(canvas, canvases) in canvases
        # Landscapes by themselves never need the square one, nor do portraits.
        if all(h < w for h, w in sizes) or all(h >= w for h, w in sizes):
            assert min(fit_canvas(canvas, canvases)) == canvases[0][0]


def test_the_least_area_that_holds_a_batch():
    canvases = ((800, 1344), (1088, 800), (800, 1088), (1344, 800), (1344, 1344))
    assert fit_canvas((640, 640), canvases) == (1088, 800)
    assert fit_canvas((640, 1088), canvases) == (800, 1088)
    assert fit_canvas((640, 1120), canvases) == (800, 1344)
    assert fit_canvas((832, 832), canvases) == (1344, 1344)
    assert fit_canvas((2048, 32), canvases) == (2048, 32)
    assert fit_canvas((64, 32), ()) == (64, 32)


def test_images_of_any_size_have_no_static_canvas():
    with pytest.raises(ValueError, match=r"min_sizes is \(0, 640\)"):
        static_canvases((0, 640), 1333)
