"""Means, spreads and paired differences, by hand."""

import statistics

import pytest

from lgd.gain.curves import draw_curves
from lgd.gain.numbers import equal_time, make_rows, measure_gain
from lgd.gain.study import EQUAL_TIME, Run


def run(method, seed, steps=100):
    return Run("coco:a/b:train", "demo", method, steps, seed)


def outcome(ap, seconds=1.0, **others):
    curve = [[50, ap / 2], [100, ap]]
    return {"AP": ap, "AP50": 2 * ap, "seconds": seconds, "memory": 10 * ap, "curve": curve, **others}


RESULTS = {
    run("plain", 1): outcome(30.0),
    run("plain", 2): outcome(32.0),
    run("plain", 3): outcome(10.0),  # without a partner
    run("lgd", 1): outcome(31.0, seconds=1.5, **{"teacher AP": 60.0}),
    run("lgd", 2): outcome(36.0, seconds=1.5, **{"teacher AP": 70.0}),
    run("teacher", 1, 200): outcome(99.0),
}


def test_rows():
    plain, lgd = make_rows(RESULTS, {})
    assert (plain.method, plain.runs, plain.ap, plain.gain) == ("plain", 3, 24.0, None)
    assert lgd.sd == pytest.approx(statistics.stdev([31.0, 36.0]))
    assert (lgd.ap, lgd.ap50, lgd.others, lgd.seconds, lgd.memory) == (
        33.5,
        67.0,
        {"teacher AP": 65.0},
        1.5,
        335,
    )
    assert (lgd.gain.mean, lgd.gain.pairs) == (2.5, 2)  # of 1 and 4
    assert (lgd.gain.low, lgd.gain.high) == (1.0, 4.0)
    assert lgd.curve == [(50, 16.75), (100, 33.5)]


def test_one_run_has_no_spread():
    (row,) = make_rows({run("lgd", 1): outcome(30.0)}, {})
    assert (row.sd, row.gain) == (None, None)


def test_the_interval_is_of_means_of_what_is_drawn():
    gain = measure_gain([1.0, 1.0, 1.0, 5.0])
    assert gain.mean == 2.0
    assert gain.low == 1.0  # none of four is the 5 in 32 % of the draws
    assert gain.high == 4.0  # three of four in 4.7 %, all in 0.4 %
    assert measure_gain([2.0]).low is None


def test_equal_time_is_compared_with_the_plain_detector_of_the_same_steps():
    longer = equal_time(run("lgd", 1), RESULTS)
    assert longer == run(EQUAL_TIME, 1, 150)
    assert equal_time(run("lgd", 3), RESULTS) is None
    *_, row = make_rows({**RESULTS, longer: outcome(33.0)}, {longer: 100})
    assert (row.method, row.steps, row.gain.mean) == (EQUAL_TIME, 150, 3.0)


def test_curves():
    picture = draw_curves({"plain": [(0, 10.0), (100, 30.0)], "a < b": [(100, 29.0)]}, "cells")
    assert picture.count("<polyline") == 2
    assert 'points="52.0,' in picture  # the first step stands at the left edge
    assert "a &lt; b" in picture
    assert ">10<" in picture
    assert ">30<" in picture
