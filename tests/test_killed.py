"""Whatever is trained, on one rank or two: a run that is killed goes on to the weights of one that is not."""

import signal

import pytest

from lgd import train
from tests.forked import Forked
from tests.test_resume import assert_same_run, kill_ranks_when, run_ranks
from tests.training import REPOSITORY, small_settings

DEMO = str(REPOSITORY / "configs/demo.yaml")
AUGMENTATIONS = (
    "[{NAME: mosaic, PROBABILITY: 0.5}, {NAME: copy_paste, PROBABILITY: 0.5}, {NAME: color_jitter}, "
    "{NAME: quarter_turn}, {NAME: cut_out}]"
)
TRAININGS = {
    "PKD": {"method": "PKD"},
    "LGD and PKD": {"method": "LGD+PKD"},
    "CrossKD": {"method": "CrossKD"},
    "GFL": {"MODEL__META_ARCHITECTURE": "GFL"},
    "embedded classes": {"MODEL__DISTILLATOR__LABEL_ENCODER__CATEGORY_FORMAT": "embedding"},
    "augmentations": {"INPUT__AUGMENTATIONS": AUGMENTATIONS},
    "bfloat16": {"SOLVER__AMP__ENABLED": True},
}


@pytest.fixture(scope="module")
def teacher(small_data, tmp_path_factory):
    """A plain detector, trained for some steps."""
    output = tmp_path_factory.mktemp("teacher")
    settings = small_settings(small_data, output, MODEL__DISTILLATOR__ENABLED=False, SOLVER__MAX_ITER=3)
    assert train.main(["--config-file", DEMO, *settings]) == 0
    return output / "model_final.pth"


def settings_of(data, output, teacher, method=None, **changes):
    output.mkdir()
    if method is not None:
        changes["MODEL__DISTILLATOR__METHOD"] = method
        changes["MODEL__DISTILLATOR__TEACHER__WEIGHTS"] = teacher
    return small_settings(data, output, TEST__VIS_IMAGES=0, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("changes", TRAININGS.values(), ids=TRAININGS)
def test_killed_and_resumed_it_is_bit_equal(small_data, tmp_path, teacher, changes, ranks):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    settings = settings_of(small_data, straight, teacher, **changes)
    again = settings_of(small_data, killed, teacher, **changes)
    at = killed / "metrics.jsonl", '"iteration": 6, "total_loss"'
    if ranks == 2:
        run_ranks(settings, straight)
        kill_ranks_when(again, killed, *at)
        run_ranks(again, killed, "--resume")
    else:
        assert Forked(settings, log=straight / "out").wait() == 0
        run = Forked(again, log=killed / "out")
        run.wait_for(*at)
        run.signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
        assert Forked(again, "--resume", log=killed / "out").wait() == 0
    assert_same_run(straight, killed)
