"""Checkpoints that are whole, and not what a run can go on from."""

import os
from pathlib import Path

import pytest
import torch

from lgd.engine.checkpoint import Checkpoint, CheckpointError
from lgd.engine.loop import Side, TrainState
from lgd.engine.progress import Progress
from lgd.run.output import OutputFolder
from lgd.run.resume import _load_optimizers
from lgd.run.soundness import require_sound

SOUND = {
    "step": 5,
    "model": {"w": torch.ones(2)},
    "optimizers": {"student": {"state": {}, "param_groups": [{"params": [0], "lr": 0.1}]}},
    "progress": {"names": ["a"], "sums": [], "count": 0, "skipped_images": 0},
    "best": {"AP": 40.0, "step": 3},
    "config": {"SOLVER.REFERENCE_WORLD_SIZE": 0, "SOLVER.IMS_PER_BATCH": 4},
    "classes": {"names": ["cat"], "category_ids": [1]},
    "seed": 3,
    "share": {"world_size": 1, "accumulate_steps": 1, "asked_steps": 1},
}


def checkpoint(**changes):
    return Checkpoint(Path("step_0000005.pth"), 5, {**SOUND, **changes})


def test_a_sound_one():
    require_sound(checkpoint())
    for value in ("auto", [0, 4095], (0.0, 1.0)):
        require_sound(checkpoint(config=SOUND["config"] | {"INPUT.RANGE": value}))
    require_sound(checkpoint(best={}, share=None, data=None, unwritten_metrics=["a\n"], data_changes=[{}]))


@pytest.mark.parametrize(
    ("part", "value"),
    [
        *(("step", 6), ("step", None), ("model", None), ("model", {"w": 1}), ("optimizers", [])),
        *(("optimizers", {"student": {}}), ("progress", {}), ("best", {"AP": "x", "step": 1})),
        *(("best", {"AP": 10**400, "step": 1}), ("best", None), ("config", {}), ("classes", None)),
        *(("classes", {"names": ["a", "b"], "category_ids": [1]}), ("seed", -1), ("seed", True)),
        *(("share", {"world_size": 0}), ("data", {}), ("data", {"train": [], "test": []})),
        *(("unwritten_metrics", [1]), ("data_changes", 5)),
        *(("config", SOUND["config"] | {"INPUT.RANGE": value}) for value in (1.5, (2,), "a", (9, 3), None)),
        ("config", SOUND["config"] | {3: "INPUT.RANGE"}),
    ],
)
def test_the_part_that_is_not_is_named(part, value):
    with pytest.raises(CheckpointError, match=rf"step_0000005\.pth is not as this version .*\({part}\)"):
        require_sound(checkpoint(**{part: value}))


def state_with(optimizer):
    model = torch.nn.Linear(2, 2)
    side = Side("student", optimizer(model.parameters(), lr=0.1), None)
    return TrainState(model, [side], Progress(torch.device("cpu")))


def test_another_optimizer_than_before():
    saved = {**SOUND, **state_with(torch.optim.SGD).state_dict()}
    _load_optimizers(state_with(torch.optim.SGD), checkpoint(**saved))
    with pytest.raises(CheckpointError, match=r"another optimizer of the student; keep SOLVER\.OPTIMIZER"):
        _load_optimizers(state_with(torch.optim.AdamW), checkpoint(**saved))
    saved["optimizers"]["student"]["param_groups"][0]["params"] = [0]
    with pytest.raises(CheckpointError, match="its optimizers do not fit the model: loaded state dict"):
        _load_optimizers(state_with(torch.optim.SGD), checkpoint(**saved))


def test_other_things_in_the_place_of_a_runs_files(tmp_path):
    output = OutputFolder(tmp_path)
    assert output.find_misplaced() == []
    (tmp_path / "teacher").mkdir()
    (tmp_path / "log.txt").touch()
    assert output.find_misplaced() == []
    (tmp_path / "checkpoints").touch()
    (tmp_path / "config.yaml").mkdir()
    os.mkfifo(tmp_path / "history.jsonl")
    (tmp_path / "metrics.jsonl").symlink_to("metrics.jsonl")
    assert output.find_misplaced() == ["checkpoints", "config.yaml", "metrics.jsonl", "history.jsonl"]
