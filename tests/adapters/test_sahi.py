"""A trained model under the real SAHI."""

import numpy as np
import pytest
import torch

from lgd.data.errors import DataError
from lgd.data.images import read_image
from tests.adapters.masked import with_masks

pytest.importorskip("sahi")

from sahi.predict import get_prediction, get_sliced_prediction

from lgd.adapters.sahi import SahiModel

SCORE = 0.0103
"""Of which the tiny model finds some."""


@pytest.fixture(scope="module")
def picture(small_data):
    return sorted((small_data / "val").iterdir())[0]


@pytest.fixture
def sahi_model(tiny_weights):
    return SahiModel(model_path=str(tiny_weights), device="cpu", confidence_threshold=SCORE)


@pytest.mark.parametrize("option", [{"image_size": 640}, {"mask_threshold": 0.3}, {"config_path": "a.yaml"}])
def test_what_would_change_nothing_is_refused(tiny_model, option):
    with pytest.raises(DataError, match=f"^{next(iter(option))} .* changes nothing"):
        SahiModel(model=tiny_model, device="cpu", **option)


def test_a_picture_gives_what_predict_gives(sahi_model, tiny_model, picture):
    expected = tiny_model.predict(picture, score=SCORE)
    found = get_prediction(str(picture), sahi_model).object_prediction_list
    assert len(found) == len(expected) > 3
    boxes = torch.tensor([each.bbox.to_xyxy() for each in found])
    torch.testing.assert_close(boxes, expected.boxes, atol=1e-3, rtol=0)
    assert [each.category.name for each in found] == expected.names
    assert [each.score.value for each in found] == pytest.approx(expected.scores.tolist())


def test_slices_are_moved_to_their_places(sahi_model, tiny_model, picture):
    """Without merging, what is found is what each slice gives, moved by its corner."""
    pixels = read_image(picture)
    height, width = pixels.shape[1:]
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    corners = [(0, 0), (width - 96, 0), (0, height - 96), (width - 96, height - 96)]
    expected = []
    for x, y in dict.fromkeys(corners):
        part = tiny_model.predict(np.ascontiguousarray(array[y : y + 96, x : x + 96]), score=SCORE)
        expected += [(a + x, b + y, c + x, d + y) for a, b, c, d in part.boxes.tolist()]
    found = get_sliced_prediction(
        array,
        sahi_model,
        slice_height=96,
        slice_width=96,
        overlap_height_ratio=0,
        overlap_width_ratio=0,
        perform_standard_pred=False,
        postprocess_type="NMS",
        postprocess_match_threshold=1.1,
        batch_size=3,
        verbose=0,
    ).object_prediction_list
    boxes = sorted(tuple(each.bbox.to_xyxy()) for each in found)
    assert len(boxes) == len(expected) > 3
    np.testing.assert_allclose(boxes, sorted(expected), atol=1e-3)


def test_a_model_must_be_given():
    with pytest.raises(DataError, match="give model_path"):
        SahiModel(device="cpu")


def test_masks(tiny_model, picture):
    model = with_masks(tiny_model)
    expected = model.predict(picture, score=SCORE)
    sahi_model = SahiModel(model=model, device="cpu", confidence_threshold=SCORE)
    assert sahi_model.has_mask
    found = get_prediction(str(picture), sahi_model).object_prediction_list
    assert len(found) == len(expected)
    for each, mask in zip(found, expected.masks, strict=True):
        theirs = torch.from_numpy(each.mask.bool_mask)
        assert (theirs & mask).sum() >= 0.9 * (theirs | mask).sum()  # SAHI's are polygons
