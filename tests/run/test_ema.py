"""Runs with a moving average of weights: what is evaluated, what is kept, and after a kill."""

import json
import signal

import pytest
import torch

import lgd
from lgd import train
from lgd.engine.checkpoint import load_newest
from lgd.engine.loop import TrainState
from lgd.ops.averaging import warmed_up_decay
from tests.forked import Forked
from tests.test_resume import assert_same_run, kill_ranks_when, run_ranks
from tests.training import REPOSITORY, read_metrics, small_settings

DEMO = str(REPOSITORY / "configs/demo.yaml")
EMA = {
    "TRAIN__EMA__ENABLED": True,
    "TRAIN__EMA__DECAY": 0.9,
    "TRAIN__EMA__WARMUP_ITERS": 4,
    "TEST__EVAL_PERIOD": 4,
}


def settings_of(data, output, **changes):
    return small_settings(data, output, **{**EMA, **changes})


def average_of(output):
    return load_newest(output / "checkpoints").state["ema"]


def load(path):
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def finished(small_data, tmp_path_factory):
    """A run on one rank, with the student's weights after each of its steps."""
    output = tmp_path_factory.mktemp("ema") / "run"
    trail = []

    def update_and_note(self):
        if not trail:
            trail.append({name: x.clone() for name, x in self.model.student.state_dict().items()})
        update(self)
        trail.append({name: x.clone() for name, x in self.model.student.state_dict().items()})

    update = TrainState.update
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainState, "update", update_and_note)
        assert train.main(["--config-file", DEMO, *settings_of(small_data, output)]) == 0
    return output, trail


def test_the_average_is_the_formulas(finished):
    output, trail = finished
    saved = average_of(output)
    assert saved["num_updates"] == 12
    for name, expected in trail[0].items():
        expected = expected.double()
        for number, weights in enumerate(trail[1:], start=1):
            decay = warmed_up_decay(0.9, number, 4)
            expected = decay * expected + (1 - decay) * weights[name].double()
        torch.testing.assert_close(saved["tensors"][name].double(), expected, rtol=1e-5, atol=1e-7)


def test_it_is_evaluated_beside_student_and_teacher(finished):
    output, _ = finished
    (results,) = json.loads((output / "results.json").read_text()).values()
    assert list(results) == ["student", "teacher", "ema"]
    lines = [line for line in read_metrics(output) if "eval" in line]
    assert [list(next(iter(line["eval"].values()))) for line in lines] == [list(results)] * 3
    assert [path.name for path in sorted(output.glob("inference/*/*"))] == [
        "predictions.json",
        "predictions_ema.json",
        "predictions_teacher.json",
    ]
    assert list((output / "ema").glob("events.out.tfevents.*"))
    log = (output / "log.txt").read_text()
    assert "ema bbox: AP" in log
    assert any(line.split()[1:3] == ["ema", "bbox"] for line in log.splitlines() if line.startswith("coco:"))


def test_detections_are_those_of_the_averaged_weights(finished, small_data, tmp_path):
    """The average put into a file of weights finds, evaluated alone, what it found beside the training."""
    output, _ = finished
    checkpoint = load_newest(output / "checkpoints").state
    averaged = {f"student.{name}": x for name, x in checkpoint["ema"]["tensors"].items()}
    weights = tmp_path / "averaged.pth"
    torch.save({**checkpoint, "model": checkpoint["model"] | averaged}, weights)
    settings = settings_of(small_data, tmp_path / "run", MODEL__WEIGHTS=weights)
    assert train.main(["--config-file", DEMO, "--eval-only", *settings]) == 0
    (alone,), (beside,) = (list(folder.glob("inference/*")) for folder in (tmp_path / "run", output))
    assert (alone / "predictions.json").read_text() == (beside / "predictions_ema.json").read_text()
    assert (alone / "predictions.json").read_text() != (beside / "predictions.json").read_text()


def test_a_checkpoint_is_evaluated_with_both(finished, small_data):
    output, _ = finished
    before = json.loads((output / "results.json").read_text())
    assert (
        train.main(["--config-file", DEMO, "--eval-only", "--resume", *settings_of(small_data, output)]) == 0
    )
    assert json.loads((output / "results.json").read_text()) == before


def value_of(results, model):
    return next(iter(results.values()))[model]["bbox"]["AP"]


def test_the_best_model_is_the_better_of_both(finished):
    output, _ = finished
    found = {line["iteration"]: line["eval"] for line in read_metrics(output) if "eval" in line}
    best = load_newest(output / "checkpoints").state["best"]
    values = {(step, model): value_of(found[step], model) for step in found for model in ("student", "ema")}
    assert best["AP"] == max(values.values())
    file = load(output / "model_best.pth")
    assert values[best["step"], file["chosen"]] == best["AP"]
    final = load(output / "model_final.pth")
    better = "ema" if values[12, "ema"] > values[12, "student"] else "student"
    assert final["chosen"] == better
    checkpoint = load_newest(output / "checkpoints").state
    tensors = {"ema": checkpoint["ema"]["tensors"]}.get(better) or {
        name.removeprefix("student."): x for name, x in checkpoint["model"].items()
    }
    assert all(
        torch.equal(x, tensors[name.removeprefix("student.")])
        for name, x in final["model"].items()
        if name.startswith("student.")
    )


@pytest.mark.parametrize(("winner", "loser"), [("ema", "student"), ("student", "ema")])
def test_either_can_be_the_best(small_data, tmp_path, monkeypatch, winner, loser):
    """And `lgd.load` takes it."""
    from lgd.run import evaluations

    def score_as_told(job):
        scores = score_job(job)
        for model, value in ((winner, 30.0), (loser, 20.0)):
            scores[model]["bbox"]["AP"] = value
        return scores

    score_job = evaluations.score_job
    monkeypatch.setattr(evaluations, "score_job", score_as_told)
    settings = settings_of(small_data, tmp_path, SOLVER__MAX_ITER=3)
    assert train.main(["--config-file", DEMO, *settings]) == 0
    state = load_newest(tmp_path / "checkpoints").state
    averaged = {f"student.{name}": x for name, x in state["ema"]["tensors"].items()}
    expected = state["model"] | (averaged if winner == "ema" else {})
    assert any(not torch.equal(x, state["model"][name]) for name, x in averaged.items())
    for name in ("model_best.pth", "model_final.pth"):
        file = load(tmp_path / name)
        assert file["chosen"] == winner
        assert all(torch.equal(x, expected[name]) for name, x in file["model"].items())
    assert state["best"] == {"AP": 30.0, "step": 3}
    lgd.load(tmp_path, "cpu")


def assert_same_averages(one, other):
    expected, got = average_of(one), average_of(other)
    assert expected["num_updates"] == got["num_updates"]
    assert all(torch.equal(x, got["tensors"][name]) for name, x in expected["tensors"].items())
    assert load(one / "model_best.pth")["chosen"] == load(other / "model_best.pth")["chosen"]


def test_killed_and_resumed_it_is_bit_equal(small_data, tmp_path, finished):
    output, _ = finished
    settings = settings_of(small_data, tmp_path)
    run = Forked(settings, log=tmp_path / "out")
    run.wait_for(tmp_path / "metrics.jsonl", '"iteration": 8, "total_loss"')
    run.signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert Forked(settings, "--resume", log=tmp_path / "out").wait() == 0
    assert_same_run(output, tmp_path)
    assert_same_averages(output, tmp_path)


@pytest.mark.slow
def test_two_ranks_killed_and_resumed_are_bit_equal(small_data, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for folder in (straight, killed):
        folder.mkdir()
    run_ranks(settings_of(small_data, straight), straight)
    settings = settings_of(small_data, killed)
    kill_ranks_when(settings, killed, killed / "metrics.jsonl", '"iteration": 6, "total_loss"')
    run_ranks(settings, killed, "--resume")
    assert_same_run(straight, killed)
    assert_same_averages(straight, killed)


def test_turned_on_by_a_resume_it_begins_there(small_data, tmp_path):
    settings = small_settings(small_data, tmp_path, SOLVER__MAX_ITER=3, TEST__VIS_IMAGES=0)
    assert train.main(["--config-file", DEMO, *settings]) == 0
    assert "chosen" not in load(tmp_path / "model_final.pth")
    changed = settings_of(small_data, tmp_path, SOLVER__MAX_ITER=6, TEST__EVAL_PERIOD=0)
    assert train.main(["--config-file", DEMO, "--resume", *changed]) == 0
    assert average_of(tmp_path)["num_updates"] == 3
