"""The tables of docs/scaling.md are those that benchmarks/comm.py computes."""

import math

from benchmarks import comm
from tests.training import REPOSITORY

PAGE = (REPOSITORY / "docs/scaling.md").read_text()


def test_the_page_lists_every_model_of_the_recipes():
    rows = [line.split(" | ")[0].removeprefix("| ") for line in PAGE.splitlines() if line.startswith("| ")]
    assert [name for name in comm.recipes() if name not in rows] == []


def test_gradients_of_some_models():
    lines = comm.gradient_table(["fcos r50", "retinanet r50 lgd", "mask_rcnn swin t lgd"])
    assert "\n".join(lines[:2]) in PAGE
    assert [line for line in lines if line not in PAGE] == []


def test_a_frozen_backbone_is_not_sent():
    plain = comm.count_gradients(comm.CONFIGS / "retinanet/r50_2x_ms.yaml")
    distilled = comm.count_gradients(comm.CONFIGS / "retinanet/r50_2x_ms_lgd.yaml")
    assert plain.frozen_bytes == plain.bytes
    assert plain.frozen_share == 0
    # ResNet-50 without its classifier has 23.5 M parameters, of which stem and res2 stay frozen here anyway.
    assert 4 * 23.0e6 < distilled.bytes - distilled.frozen_bytes < 4 * 23.5e6
    assert math.isclose(distilled.frozen_share, 1 / 9)


def test_step_seconds():
    assert comm.step_seconds(10**9, 1, 100, 0.3) == 0.3
    # 16 ranks: 1.875 GB at 10 GB/s usable are 187.5 ms, of which 160 ms hide behind 2/3 of 240 ms.
    assert math.isclose(comm.step_seconds(10**9, 2, 100, 0.24), 0.24 + 0.1875 - 0.16)
    # All hidden but the last bucket of 25 MiB.
    assert math.isclose(comm.step_seconds(10**9, 2, 100, 3.0), 3.0 + 1.875 * 25 * 2**20 / 1e10)
    assert math.isclose(comm.step_seconds(10**6, 2, 100, 3.0), 3.0 + 1.875e6 / 1e10)


def test_step_times_of_the_page():
    for recipe, alone_seconds in comm.EXAMPLES.items():
        gradients = comm.count_gradients(comm.CONFIGS / recipe)
        assert "\n".join(comm.time_table(gradients.bytes, alone_seconds)) in PAGE
