"""A trained model in the place of one of torchvision's."""

import pytest
import torch
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from lgd.adapters.torchvision import TorchvisionModel
from lgd.data.errors import DataError
from lgd.data.images import read_image
from tests.adapters.masked import with_masks

SCORE = 0.0103
"""Of which the tiny model finds some."""


@pytest.fixture(scope="module")
def images(small_data):
    return [read_image(path) for path in sorted((small_data / "val").iterdir())[:2]]


def test_it_gives_what_predict_gives(tiny_model, images):
    model = TorchvisionModel(tiny_model, score=SCORE)
    expected = tiny_model.predict(images, score=SCORE)
    for given in (images, [image / 255 for image in images]):
        for found, result in zip(model(given), expected, strict=True):
            assert len(result) > 3
            assert torch.equal(found["boxes"], result.boxes)
            assert torch.equal(found["scores"], result.scores)
            assert [model.categories[label] for label in found["labels"]] == result.names


def test_masks_are_of_the_images_size(tiny_model, images):
    model = with_masks(tiny_model)
    found = TorchvisionModel(model, SCORE)(images)
    for each, result in zip(found, model.predict(images, SCORE), strict=True):
        assert each["masks"].shape == (len(result), 1, *result.size)
        assert torch.equal(each["masks"][:, 0] > 0.5, result.masks)


def test_it_looks_as_torchvisions_own(tiny_model, images):
    theirs = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, box_score_thresh=0.0
    ).eval()
    with torch.no_grad():
        expected = theirs([image / 255 for image in images])
    found = TorchvisionModel(tiny_model, score=0).eval()([image / 255 for image in images])
    for ours, other in zip(found, expected, strict=True):
        assert list(ours) == list(other)
        for name in ours:
            assert ours[name].dtype == other[name].dtype
            assert ours[name].shape[1:] == other[name].shape[1:]


def test_what_it_cannot_take(tiny_model, images):
    model = TorchvisionModel(tiny_model)
    assert model([]) == []
    with pytest.raises(DataError, match=r"values from .* to 255; give floats in \[0, 1\]"):
        model([images[0].float()])
    with pytest.raises(DataError, match="computes no losses"):
        model(images, [{}])
    with pytest.raises(DataError, match="computes no losses"):
        model.train()(images)
