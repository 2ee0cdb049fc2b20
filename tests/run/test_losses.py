"""Losses on the test sets: where they are written, and after a kill."""

import json
import os
import signal
from functools import partial

import numpy as np

from lgd import train
from lgd.run.evaluations import TrainingEvaluations
from tests.forked import Forked
from tests.test_resume import assert_same_run
from tests.training import REPOSITORY, read_metrics, small_settings

DEMO = str(REPOSITORY / "configs/demo.yaml")


def settings_of(data, output):
    return small_settings(
        data, output, TEST__LOSSES=True, TEST__EVAL_PERIOD=4, SOLVER__CHECKPOINT_PERIOD=4, TEST__VIS_IMAGES=0
    )


def kill_at(step):
    evaluate = TrainingEvaluations.evaluate

    def evaluate_and_die(self):
        evaluate(self)
        if self._state.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    TrainingEvaluations.evaluate = evaluate_and_die


def test_they_are_written_and_not_twice_after_a_kill(small_data, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert train.main(["--config-file", DEMO, *settings_of(small_data, straight)]) == 0
    settings = settings_of(small_data, killed)
    run = Forked(settings, log=tmp_path / "out", before=partial(kill_at, 8))
    assert run.wait() == -signal.SIGKILL, run.log.read_text()
    assert '"iteration": 8, "eval_losses"' in (killed / "metrics.jsonl").read_text()
    assert Forked(settings, "--resume", log=tmp_path / "out").wait() == 0
    assert_same_run(straight, killed)
    lines = [line for line in read_metrics(straight) if "eval_losses" in line]
    assert [line["iteration"] for line in lines] == [4, 8, 12]
    (models,) = lines[-1]["eval_losses"].values()
    assert list(models) == ["student", "teacher"]
    assert list(models["student"]) == ["total_loss", "loss_cls", "loss_box_reg"]
    assert all(value > 0 for each in models.values() for value in each.values())
    assert "at step 12, teacher: total_loss " in (straight / "log.txt").read_text()
    for model, folder in (("student", straight), ("teacher", straight / "teacher")):
        exact = [next(iter(line["eval_losses"].values()))[model]["total_loss"] for line in lines]
        assert curve_of_total_loss(folder) == np.float32(exact).tolist()


def curve_of_total_loss(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("validation_loss/")]
    (tag,) = (tag for tag in tags if tag.endswith("/total_loss"))
    return [event.value for event in events.Scalars(tag)]


def test_without_labels_there_are_none(small_data, tmp_path):
    content = json.loads((small_data / "annotations/instances_val.json").read_text())
    del content["annotations"]
    (tmp_path / "unlabelled.json").write_text(json.dumps(content))
    settings = settings_of(small_data, tmp_path / "run")
    place = settings.index("DATASETS.TEST") + 1
    settings[place] = f"('coco:{tmp_path}/unlabelled.json:{small_data}/val',)"
    assert train.main(["--config-file", DEMO, *settings, "SOLVER.MAX_ITER", "2"]) == 0
    assert not any("eval_losses" in line for line in read_metrics(tmp_path / "run"))
