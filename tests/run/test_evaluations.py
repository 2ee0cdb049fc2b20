"""Trainings whose evaluations are scored beside: the same files whenever a score comes, and after a kill."""

import errno
import json
import os
import re
import signal
from functools import cache, partial
from itertools import product

import pytest
import torch

from lgd import exits, train
from lgd.engine.checkpoint import load_newest
from lgd.run import evaluations
from lgd.run.scoring import ScoringProcess, score_and_write
from tests.forked import Forked, start_ranks
from tests.test_resume import assert_same_run
from tests.training import REPOSITORY, read_metrics, small_settings

DEMO = str(REPOSITORY / "configs/demo.yaml")
PERIODS = {
    "together": {"TEST__EVAL_PERIOD": 4, "SOLVER__CHECKPOINT_PERIOD": 4},
    "apart": {"TEST__EVAL_PERIOD": 4, "SOLVER__CHECKPOINT_PERIOD": 3},
    "often": {"TEST__EVAL_PERIOD": 2, "SOLVER__CHECKPOINT_PERIOD": 3},
}


def settings_of(small_data, output, periods):
    return small_settings(small_data, output, LOG_PERIOD=1, **PERIODS[periods])


class PatientProcess:
    """In place of the process: scores when it is asked for, and is ready after some questions."""

    questions = 0

    def __init__(self):
        self.jobs = None

    def submit(self, jobs):
        assert self.jobs is None, "one evaluation at a time"
        self.jobs, self.left = jobs, self.questions

    def is_ready(self, seconds=0.0):
        self.left -= 1
        return self.left < 0

    def result(self):
        jobs, self.jobs = self.jobs, None
        return [score_and_write(job) for job in jobs]

    def find_death(self):
        return None

    def close(self):
        pass


def at_once(evaluate):
    def evaluate_and_wait(self):
        evaluate(self)
        self.finish()

    return evaluate_and_wait


def read_run(output):
    """All that a run leaves and that does not depend on the machine's speed."""
    checkpoint = load_newest(output / "checkpoints").state
    inference = sorted((output / "inference").rglob("*.json"))
    return {
        "metrics": read_metrics(output),
        "results": json.loads((output / "results.json").read_text()),
        "best": checkpoint["best"],
        "owes": checkpoint["owes_evaluation"],
        "predictions": [path.read_text() for path in inference],
    }


def best_model(output):
    return torch.load(output / "model_best.pth", weights_only=True)["model"]


def assert_same_files(one, other):
    assert read_run(one) == read_run(other)
    assert_same_run(one, other)
    expected, got = best_model(one), best_model(other)
    assert all(torch.equal(value, got[name]) for name, value in expected.items())


@pytest.fixture(scope="module")
def scored_at_once(small_data, tmp_path_factory):
    """Output folders of runs that wait for every score, by their periods; each made when it is asked for."""
    folder = tmp_path_factory.mktemp("scored_at_once")

    @cache
    def run(periods):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluations, "ScoringProcess", PatientProcess)
            wait = at_once(evaluations.TrainingEvaluations.evaluate)
            patch.setattr(evaluations.TrainingEvaluations, "evaluate", wait)
            settings = settings_of(small_data, folder / periods, periods)
            assert train.main(["--config-file", DEMO, *settings]) == 0
        return folder / periods

    return run


BY_DEFAULT = {(1, "often"), (100, "together")}


@pytest.mark.parametrize(
    ("questions", "periods"),
    [
        pytest.param(*pair, marks=[] if pair in BY_DEFAULT else pytest.mark.slow)
        for pair in product((0, 1, 100), PERIODS)
    ],
)
def test_files_do_not_depend_on_when_a_score_comes(
    small_data, tmp_path, monkeypatch, scored_at_once, periods, questions
):
    monkeypatch.setattr(evaluations, "ScoringProcess", PatientProcess)
    monkeypatch.setattr(PatientProcess, "questions", questions)
    settings = settings_of(small_data, tmp_path, periods)
    assert train.main(["--config-file", DEMO, *settings]) == 0
    assert_same_files(scored_at_once(periods), tmp_path)


def test_training_goes_on_meanwhile(small_data, tmp_path, monkeypatch):
    """Three steps are done, and their progress told, before the score of step 4 is asked for."""
    metrics = tmp_path / "metrics.jsonl"
    seen = []

    class Watching(PatientProcess):
        questions = 2

        def result(self):
            lines = metrics.read_text().splitlines()
            text = (tmp_path / "log.txt").read_text()
            seen.append((len(lines), [f"[{step:>2}/12]" in text for step in (4, 5, 6, 7, 8)]))
            return super().result()

    monkeypatch.setattr(evaluations, "ScoringProcess", Watching)
    settings = settings_of(small_data, tmp_path, "together")
    assert train.main(["--config-file", DEMO, *settings]) == 0
    assert seen == [(4, [True] * 4 + [False]), (9, [True] * 5)]
    assert [line["iteration"] for line in read_metrics(tmp_path)] == [
        *range(1, 5),
        *range(4, 9),
        *range(8, 13),
        12,
    ]


def test_the_real_process(small_data, tmp_path, scored_at_once):
    run = Forked(settings_of(small_data, tmp_path, "together"), log=tmp_path / "out")
    assert run.wait() == 0, run.log.read_text()
    assert_same_files(scored_at_once("together"), tmp_path)


@pytest.mark.slow
def test_two_ranks(small_data, tmp_path, monkeypatch):
    folders = [tmp_path / "beside", tmp_path / "at once"]
    for folder, before in zip(folders, (None, evaluate_at_once), strict=True):
        folder.mkdir()
        ranks = start_ranks(settings_of(small_data, folder, "together"), folder=folder, before=before)
        assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].log.read_text()
    assert_same_files(*folders)


def evaluate_at_once():
    evaluations.ScoringProcess = PatientProcess
    evaluations.TrainingEvaluations.evaluate = at_once(evaluations.TrainingEvaluations.evaluate)


def stop_at(moment, number, step):
    """Let this process get a signal at a moment of the evaluation of a step."""
    kind = evaluations.TrainingEvaluations
    evaluate, take, amend = kind.evaluate, kind._take, evaluations.amend_checkpoint
    report = evaluations.Evaluator.report

    def stop(when, reached):
        if when == moment and reached == step:
            os.kill(os.getpid(), number)

    def after_evaluate(self):
        evaluate(self)
        stop("handed over", self._state.step)

    def around_report(self, reached, *arguments):
        stop("score came", reached)
        results = report(self, reached, *arguments)
        stop("metrics written", reached)
        return results

    def after_take(self, reached, *arguments):
        take(self, reached, *arguments)
        stop("best model written", reached)

    def after_amend(folder, reached, *arguments):
        amend(folder, reached, *arguments)
        stop("checkpoint amended", reached)

    kind.evaluate, kind._take, evaluations.amend_checkpoint = after_evaluate, after_take, after_amend
    evaluations.Evaluator.report = around_report


MOMENTS = ["handed over", "score came", "metrics written", "best model written", "checkpoint amended"]


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_every_moment_of_an_evaluation(small_data, tmp_path, scored_at_once, moment):
    settings = settings_of(small_data, tmp_path, "together")
    before = partial(stop_at, moment, signal.SIGKILL, 4 if moment == "checkpoint amended" else 8)
    run = Forked(settings, log=tmp_path / "out", before=before)
    assert run.wait() == -signal.SIGKILL, run.log.read_text()
    resumed = Forked(settings, "--resume", log=tmp_path / "out")
    assert resumed.wait() == 0, resumed.log.read_text()
    assert_same_files(scored_at_once("together"), tmp_path)


@pytest.mark.parametrize(
    ("periods", "moment"),
    [("together", MOMENTS[0]), pytest.param("apart", MOMENTS[1], marks=pytest.mark.slow)],
)
def test_asked_to_leave_while_a_score_is_missing(small_data, tmp_path, scored_at_once, periods, moment):
    """It is waited for, so that the checkpoint owes nothing."""
    settings = settings_of(small_data, tmp_path, periods)
    before = partial(stop_at, moment, signal.SIGTERM, 4)
    run = Forked(settings, log=tmp_path / "out", before=before)
    assert run.wait() == exits.RUN_AGAIN, run.log.read_text()
    assert not load_newest(tmp_path / "checkpoints").state["owes_evaluation"]
    assert [line["iteration"] for line in read_metrics(tmp_path) if "eval" in line][-1] >= 4
    resumed = Forked(settings, "--resume", log=tmp_path / "out")
    assert resumed.wait() == 0, resumed.log.read_text()
    assert_same_files(scored_at_once(periods), tmp_path)


def kill_after_step_five():
    def after_step(self, leaves):
        if self._state.step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    evaluations.TrainingEvaluations.after_step = after_step


def test_a_checkpoint_whose_evaluation_is_not_scored_owes_it(small_data, tmp_path, scored_at_once):
    settings = settings_of(small_data, tmp_path, "together")
    run = Forked(settings, log=tmp_path / "out", before=kill_after_step_five)
    assert run.wait() == -signal.SIGKILL
    assert load_newest(tmp_path / "checkpoints").step == 4
    state = load_newest(tmp_path / "checkpoints").state
    assert (state["owes_evaluation"], state["best"]) == (True, {})
    assert "eval" not in (tmp_path / "metrics.jsonl").read_text()
    resumed = Forked(settings, "--resume", log=tmp_path / "out")
    assert resumed.wait() == 0, resumed.log.read_text()
    assert_same_files(scored_at_once("together"), tmp_path)


def test_errors_of_scoring_end_the_run(small_data, tmp_path, monkeypatch, capsys):
    class Failing(PatientProcess):
        error = ValueError("the detections name 1 unknown image id (7)")

        def result(self):
            raise self.error

    monkeypatch.setattr(evaluations, "ScoringProcess", Failing)
    settings = settings_of(small_data, tmp_path, "together")
    with pytest.raises(ValueError, match="1 unknown image id"):
        train.main(["--config-file", DEMO, *settings])
    monkeypatch.setattr(Failing, "error", OSError(errno.ENOSPC, "No space left on device", "socket"))
    assert train.main(["--config-file", DEMO, *settings]) == exits.USER_ERROR
    line = "error: No space left on device: socket; step_0000004.pth stays: --resume goes on from step 4\n"
    assert capsys.readouterr().err.endswith(line)


def test_a_process_that_is_killed_ends_the_run(small_data, tmp_path, monkeypatch, capsys):
    class Killed(ScoringProcess):
        def submit(self, jobs):
            os.kill(self.process_id, signal.SIGKILL)
            super().submit(jobs)

    monkeypatch.setattr(evaluations, "ScoringProcess", Killed)
    settings = settings_of(small_data, tmp_path, "together")
    assert train.main(["--config-file", DEMO, *settings]) == exits.FAULT
    text = capsys.readouterr().err
    assert re.fullmatch(
        r"error: the process that scores the detections \(pid \d+\) was killed by SIGKILL; the machine may "
        r"have run out of memory\n",
        text,
    )


def test_another_error_does_not_lose_the_evaluation_before_it(small_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluations, "ScoringProcess", PatientProcess)
    monkeypatch.setattr(PatientProcess, "questions", 100)
    monkeypatch.setattr("lgd.engine.loop.set_lr", set_lr_until_step_six())
    settings = settings_of(small_data, tmp_path, "apart")
    assert train.main(["--config-file", DEMO, *settings, "SOLVER.CHECKPOINT_PERIOD", "20"]) == 2
    assert "non-finite loss at step 6" in capsys.readouterr().err
    lines = read_metrics(tmp_path)
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4, 4, 5, 6]
    assert "eval" in lines[4]
    assert (tmp_path / "model_best.pth").exists()


def set_lr_until_step_six():
    calls = []

    def set_lr(optimizer, lr, multiplier):
        calls.append(lr)
        for group in optimizer.param_groups:
            group["lr"] = lr if len(calls) <= 10 else 1e30

    return set_lr
