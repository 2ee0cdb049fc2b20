"""What a study trains, and by which settings."""

import logging
from pathlib import Path

import pytest

from lgd.config.load import load_config
from lgd.config.values import ConfigError
from lgd.gain.study import METHODS, PLAIN, TEACHER, Run, Study, read_methods, settings_of
from lgd.gain.study import test_line as line_of

LINE = "coco:some/cells:train"


def make_study(methods=(PLAIN, "lgd"), **changes):
    values = {
        "data": (LINE,), "recipes": ("examples/bccd_small",), "methods": read_methods(methods),
        "steps": (300,), "seeds": (1, 2), "folds": 0, "test_split": "val", "evaluations": 3,
        "options": (), "out": Path("out"),
    }  # fmt: skip
    return Study(**{**values, **changes})


def config_of(method, steps=300, recipe="examples/bccd_small", **changes):
    study = make_study([PLAIN, method], **changes)
    run = Run(LINE, recipe, method, steps, seed=4)
    return load_config(recipe, settings_of(run, study, [LINE], ["coco:some/cells:val"]))


def test_what_is_compared_comes_together():
    runs = make_study(steps=(300, 1000), folds=2).runs()
    assert [(run.steps, run.seed, run.fold, run.method) for run in runs][:5] == [
        (300, 1, 0, "plain"),
        (300, 1, 0, "lgd"),
        (300, 1, 1, "plain"),
        (300, 1, 1, "lgd"),
        (300, 2, 0, "plain"),
    ]
    assert len(runs) == len({run.folder(Path("out")) for run in runs}) == 16


def test_a_teacher_is_trained_once_for_all_seeds():
    runs = make_study([PLAIN, "mine=fgfi SOLVER.BASE_LR 0.1", "fgfi", "pkd", "crosskd", "lgd-pkd"]).runs()
    (teacher,) = [run for run in runs if run.method == TEACHER]
    assert (teacher.seed, teacher.steps) == (1, 600)
    for method in ("FGFI", "PKD", "CrossKD", "LGD+PKD"):
        cfg = config_of(method.lower().replace("+", "-"))
        distillator = cfg.model.distillator
        assert distillator.method == method
        assert distillator.teacher.weights == "out/cells/bccd_small/teacher-600-seed1/model_final.pth"
        assert (distillator.pre_nondistill_iters > 0) == (method == "LGD+PKD")


def test_a_schedule_in_proportion():
    cfg = config_of("lgd")  # of 1,200 steps, of which the first 100 don't distill
    assert (cfg.solver.max_iter, cfg.model.distillator.pre_nondistill_iters) == (300, 25)
    assert (cfg.solver.warmup_iters, cfg.test.eval_period, cfg.seed) == (30, 100, 4)
    long = config_of("lgd", steps=270_000, recipe="retinanet/r50_2x_ms_lgd")
    assert long.solver.steps == (180_000, 240_000)
    assert long.model.distillator.pre_freeze_student_backbone_iters == 30_000


def test_a_plain_recipe_gets_the_phases_of_own_data():
    cfg = config_of("lgd", recipe="examples/bccd_lite0", steps=700)
    assert cfg.model.distillator.enabled
    assert cfg.model.distillator.pre_nondistill_iters == 100
    assert cfg.model.distillator.teacher.add_context_box


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_a_recipe(method, caplog):
    cfg = config_of(method)
    assert cfg.model.distillator.enabled == (method not in (PLAIN, "ema"))
    assert cfg.train.ema.enabled == (method == "ema")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    if method == "sssd":
        assert cfg.model.distillator.lambda_steps == (201,)
    if method == "fixed-first":
        assert cfg.model.distillator.head.fixed_iters == 99


def test_the_papers_way_is_the_papers_whatever_a_recipe_says(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("_BASE_: demo\nMODEL:\n  DISTILLATOR: {LOSS: jensen_shannon, HEAD: {MODE: fixed}}\n")
    lgd = config_of("lgd", recipe=str(recipe)).model.distillator
    assert (lgd.head.mode, lgd.loss) == ("shared", "squared")


def test_own_methods_and_options_for_all():
    study = make_study([PLAIN, "weak=ramp MODEL.DISTILLATOR.LAMBDA 0.3"], options=("SOLVER.BASE_LR", "0.5"))
    run = Run(LINE, "demo", "weak", 300, 1)
    cfg = load_config("demo", settings_of(run, study, [LINE], [LINE]))
    lgd = cfg.model.distillator
    assert (lgd.lambda_, lgd.head.ramp_iters, cfg.solver.base_lr) == (0.3, 201, 0.5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lgdd", "write one of plain, ema, lgd"),
        ("mine=other A 1", "write one of plain, ema, lgd"),
        ("teacher=plain", "write one of plain, ema, lgd"),
        ("../x=plain", "write one of plain, ema, lgd"),
        ("mine=lgd MODEL.DISTILLATOR.LAMBDA", "MODEL.DISTILLATOR.LAMBDA has no value"),
        ("mine=lgd SEED 3", "SEED: give --seeds in its place"),
        ("mine=", "write one of plain, ema, lgd"),
        ('mine=lgd "MODEL', "no closing quotation"),
        ("plain=lgd MODEL.DISTILLATOR.LAMBDA 0.3", "there is a method called plain"),
    ],
)
def test_methods_that_there_are_not(text, says):
    with pytest.raises(ConfigError, match=says):
        read_methods([text])


def test_two_methods_of_one_name():
    with pytest.raises(ConfigError, match="there is a method called weak"):
        read_methods(["weak=lgd LOG_PERIOD 1", "weak=lgd LOG_PERIOD 2"])


def test_lines():
    assert line_of("coco:a/b:train", "val") == "coco:a/b:val"
    with pytest.raises(ConfigError, match="write KIND:FOLDER:SPLIT"):
        line_of("a/b", "val")
