"""TEST.PATIENCE: when a training ends early, what it says, and how it goes on."""

import json
import os
import shutil
import signal

import pytest

from lgd import exits, train
from lgd.engine.checkpoint import load_newest
from lgd.run import evaluations
from lgd.run.best import find_best, is_over, wait_on
from tests.forked import Forked, start_ranks
from tests.test_resume import assert_same_run, run_ranks
from tests.training import REPOSITORY, read_metrics, small_settings

DEMO = str(REPOSITORY / "configs/demo.yaml")
APS = {2: 10.0, 4: 20.0, 6: 20.4, 8: 19.0, 10: 30.0, 12: 1.0}
"""By the steps done."""


def test_an_evaluation_counts_unless_it_is_better_by_enough():
    patience = {}
    seen = []
    for value in (None, 10.0, 10.4, 10.5, None, 10.9, 11.0):
        patience = wait_on(patience, "AP", value, 0.5)
        seen.append((patience.get("AP"), patience.get("evaluations")))
    assert seen == [(None, None), (10, 0), (10, 1), (10.5, 0), (10.5, 1), (10.5, 2), (11.0, 0)]
    assert wait_on({"mMR": 50.0, "evaluations": 3}, "mMR", 49.0, 0.0) == {"mMR": 49.0, "evaluations": 0}
    assert wait_on({"AP": 50.0, "evaluations": 3}, "AP50", 49.0, 0.0) == {"AP50": 49.0, "evaluations": 0}


def test_patience_has_an_end():
    assert not is_over({}, 2)
    assert not is_over({"AP": 1.0, "evaluations": 1}, 2)
    assert is_over({"AP": 1.0, "evaluations": 2}, 2)
    assert not is_over({"AP": 1.0, "evaluations": 9}, 0)


def test_the_better_of_both():
    def results(student, ema):
        return {"val": {"student": {"bbox": {"AP": student, "mMR": student}}, **ema}, "other": {}}

    def average(value):
        return {"ema": {"bbox": {"AP": value, "mMR": value}}}

    assert find_best(results(30.0, {}), "AP") == ("student", 30.0)
    assert find_best(results(30.0, average(30.0)), "AP") == ("student", 30.0)
    assert find_best(results(30.0, average(31.0)), "AP") == ("ema", 31.0)
    assert find_best(results(30.0, average(31.0)), "mMR") == ("student", 30.0)
    assert find_best(results(None, average(31.0)), "AP") == ("ema", 31.0)
    assert find_best({"val": {"student": {"bbox": None}, "ema": {"bbox": None}}}, "AP") == ("ema", None)
    assert find_best({}, "AP") == find_best(None, "AP") == ("ema", None)


def tell_aps():
    """Let the student have the APs of the table after its steps."""
    score_job, evaluate = evaluations.score_job, evaluations.Evaluator.evaluate
    step = [0]

    def evaluate_and_note(self, steps, metrics):
        step[0] = steps
        return evaluate(self, steps, metrics)

    def score_as_told(job):
        scores = score_job(job)
        scores["student"]["bbox"]["AP"] = APS[step[0]]
        return scores

    evaluations.Evaluator.evaluate, evaluations.score_job = evaluate_and_note, score_as_told


def settings_of(data, output, patience, **changes):
    return small_settings(
        data, output, TEST__EVAL_PERIOD=2, TEST__PATIENCE=patience, TEST__MIN_DELTA=0.5, TEST__VIS_IMAGES=0,
        **changes,
    )  # fmt: skip


def run_alone(settings, log, *flags, before=tell_aps):
    run = Forked(settings, *flags, log=log, before=before)
    return run.wait(), run.log.read_text()


def evaluated(output):
    return [line["iteration"] for line in read_metrics(output) if "eval" in line]


WHY = "stopped at step 8 of 12: AP has not been better than 20.00 in 2 evaluations (TEST.PATIENCE)"


@pytest.fixture(scope="module")
def stopped(small_data, tmp_path_factory):
    output = tmp_path_factory.mktemp("stopped") / "run"
    code, text = run_alone(settings_of(small_data, output, 2), output.parent / "out")
    assert code == exits.DONE, text
    assert WHY in text
    return output


def test_it_stops_and_says_why(stopped):
    assert evaluated(stopped) == [2, 4, 6, 8]
    state = load_newest(stopped / "checkpoints")
    assert (state.step, state.state["patience"]) == (8, {"AP": 20.0, "evaluations": 2})
    assert state.state["best"] == {"AP": 20.4, "step": 6}, "any better one is kept"
    assert (stopped / "model_final.pth").exists()
    (results,) = json.loads((stopped / "results.json").read_text()).values()
    assert results["student"]["bbox"]["AP"] == 19.0
    end = json.loads((stopped / "history.jsonl").read_text().splitlines()[-1])
    assert (end["outcome"], end["message"]) == ("finished", WHY)


def test_a_stopped_training_does_not_go_on_unless_there_is_more_patience(small_data, tmp_path, stopped):
    output = shutil.copytree(stopped, tmp_path / "run")
    code, text = run_alone(settings_of(small_data, output, 2), tmp_path / "out", "--resume")
    assert code == exits.DONE
    assert "nothing left to train" in text
    assert WHY in text
    assert evaluated(output) == [2, 4, 6, 8]
    code, text = run_alone(settings_of(small_data, output, 3), tmp_path / "out", "--resume")
    assert code == exits.DONE
    assert evaluated(output) == [2, 4, 6, 8, 10, 12]
    assert load_newest(output / "checkpoints").state["patience"] == {"AP": 30.0, "evaluations": 1}
    straight = tmp_path / "straight"
    assert run_alone(settings_of(small_data, straight, 3), tmp_path / "other")[0] == exits.DONE
    assert_same_run(straight, output)


def kill_after_step_seven():
    tell_aps()
    after_step = evaluations.TrainingEvaluations.after_step

    def after_step_and_die(self, leaves):
        after_step(self, leaves)
        if self._state.step == 7:
            os.kill(os.getpid(), signal.SIGKILL)

    evaluations.TrainingEvaluations.after_step = after_step_and_die


def test_killed_and_resumed_it_stops_at_the_same_step(small_data, tmp_path, stopped):
    settings = settings_of(small_data, tmp_path, 2)
    code, _ = run_alone(settings, tmp_path / "out", before=kill_after_step_seven)
    assert code == -signal.SIGKILL
    code, text = run_alone(settings, tmp_path / "out", "--resume")
    assert (code, WHY in text) == (exits.DONE, True)
    assert_same_run(stopped, tmp_path)


@pytest.mark.slow
def test_two_ranks_stop_together(small_data, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for folder in (straight, killed):
        folder.mkdir()
    assert WHY in run_ranks(settings_of(small_data, straight, 2), straight, before=tell_aps)
    settings = settings_of(small_data, killed, 2)
    ranks = start_ranks(settings, folder=killed, before=kill_after_step_seven)
    assert ranks[0].wait() == -signal.SIGKILL
    ranks[1].wait()
    assert WHY in run_ranks(settings, killed, "--resume", before=tell_aps)
    assert_same_run(straight, killed)


def test_patience_needs_something_to_wait_for(small_data, tmp_path, capsys):
    settings = settings_of(small_data, tmp_path / "run", 2, DATASETS__TEST="()")
    assert train.main(["--config-file", DEMO, *settings]) == exits.USER_ERROR
    assert "TEST.PATIENCE 2 needs a first test set with annotations" in capsys.readouterr().err


@pytest.mark.slow
def test_metrics_do_not_depend_on_patience_that_lasts(small_data, tmp_path):
    """Scored at once or beside the training, the same is written."""
    for folder, patience in (("without", 0), ("with", 100)):
        settings = settings_of(small_data, tmp_path / folder, patience, SOLVER__MAX_ITER=6)
        assert run_alone(settings, tmp_path / "out", before=None)[0] == exits.DONE
    assert_same_run(tmp_path / "without", tmp_path / "with")
