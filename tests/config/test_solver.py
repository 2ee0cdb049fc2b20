"""Each side's solver, and scaling to the ranks at hand."""

from __future__ import annotations

import pytest

from lgd.config.keys import flatten, with_values
from lgd.config.load import ConfigError
from lgd.config.schema import Config
from lgd.config.solver import resolve_solver, scale_to_world_size

SIDE = "MODEL.DISTILLATOR.{}.SOLVER.{}"


def test_sides_fall_back_to_the_common_solver() -> None:
    cfg = with_values(Config(), {"SOLVER.BASE_LR": 0.25, "SOLVER.OPTIMIZER": "ADAMW", "SOLVER.STEPS": (3, 4)})
    student, teacher = resolve_solver(cfg, "student"), resolve_solver(cfg, "teacher")
    assert student == teacher
    assert (student.optimizer, student.base_lr, student.steps) == ("ADAMW", 0.25, (3, 4))
    assert (student.momentum, student.weight_decay, student.gamma) == (0.9, 1e-4, 0.1)
    assert (student.lr_scheduler_name, student.warmup_factor) == ("WarmupMultiStepLR", 0.001)
    assert (student.warmup_iters, student.warmup_method) == (1000, "linear")


@pytest.mark.parametrize(("side", "other"), [("student", "teacher"), ("teacher", "student")])
def test_a_sides_own_values_count_for_it_alone_zeros_included(side: str, other: str) -> None:
    own = {"BASE_LR": 0.5, "WARMUP_ITERS": 0, "WEIGHT_DECAY": 0.0, "STEPS": ()}
    cfg = with_values(Config(), {SIDE.format(side.upper(), key): value for key, value in own.items()})
    solver = resolve_solver(cfg, side)  # type: ignore[arg-type]
    assert (solver.base_lr, solver.warmup_iters, solver.weight_decay, solver.steps) == (0.5, 0, 0.0, ())
    assert solver.momentum == 0.9
    assert resolve_solver(cfg, other) == resolve_solver(Config(), "student")  # type: ignore[arg-type]


@pytest.mark.parametrize(("reference", "world_size"), [(0, 4), (8, 8)])
def test_nothing_to_scale(reference: int, world_size: int) -> None:
    cfg = with_values(Config(), {"SOLVER.REFERENCE_WORLD_SIZE": reference})
    assert scale_to_world_size(cfg, world_size) == (cfg, [])


def test_scaling_from_eight_ranks_to_two() -> None:
    before = {
        "SOLVER.REFERENCE_WORLD_SIZE": 8,
        "SOLVER.IMS_PER_BATCH": 16,
        "SOLVER.BASE_LR": 0.01,
        "SOLVER.STEPS": (60_000, 80_000),
        "SOLVER.MAX_ITER": 90_000,
        "SOLVER.WARMUP_ITERS": 1000,
        "SOLVER.CHECKPOINT_PERIOD": 10_000,
        "TEST.EVAL_PERIOD": 10_000,
        SIDE.format("TEACHER", "BASE_LR"): 0.02,
        SIDE.format("TEACHER", "STEPS"): (100,),
        SIDE.format("STUDENT", "WARMUP_ITERS"): 500,
        "MODEL.DISTILLATOR.PRE_NONDISTILL_ITERS": 30_000,
        "MODEL.DISTILLATOR.POST_NONDISTILL_ITERS": 50_000,
        "MODEL.DISTILLATOR.PRE_FREEZE_STUDENT_BACKBONE_ITERS": 20_000,
    }
    after = {
        "SOLVER.REFERENCE_WORLD_SIZE": 2,
        "SOLVER.IMS_PER_BATCH": 4,
        "SOLVER.BASE_LR": 0.0025,
        "SOLVER.STEPS": (240_000, 320_000),
        "SOLVER.MAX_ITER": 360_000,
        "SOLVER.WARMUP_ITERS": 4000,
        "SOLVER.CHECKPOINT_PERIOD": 40_000,
        "TEST.EVAL_PERIOD": 40_000,
        SIDE.format("TEACHER", "BASE_LR"): 0.005,
        SIDE.format("TEACHER", "STEPS"): (400,),
        SIDE.format("STUDENT", "WARMUP_ITERS"): 2000,
        "MODEL.DISTILLATOR.PRE_NONDISTILL_ITERS": 120_000,
        "MODEL.DISTILLATOR.POST_NONDISTILL_ITERS": 200_000,
        "MODEL.DISTILLATOR.PRE_FREEZE_STUDENT_BACKBONE_ITERS": 80_000,
    }
    cfg = with_values(Config(), before)
    scaled, lines = scale_to_world_size(cfg, 2)
    values = flatten(scaled)
    assert {name: values[name] for name in after} == after
    untouched = flatten(cfg).keys() - after.keys()
    assert {name: values[name] for name in untouched} == {name: flatten(cfg)[name] for name in untouched}
    assert len(lines) == len(after)
    assert "SOLVER.BASE_LR: 0.01 -> 0.0025" in lines
    assert "SOLVER.STEPS: (60000, 80000) -> (240000, 320000)" in lines


def test_an_average_forgets_as_many_images_whatever_the_ranks() -> None:
    values = {"SOLVER.REFERENCE_WORLD_SIZE": 8, "TRAIN.EMA.ENABLED": True, "TRAIN.EMA.DECAY": 0.999}
    scaled, _ = scale_to_world_size(with_values(Config(), values), 2)
    assert scaled.train.ema.warmup_iters == 8000
    assert scaled.train.ema.decay**4 == pytest.approx(0.999)


def test_scaling_up_keeps_at_least_one_and_leaves_zero_and_none() -> None:
    cfg = with_values(
        Config(),
        {
            "SOLVER.REFERENCE_WORLD_SIZE": 1,
            "SOLVER.MAX_ITER": 10,
            "SOLVER.STEPS": (3, 7),
            "SOLVER.WARMUP_ITERS": 0,
            "TEST.EVAL_PERIOD": 0,
        },
    )
    scaled, _ = scale_to_world_size(cfg, 16)
    assert (scaled.solver.max_iter, scaled.solver.steps, scaled.solver.ims_per_batch) == (1, (1, 1), 256)
    assert (scaled.solver.warmup_iters, scaled.test.eval_period) == (0, 0)
    assert scaled.model.distillator.student.solver.base_lr is None
    assert scaled.model.distillator.post_nondistill_iters == 0


def test_scaling_twice_is_scaling_once() -> None:
    cfg = with_values(Config(), {"SOLVER.REFERENCE_WORLD_SIZE": 8})
    scaled, _ = scale_to_world_size(cfg, 4)
    assert scale_to_world_size(scaled, 4) == (scaled, [])


def test_a_batch_that_the_reference_ranks_cannot_share() -> None:
    cfg = with_values(Config(), {"SOLVER.REFERENCE_WORLD_SIZE": 3})
    with pytest.raises(ConfigError) as error:
        scale_to_world_size(cfg, 2)
    assert str(error.value) == (
        "SOLVER.IMS_PER_BATCH 16 cannot be divided among SOLVER.REFERENCE_WORLD_SIZE 3 ranks"
    )
