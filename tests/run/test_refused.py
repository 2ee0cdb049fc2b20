"""What the disk refuses of the files of a run: said, made up for, and at the end an error."""

import json
import logging

import pytest

from lgd import train
from lgd.engine.checkpoint import CheckpointError, load_newest, save_checkpoint
from lgd.run import evaluations
from lgd.run.output import OutputFolder
from lgd.run.refused import Refused
from tests.training import REPOSITORY, small_settings

DEMO = str(REPOSITORY / "configs/demo.yaml")


class Disk:
    """Refuses some writes of files with this name."""

    def __init__(self, times):
        self.times = times

    def write(self, path, content, index=None):
        self.times -= 1
        if self.times >= 0:
            raise OSError(28, "No space left on device", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(content))


def test_refused_files_are_named_until_they_are_written(tmp_path, caplog):
    refused, disk = Refused(OutputFolder(tmp_path)), Disk(2)
    path = tmp_path / "results.json"
    refused.require_none()
    assert not refused.attempt(path, lambda: disk.write(path, 1))
    assert f"could not write {path}: No space left on device; the run goes on" in caplog.text
    with pytest.raises(
        CheckpointError, match=r"the run is done, but could not write .*results\.json \(No space"
    ):
        refused.require_none()
    for step in (1, 2, 3):
        save_checkpoint(tmp_path / "checkpoints", step, {}, keep=9)
    with caplog.at_level(logging.WARNING):
        assert refused.attempt(path, lambda: disk.write(path, 1))
    assert "step_0000001.pth is given up to make room" in caplog.text
    refused.require_none()
    refused.note(path, "gone")
    with pytest.raises(CheckpointError, match=r"step_0000003\.pth stays: --resume goes on from step 3"):
        refused.require_none()


def run(small_data, output, monkeypatch, name, times):
    """A run for which the disk refuses so many files, by what writes them."""
    disk = Disk(times)
    monkeypatch.setattr(evaluations, name, disk.write)
    settings = small_settings(small_data, output, TEST__EVAL_PERIOD=4, SOLVER__CHECKPOINT_PERIOD=20)
    return train.main(["--config-file", DEMO, *settings])


def test_a_run_whose_last_detections_are_refused_has_all_else(small_data, tmp_path, monkeypatch, capsys):
    assert run(small_data, tmp_path, monkeypatch, "write_predictions", 99) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: the run is done, but could not write ")
    assert "predictions.json (No space left on device), " in line
    assert line.endswith("step_0000012.pth stays: --resume goes on from step 12")
    assert load_newest(tmp_path / "checkpoints").step == 12
    assert (tmp_path / "model_final.pth").exists()
    assert json.loads((tmp_path / "results.json").read_text())
    monkeypatch.undo()
    settings = small_settings(small_data, tmp_path, TEST__EVAL_PERIOD=4, SOLVER__CHECKPOINT_PERIOD=20)
    assert train.main(["--config-file", DEMO, "--resume", *settings]) == 0
    assert list(tmp_path.rglob("predictions.json"))


def test_a_best_model_that_could_not_be_kept_is_not_called_so(small_data, tmp_path, monkeypatch):
    real = evaluations.write_file
    aps, disk = [], Disk(1)

    def write(path, content):
        aps.append(path.name)
        disk.write(tmp_path / "note", "")
        real(path, content)

    monkeypatch.setattr(evaluations, "write_file", write)
    settings = small_settings(small_data, tmp_path, TEST__EVAL_PERIOD=4, SOLVER__CHECKPOINT_PERIOD=20)
    assert train.main(["--config-file", DEMO, *settings]) == 0
    best = load_newest(tmp_path / "checkpoints").state["best"]
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = {
        line["iteration"]: next(iter(line["eval"].values()))["student"]["bbox"]["AP"]
        for line in lines if "eval" in line
    }  # fmt: skip
    assert best["step"] != 4  # the first was the best so far, and is lost
    assert best["AP"] == max(found[8], found[12])
    assert (tmp_path / "model_best.pth").exists()
