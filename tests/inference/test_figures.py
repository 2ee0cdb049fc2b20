"""Pictures of an evaluation: what stands where."""

import numpy as np
import pytest

from lgd.evaluation.outcome import Confusion, Outcome
from lgd.inference.captions import class_color
from lgd.inference.figures import draw_confusion, draw_outcomes, draw_precision

INK, BLUE, ORANGE = (29, 36, 51), (47, 91, 215), (217, 84, 30)
FALLS = np.linspace(1, 0, 101)


def pixels(picture, color, tolerance=6):
    """(N, 2) rows and columns of the pixels of about this colour."""
    difference = (picture.permute(1, 2, 0).int().numpy() - np.array(color)).__abs__().max(axis=2)
    return np.argwhere(difference <= tolerance)


def test_a_mean_is_drawn_from_corner_to_corner():
    picture = draw_precision({"student": {"cat": FALLS, "cow": FALLS}})
    assert picture.shape == (3, 480, 720)
    inside = [(y, x) for y, x in pixels(picture, INK).tolist() if 70 < x < 500 and 30 < y < 425]
    # From (56, 20) to (510, 434), a thick line.
    assert len(inside) > 900
    assert all(abs((y - 20) - (x - 56) * 414 / 454) < 4 for y, x in inside)


@pytest.mark.parametrize(("number", "are_drawn"), [(20, True), (21, False)])
def test_many_classes_are_drawn_as_their_mean(number, are_drawn):
    curves = {f"class {k}": np.full(101, k / 100) for k in range(number)}
    assert (len(pixels(draw_precision({"student": curves}), class_color(5), 0)) > 400) == are_drawn


def test_a_cell_is_as_dark_as_its_share():
    confusion = Confusion(["cat", "cow", "nothing"], [[95, 0, 5], [0, 0, 7], [3, 0, 0]])
    picture = draw_confusion(confusion)
    assert picture.shape[1] == picture.shape[2]
    right = np.round(255 + (0.08 + 0.87 * 0.95) * (np.array(BLUE) - 255))
    missed = np.round(255 + (0.08 + 0.87 * 1.0) * (np.array(ORANGE) - 255))
    assert len(pixels(picture, right, 1)) > 1500
    (top, left), (below, beside) = (
        pixels(picture, right, 1).min(axis=0),
        pixels(picture, missed, 1).min(axis=0),
    )
    assert below == top + 56  # the row of cows
    assert beside == left  # "nothing" as cats: found where nothing is


def test_classes_without_a_trace_are_left_out():
    counts = np.zeros((5, 5), dtype=int)
    counts[0, 0], counts[3, 4] = 4, 2
    with_all = draw_confusion(Confusion(["a", "b", "c", "d", "nothing"], counts.tolist()))
    without = draw_confusion(Confusion(["a", "d", "nothing"], counts[[0, 3, 4]][:, [0, 3, 4]].tolist()))
    assert np.array_equal(with_all.numpy(), without.numpy())


@pytest.mark.parametrize("number", [1, 90, 1203])
def test_any_number_of_classes_makes_a_picture_that_can_be_shown(number):
    names = [*(f"a rather long name of class {k}" for k in range(number)), "nothing"]
    picture = draw_confusion(Confusion(names, np.eye(number + 1, dtype=int).tolist()))
    assert max(picture.shape) < 1000


def test_a_picture_of_each_model():
    outcome = Outcome({"cat": FALLS}, Confusion(["cat", "nothing"], [[1, 0], [0, 0]]))
    assert list(draw_outcomes({"student": outcome, "ema": outcome})) == [
        "precision_recall",
        "confusion",
        "confusion_ema",
    ]
    nothing = Outcome({}, Confusion(["cat", "nothing"], [[0, 0], [2, 0]]))
    assert "confusion" in draw_outcomes({"student": nothing})
