"""Results: what they hold, and what other programs get of them."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from lgd.data.errors import DataError
from lgd.inference.captions import class_color
from lgd.inference.draw_result import draw_result
from lgd.inference.result import Result
from lgd.structures import Detections

NAMES, IDS = ("cat", "dog", "größer 猫"), (1, 7, 3)


def result(boxes, scores=None, labels=None, masks=None, size=(120, 160), **more):
    count = len(boxes)
    detections = Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores or [0.75] * count),
        torch.tensor(labels or [0] * count, dtype=torch.int64),
        masks,
    )
    more.setdefault("pixels", torch.full((3, *size), 128, dtype=torch.uint8))
    return Result(detections, size, NAMES, IDS, **more)


def count(picture, label):
    return int((np.asarray(picture) == class_color(label)).all(-1).sum())


def test_names_are_those_of_the_labels():
    assert result([[0, 0, 9, 9]] * 2, labels=[2, 0]).names == ["größer 猫", "cat"]


def test_coco_has_widths_and_the_trainings_ids():
    (found,) = result([[10.5, 20, 30, 60]], [0.5], [1]).to_coco(17)
    assert found == {"image_id": 17, "category_id": 7, "bbox": [10.5, 20.0, 19.5, 40.0], "score": 0.5}


def test_masks_are_pasted_at_the_pictures_size():
    one = result([[10, 20, 30, 60]], masks=torch.ones(1, 4, 4))
    assert one.masks.shape == (1, 120, 160)
    assert one.masks[0, 25:55, 15:25].all()
    assert not one.masks[0, :15].any()
    assert one.to_coco(1)[0]["segmentation"]["size"] == [120, 160]
    assert result([[10, 20, 30, 60]]).masks is None


def test_labelme_has_rectangles_or_masks():
    content = result([[10, 20, 30, 60]], labels=[1], name="cam/a.jpg").to_labelme()
    assert content["imagePath"] == "cam/a.jpg"
    assert (content["imageHeight"], content["imageWidth"]) == (120, 160)
    (shape,) = content["shapes"]
    assert (shape["label"], shape["shape_type"]) == ("dog", "rectangle")
    assert shape["points"] == [[10, 20], [30, 60]]
    json.dumps(content)

    one = result([[10, 20, 30, 160]], masks=torch.ones(1, 4, 4))
    (shape,) = one.to_labelme()["shapes"]
    bitmap = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))))
    (x1, y1), (x2, y2) = shape["points"]
    assert bitmap.shape == (y2 - y1 + 1, x2 - x1 + 1)
    assert (bitmap == one.masks[0, int(y1) : int(y2) + 1, int(x1) : int(x2) + 1].numpy()).all()


def test_supervision_is_asked_for_in_a_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "supervision", None)
    with pytest.raises(DataError, match=r"pip install 'lgd\[supervision\]'"):
        result([[0, 0, 9, 9]]).to_supervision()


def test_supervision_takes_it():
    supervision = pytest.importorskip("supervision")
    found = result([[10, 20, 30, 60]], labels=[1], masks=torch.ones(1, 4, 4)).to_supervision()
    assert isinstance(found, supervision.Detections)
    assert found.xyxy.tolist() == [[10, 20, 30, 60]]
    assert found.data["class_name"].tolist() == ["dog"]
    assert found.mask.shape == (1, 120, 160)


def test_a_frame_that_was_not_kept_says_so():
    with pytest.raises(DataError, match="the frame was not kept"):
        result([], name="clip.mp4", frame=3, pixels=None).draw()


def test_a_line_of_json():
    said = result([[10, 20, 30, 60]], labels=[1], name="clip.mp4", frame=3).to_dict()
    assert json.loads(json.dumps(said)) == {
        "file": "clip.mp4",
        "name": "clip.mp4",
        "frame": 3,
        "height": 120,
        "width": 160,
        "detections": [{"box": [10, 20, 30, 60], "score": 0.75, "label": 1, "name": "dog"}],
    }


def test_crops_are_at_least_a_pixel():
    crops = result([[10.2, 20, 30.5, 60], [5, 5, 5.1, 5.1]]).crop()
    assert [crop.size for crop in crops] == [(21, 40), (1, 1)]


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (40, 40), (120, 160), (900, 1200)])
def test_drawings_are_of_the_pictures_size_and_show_every_box(size):
    height, width = size
    boxes = [[0, 0, width / 2, height / 2], [width / 3, height / 3, width, height]]
    drawn = result(boxes, [0.75, 0.5], [1, 0], size=size).draw()
    assert drawn.size == (width, height)
    assert count(drawn, 1)
    assert count(drawn, 0) or size == (1, 1)


def test_the_picture_itself_is_not_drawn_into():
    one = result([[10, 20, 100, 100]], masks=torch.ones(1, 4, 4))
    one.draw()
    assert (one.pixels == 128).all()


def test_masks_are_tinted_within_their_boxes():
    drawn = np.asarray(result([[40, 30, 120, 90]], masks=torch.ones(1, 4, 4)).draw()).astype(int)
    assert (drawn[70, 80] != 128).any()
    assert (drawn[5, 5] == 128).all()


def test_lines_and_letters_grow_with_the_picture_but_not_over_small_objects():
    large = count(result([[100, 300, 900, 800]], size=(900, 1200)).draw(), 0)
    boxes = [[x, y, x + 12, y + 12] for x in range(50, 1150, 60) for y in range(50, 850, 60)]
    many = draw_result(torch.zeros(3, 900, 1200, dtype=torch.uint8), result(boxes).detections, NAMES)
    assert large > 4000
    assert count(many, 0) < 0.3 * 900 * 1200


def test_captions_do_not_hide_other_boxes():
    # A second box lies where the caption of the first would, above it.
    boxes = [[60, 60, 100, 100], [62, 48, 78, 58]]
    drawn = np.asarray(result(boxes, [0.75, 0.5], [0, 1]).draw())
    middle = drawn[50:57, 64:76]
    assert not (middle == class_color(0)).all(-1).any()
