"""`lgd bench`: what it measures with, and its report."""

import json

import pytest
import torch
from PIL import Image

from lgd import cli
from lgd.bench.command import DISTILLED, STUDENT, describe, limit, recipe_canvas
from lgd.bench.machine import count_flops, matrix_ceiling, peak_memory, reset_peak_resident, take_turns
from lgd.bench.pictures import write_pictures
from lgd.bench.step import make_batch, make_step
from lgd.config.load import load_config
from lgd.data.coco import load_coco
from tests.training import REPOSITORY, SMALL

CPU = torch.device("cpu")
DEMO = REPOSITORY / "configs/demo.yaml"


def settings(**changes):
    values = {**SMALL, "NUM_CLASSES": 3, **{key.replace("__", "."): value for key, value in changes.items()}}
    return [str(item) for pair in values.items() for item in pair]


def test_flops_of_a_product():
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    assert count_flops(lambda: a @ b) == 2 * 3 * 4 * 5


def test_ceiling_is_a_speed():
    assert matrix_ceiling(CPU, torch.float32, side=64) > 0


@pytest.mark.skipif(not reset_peak_resident(), reason="the system does not tell a process's peak memory")
def test_peak_memory_counts_what_was_freed_again():
    megabytes = 64

    def use_some():
        torch.ones(megabytes * 2**20 // 4).sum()

    assert megabytes * 2**20 * 0.9 < peak_memory(use_some, CPU) < megabytes * 2**20 * 1.5
    assert peak_memory(lambda: None, CPU) < 2**22


def test_turns_are_taken_and_the_first_are_left_out():
    calls = []

    def run(name, durations):
        calls.append(name)
        return durations.pop(0)

    a, b = [100.0, 1.0, 3.0, 2.0], [100.0, 5.0, 5.0, 7.0]
    runs = {"a": lambda: run("a", a), "b": lambda: run("b", b)}
    assert take_turns(runs, num_turns=3, num_warm_up=1) == {"a": 2.0, "b": 5.0}
    assert calls == ["a", "b"] * 4


def test_batch():
    batch = make_batch(2, 64, 96, num_boxes=3, num_classes=4, device=CPU, with_masks=True)
    assert batch.images.shape == (2, 3, 64, 96)
    boxes = batch.targets.boxes
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([96, 64, 96, 64])).all()
    assert (boxes[..., 2:] > boxes[..., :2]).all()
    assert batch.targets.labels.max() < 4
    edges = batch.targets.outlines.edges
    corners = edges[..., :2]
    torch.testing.assert_close(torch.cat([corners.amin(dim=2), corners.amax(dim=2)], dim=-1), boxes)
    torch.testing.assert_close(edges[:, :, :-1, 2:], edges[:, :, 1:, :2])


def test_step_counts_and_changes_nothing_of_note():
    cfg = load_config(DEMO, settings())
    step = make_step(cfg, make_batch(1, 64, 64, num_boxes=2, num_classes=3, device=CPU), CPU)
    flops, peak = step.weigh()
    parameters = sum(p.numel() * p.element_size() for p in step.model.parameters())
    assert flops > 1e6
    assert step.resident_bytes() > 2 * parameters  # AdamW keeps two numbers for each that trains
    assert peak is None or peak > step.resident_bytes()


def test_a_step_of_two_stages_is_the_same_every_time_and_has_the_students_regions():
    recipe = REPOSITORY / "configs/faster_rcnn/r50_1x_ms_lgd.yaml"
    batch = make_batch(1, 64, 64, num_boxes=2, num_classes=3, device=CPU)
    losses = []
    for distilled in (False, True):
        changes = {"MODEL__WEIGHTS": "", "MODEL__DISTILLATOR__ENABLED": distilled}
        step = make_step(load_config(recipe, settings(**changes)), batch, CPU)
        for _ in range(2):
            torch.manual_seed(0)
            losses.append({name: loss.item() for name, loss in step.compute_losses().items()})
            step.take()
    alone, again, taught, taught_again = losses
    assert alone == again
    assert taught == taught_again
    assert {name: taught[name] for name in alone} == alone


def test_pictures_load_as_a_data_set(tmp_path):
    path = write_pictures(tmp_path, "train", num_images=4, num_boxes=2)
    index = load_coco(path, tmp_path / "train", name="pictures")
    assert (len(index), int(index.counts.sum()), index.warnings) == (4, 8, ())
    with Image.open(index.path(3)) as image:
        assert image.size == (480, 640)
    assert 100_000 < index.path(0).stat().st_size < 200_000


def test_canvas_of_a_recipe():
    cfg = load_config(REPOSITORY / "configs/retinanet/r50_2x_ms_lgd.yaml")
    assert recipe_canvas(cfg) == (800, 1088)


FIGURES = {
    "machine": {"device": "abacus", "lgd": "1", "torch": "2", "python": "3"},
    "recipe": "r.yaml",
    "batch": 2,
    "size": [64, 64],
    "recipe_batch": 4,
    "recipe_size": [128, 64],
    "boxes": 7,
    "dtype": "float32",
    "steps": {
        name: {
            "seconds": seconds,
            "images_per_second": 2 / seconds,
            "tflops": 1.0,
            "share_of_ceiling": 0.5,
            "peak_bytes": 2**20,
        }
        for name, seconds in ((STUDENT, 0.1), (DISTILLED, 0.2))
    },
    "loader_images_per_second": 3.0,
    "loader_source": "pictures",
    "num_workers": 1,
    "num_cores": 8,
    "on_cpu": False,
}


def test_report():
    text = "\n".join(describe(FIGURES))
    assert "--batch 4 --size 128 64 measures that" in text
    assert "with LGD  0.200      10.0        2.00" in text


def test_what_limits():
    # 10 images/s of half the recipe's area are 5 of its.
    assert "limited by data: the step asks for 5.0 images/s" in limit(FIGURES)
    assert limit(FIGURES).endswith("give at most 3.0; 2 would do")
    assert "limited by compute" in limit({**FIGURES, "num_workers": 2})
    assert "limited by data" in limit({**FIGURES, "num_workers": 2, "num_cores": 1})


def test_lines_for_programs(monkeypatch, capsys):
    monkeypatch.setattr("lgd.bench.command._measure", lambda cfg, arguments: FIGURES)
    assert cli.main(["bench", "--config-file", str(DEMO), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"event": "result", **FIGURES}
    assert "limited by" in err


def test_a_file_that_cannot_be_written_is_known_before_the_measuring(monkeypatch, capsys):
    monkeypatch.setattr("lgd.bench.command._measure", lambda cfg, arguments: pytest.fail("it measures"))
    assert cli.main(["bench", "--config-file", str(DEMO), "--json", "/proc/b.json"]) == 2
    assert capsys.readouterr().err == "error: No such file or directory: /proc/b.json\n"


def test_command(tmp_path, capsys):
    arguments = ["--config-file", str(DEMO), "--size", "64", "64", "--batch", "1", "--seconds", "0.1"]
    assert cli.main(["bench", *arguments, "--json", str(tmp_path / "b.json"), *settings()]) == 0
    printed = capsys.readouterr().out
    assert "with LGD" in printed
    assert "limited by" in printed
    assert set(json.loads((tmp_path / "b.json").read_text())["steps"]) == {STUDENT, DISTILLED}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", "none.yaml"], "none.yaml"),
        (["--size", "60", "64"], "multiples of 32"),
        (["--boxes", "0"], "at least 1"),
    ],
)
def test_what_the_user_gets_wrong(arguments, message, capsys):
    try:
        code = cli.main(["bench", *arguments])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert message in capsys.readouterr().err
