"""`lgd gain`: what it says and writes, with trainings made up; and once with real ones."""

import json
import signal
import sys
import time

import pytest

from lgd import cli
from lgd.gain import command
from lgd.gain.training import SUMMARY, TrainingError
from tests.training import SMALL, start_program

AP = {"plain": 30.0, "lgd": 28.0, "fixed": 31.0, "plain-equal-time": 30.5}


@pytest.fixture
def trained(monkeypatch):
    """Runs that were trained, none of them in truth."""
    runs = []

    def train(run, options, folder, threads):
        runs.append(run)
        if run.seed == 2 and run.method == "fixed":
            raise TrainingError("a fault", 1)
        if run.seed == 3:
            raise TrainingError("a setting", 2)
        if run.seed == 4:
            raise TrainingError("plain ended with code 75", 75)
        ap = AP[run.method] + run.seed
        curve = [[run.steps // 2, ap / 2], [run.steps, ap]]
        seconds = 0.1 if run.method == "plain" else 0.15
        return {"AP": ap, "AP50": 80.0, "seconds": seconds, "memory": 100.0, "curve": curve}

    monkeypatch.setattr(command, "train", train)
    return runs


@pytest.fixture
def run_gain(small_data, tmp_path):
    """Runs the command over data called cells."""
    (tmp_path / "cells").symlink_to(small_data)
    line = f"coco:{tmp_path / 'cells'}:train"
    usual = ["--data", line, "--recipes", "demo", "--steps", "100", "--out", str(tmp_path)]
    return lambda *arguments: cli.main(["gain", *usual, "--json", str(tmp_path / "gain.json"), *arguments])


def test_a_page_and_numbers(tmp_path, run_gain, trained, capsys):
    assert run_gain("--methods", "plain", "lgd", "--equal-time", "lgd", "--seeds", "2") == 0
    assert [run.steps for run in trained] == [100] * 4 + [150] * 2
    page = (tmp_path / "gain.md").read_text()
    row = "| lgd | 100 | 2 | 29.50 (0.71) | -2.00 [-2.00, -2.00] | 80.00 |  | 0.15 | 100 |"
    assert row in page
    assert "| plain-equal-time | 150 | 2 | 32.00 (0.71) | +0.50 [+0.50, +0.50] |" in page
    assert f"lgd gain --data coco:{tmp_path / 'cells'}:train" in page
    assert "(gain-cells-demo-100-steps.svg)" in page
    assert (tmp_path / "gain-cells-demo-100-steps.svg").read_text().count("<polyline") == 2
    numbers = json.loads((tmp_path / "gain.json").read_text())
    assert [run["AP"] for run in numbers["runs"]] == [31.0, 29.0, 32.0, 30.0, 31.5, 32.5]
    assert numbers["about"]["torch"]
    assert row in capsys.readouterr().out


def test_lines_for_programs(run_gain, trained, capsys):
    run_gain("--methods", "plain", "fixed", "--seeds", "2", "--json")
    out, err = capsys.readouterr()
    told = [json.loads(line) for line in out.splitlines()]
    kinds = [each["event"] for each in told if each["event"] != "progress"]
    assert kinds == ["trained", "trained", "trained", "failed", "result"]
    assert [run["AP"] for run in told[-1]["runs"]] == [31.0, 32.0, 32.0]
    assert "| fixed | 100 | 1 |" in err


def test_a_training_that_fails_is_told_and_the_others_count(tmp_path, run_gain, trained, capsys):
    assert run_gain("--methods", "plain", "fixed", "--seeds", "2") == 1
    assert capsys.readouterr().err.endswith("error: 1 training failed, the last: a fault\n")
    page = (tmp_path / "gain.md").read_text()
    assert "| fixed | 100 | 1 | 32.00 | +1.00 (one pair) |" in page
    assert "## Not done\n\n- a fault" in page


def test_a_training_that_was_asked_to_leave_ends_the_study(tmp_path, run_gain, trained, capsys):
    assert run_gain("--methods", "plain", "--seeds", "5") == 75
    assert max(run.seed for run in trained) == 4  # another would only have to leave as well
    said = capsys.readouterr().err
    assert said.endswith("error: plain ended with code 75; the same command goes on with it\n")
    assert "| plain | 100 | 2 |" in (tmp_path / "gain.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--methods", "lgdd"], "--methods 'lgdd': write one of"),
        (["--recipes", "nowhere"], "nowhere"),
        (["--equal-time", "fixed"], "--equal-time needs plain and fixed among --methods"),
        (["--recipes", "demo", "./demo"], "--recipes: two of them are called alike"),
        (["SOLVER.BASE_LRR", "1"], "SOLVER.BASE_LRR is not a setting"),
        (["--test-split", "exam"], "exam"),
        (["SEED", "5"], "SEED: give --seeds in its place"),
        (["OUTPUT_DIR", "x"], "OUTPUT_DIR: give --out in its place"),
        (["--page", "/proc/page.md"], "/proc/page.md"),
        (["--json", "/proc/gain.json"], "/proc/gain.json"),
    ],
)
def test_what_the_user_can_mend_is_told_before_any_training(arguments, says, run_gain, trained, capsys):
    assert run_gain(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert not trained


@pytest.mark.parametrize("text", ["0", "many", "1.5", "-1"])
def test_numbers_that_are_none(text, run_gain, capsys):
    with pytest.raises(SystemExit) as end:
        run_gain(f"--steps={text}")
    assert end.value.code == 2
    assert f"argument --steps: {text!r} is no whole number above 0" in capsys.readouterr().err


def test_failures_that_the_user_can_mend(run_gain, trained, capsys):
    assert run_gain("--methods", "plain", "--seeds", "3") == 2
    assert capsys.readouterr().err.endswith("error: 1 training failed, the last: a setting\n")


def small_study(data, out):
    own = ("INPUT.", "MODEL.RESNETS", "MODEL.FPN", "MODEL.RETINANET", "DATALOADER", "SOLVER.IMS", "LOG")
    options = [str(x) for key, value in SMALL.items() if key.startswith(own) for x in (key, value)]
    return [
        "-m", "lgd.cli", "gain", "--data", f"coco:{data}:train", "--recipes", "demo",
        "--methods", "plain", "fixed", "--steps", "8", "--seeds", "1", "--evaluations", "2",
        "--out", str(out), *options,
    ]  # fmt: skip


@pytest.mark.slow
def test_a_real_study_that_is_stopped_goes_on(small_data, tmp_path):
    study = [sys.executable, *small_study(small_data, tmp_path)]
    process = start_program(study)
    deadline = time.monotonic() + 200
    while not list(tmp_path.rglob("step_*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 75
    first = list(tmp_path.rglob(SUMMARY))
    process = start_program(study)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert any("resumed from" in path.read_text() for path in tmp_path.rglob("log.txt")) or first
    summaries = {path: path.read_bytes() for path in tmp_path.rglob(SUMMARY)}
    assert len(summaries) == 2
    assert "| fixed | 8 | 1 |" in (tmp_path / "gain.md").read_text()
    started = [path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")]
    process = start_program(study)
    process.communicate(timeout=300)
    assert process.returncode == 0
    assert [path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")] == started
    other = start_program([*study, "SOLVER.BASE_LR", "0.1"])
    said, _ = other.communicate(timeout=300)
    assert other.returncode == 2
    assert "was begun with other settings" in said
