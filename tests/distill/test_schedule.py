import pytest

from lgd.distill.schedule import DistillSchedule, Phase


@pytest.mark.parametrize(
    ("step", "freeze", "distill"),
    [
        (0, True, False),
        (19_999, True, False),
        (20_000, False, False),
        (29_999, False, False),
        (30_000, False, True),
        (130_000, False, True),
        (130_001, False, False),
        (179_999, False, False),
    ],
)
def test_phases(step, freeze, distill):
    schedule = DistillSchedule(
        pre_nondistill=30_000, post_nondistill=50_000, pre_freeze=20_000, max_iter=180_000
    )
    assert schedule.phase(step) == Phase(freeze_backbone=freeze, distill=distill)


def test_without_a_last_phase_the_last_step_distills():
    schedule = DistillSchedule(pre_nondistill=0, post_nondistill=0, pre_freeze=0, max_iter=10)
    assert {schedule.phase(step) for step in range(10)} == {Phase(freeze_backbone=False, distill=True)}


def shares(**kwargs):
    schedule = DistillSchedule(pre_nondistill=0, post_nondistill=0, pre_freeze=0, max_iter=8, **kwargs)
    return [schedule.phase(step).head_share for step in range(8)]


def test_the_teachers_share_of_the_head():
    assert shares() == [1.0] * 8
    assert shares(head_fixed=8) == [0.0] * 8
    assert shares(head_fixed=3) == [0.0] * 3 + [1.0] * 5
    assert shares(head_ramp=3) == [0.25, 0.5, 0.75] + [1.0] * 5
    assert shares(head_fixed=2, head_ramp=3) == [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_the_weight_steps_up():
    schedule = DistillSchedule(
        pre_nondistill=0, post_nondistill=0, pre_freeze=0, max_iter=8, weight_steps=(3, 6), weight_gamma=2.0
    )
    assert [schedule.phase(step).weight_factor for step in range(8)] == [1, 1, 1, 2, 2, 2, 4, 4]
