"""Pictures: their size, and colours where boxes are."""

from dataclasses import replace

import pytest
import torch

from lgd.inference.captions import class_color
from lgd.inference.draw import draw_detections
from lgd.structures import Detections, Outlines

NAMES = ("cat", "größer 猫", "dog")


def detections(boxes=(), scores=(), labels=()):
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(labels, dtype=torch.int64),
    )


def draw(image, found, gt=None, **kwargs):
    gt = gt or detections()
    return draw_detections(image, found, gt.boxes, gt.labels, NAMES, **kwargs)


def panels(picture, height, width):
    """Cut the two panels out of a picture, without the strips with the titles."""
    assert picture.shape[2] > 2 * width
    return picture[:, -height:, :width], picture[:, -height:, -width:]


def gray(height, width):
    return torch.full((3, height, width), 128, dtype=torch.uint8)


def count(panel, label):
    color = torch.tensor(class_color(label), dtype=torch.uint8)
    return int((panel == color[:, None, None]).all(0).sum())


@pytest.mark.parametrize(
    ("size", "panel_size"),
    [
        ((400, 500), (400, 500)),  # as it is
        ((16, 32), (320, 640)),  # enlarged
        ((1200, 1600), (600, 800)),  # reduced
        ((10, 1000), (8, 800)),  # the long side wins
        ((1, 1), (320, 320)),
    ],
)
def test_size(size, panel_size):
    picture = draw(gray(*size), detections())
    assert picture.dtype == torch.uint8
    assert picture.shape[0] == 3
    left, right = panels(picture, *panel_size)
    assert torch.equal(left, gray(*panel_size))
    assert torch.equal(right, gray(*panel_size))
    assert 0 < picture.shape[1] - panel_size[0] < 60


def test_outlines_lie_on_the_boxes():
    found = detections([[100, 150, 200, 250], [300, 50, 350, 350]], [0.9, 0.6], [0, 2])
    gt = detections([[40, 60, 140, 160]], [1], [1])
    left, right = panels(draw(gray(400, 400), found, gt), 400, 400)
    for panel, box, label in ((left, (40, 60, 140, 160), 1), (right, (100, 150, 200, 250), 0)):
        x1, y1, x2, y2 = box
        edges = torch.cat(
            [panel[:, y1, x1:x2], panel[:, y2, x1:x2], panel[:, y1:y2, x1], panel[:, y1:y2, x2]], 1
        )
        assert (edges == torch.tensor(class_color(label), dtype=torch.uint8)[:, None]).all()
        assert (panel[:, y1 + 20 : y2 - 5, x1 + 5 : x2 - 5] == 128).all()
    assert count(left, 0) == count(left, 2) == count(right, 1) == 0
    assert count(right, 2) > 700


def test_boxes_grow_with_the_image():
    left, _ = panels(draw(gray(40, 40), detections(), detections([[10, 20, 30, 36]], [1], [0])), 320, 320)
    assert tuple(left[:, 20 * 8, 15 * 8].tolist()) == class_color(0)
    assert tuple(left[:, 36 * 8, 15 * 8].tolist()) == class_color(0)


def test_score_threshold():
    found = detections([[10, 50, 90, 90]] * 2, [0.5, 0.49], [0, 2])
    _, right = panels(draw(gray(320, 320), found), 320, 320)
    assert count(right, 0) > 0
    assert count(right, 2) == 0
    _, right = panels(draw(gray(320, 320), found, score_threshold=0.6), 320, 320)
    assert count(right, 0) == 0


def test_captions_of_boxes_at_the_border_stay_inside():
    corners = detections(
        [[-9, -9, 30, 30], [300, 0, 330, 8], [0, 310, 5, 320], [319, 319, 320, 320]], [1] * 4, [1] * 4
    )
    left, _ = panels(draw(gray(320, 320), detections(), corners), 320, 320)
    assert count(left, 1) > 4 * 300


def test_a_crowd_is_not_hidden_by_its_captions():
    corner = torch.rand(400, 2, generator=torch.Generator().manual_seed(0)) * 390
    crowd = Detections(
        torch.cat([corner, corner + 3], 1), torch.ones(400), torch.ones(400, dtype=torch.int64)
    )
    _, right = panels(draw(gray(400, 400), crowd), 400, 400)
    outlines, captions = 400 * 4 * 4, 0.15 * 400 * 400
    assert 0.9 * captions < int((right != 128).any(0).sum()) < outlines + captions


def test_the_image_itself_is_left_alone_and_titles_differ():
    image = gray(320, 320)
    first, second = (
        draw(image, detections([[9, 99, 99, 199]], [1], [0]), title=title) for title in ("a", "b")
    )
    assert torch.equal(image, gray(320, 320))
    assert not torch.equal(first, second)
    assert torch.equal(first[:, -320:], second[:, -320:])


def test_neighbouring_classes_have_distinct_colors():
    colors = torch.tensor([class_color(label) for label in range(81)])
    assert ((colors[1:] - colors[:-1]).abs().sum(1) > 100).all()
    assert len({class_color(label) for label in range(80)}) > 75


def polygon_outline(*points):
    """The outline of one object with one part."""
    corners = torch.tensor(points, dtype=torch.float32)
    edges = torch.cat([corners, corners.roll(-1, 0)], dim=1)[None, None]
    return Outlines(edges, torch.zeros(edges.shape[:3], dtype=torch.int64), 1)


def test_masks_are_translucent_with_a_line_of_full_color():
    """In an image drawn at twice its size, an object's triangle, and a disc's mask over its box."""
    gt = detections([[20, 40, 120, 140]], [1], [1])
    ys, xs = torch.meshgrid(torch.arange(28), torch.arange(28), indexing="ij")
    disc = ((ys - 13.5) ** 2 + (xs - 13.5) ** 2 < 13**2).float()[None]
    found = replace(detections([[30, 50, 130, 150]], [0.9], [0]), masks=disc)
    triangle = polygon_outline((20, 40), (120, 140), (20, 140))
    left, right = panels(draw(gray(160, 160), found, gt, gt_outlines=triangle), 320, 320)
    mixed = [(128 + 0.35 * (torch.tensor(class_color(label)) - 128)).round().tolist() for label in (0, 1)]
    assert left[:, 230, 100].tolist() == mixed[1]
    assert left[:, 180, 200].tolist() == [128] * 3  # in the box, above the triangle's long side
    assert tuple(left[:, 180, 138].tolist()) == class_color(1)  # on that side
    assert right[:, 200, 160].tolist() == mixed[0]
    assert right[:, 295, 65].tolist() == [128] * 3  # a corner of the box
    assert tuple(right[:, 200, 67].tolist()) == class_color(0)  # where the disc touches the box


def test_masks_below_the_score_threshold_are_left_out():
    found = replace(detections([[10, 50, 90, 90]] * 2, [0.5, 0.49], [0, 2]), masks=torch.ones(2, 28, 28))
    _, right = panels(draw(gray(320, 320), found), 320, 320)
    assert count(right, 0) > 0
    assert count(right, 2) == 0


def test_no_masks_to_draw():
    nothing = replace(detections(), masks=torch.zeros(0, 28, 28))
    no_outlines = Outlines(torch.zeros(1, 0, 1, 4), torch.zeros(1, 0, 1, dtype=torch.int64), 1)
    left, right = panels(draw(gray(320, 320), nothing, gt_outlines=no_outlines), 320, 320)
    assert torch.equal(left, gray(320, 320))
    assert torch.equal(right, gray(320, 320))
