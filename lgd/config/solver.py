"""The solvers of student and teacher, and their scaling to the number of ranks at hand."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from lgd.config.check import check_config
from lgd.config.keys import flatten, with_values
from lgd.config.schema import SIDE_SOLVERS, Config
from lgd.config.values import ConfigError


@dataclass(frozen=True)
class ResolvedSolver:
    """Optimizer and schedule of one side, nothing left open. Fields as in SOLVER."""

    optimizer: str
    base_lr: float
    momentum: float
    weight_decay: float
    lr_scheduler_name: str
    steps: tuple[int, ...]
    gamma: float
    warmup_factor: float
    warmup_iters: int
    warmup_method: str


def resolve_solver(cfg: Config, side: Literal["student", "teacher"]) -> ResolvedSolver:
    """The solver of one side: MODEL.DISTILLATOR.<SIDE>.SOLVER, and SOLVER where that says None.

    The plain detector (MODEL.DISTILLATOR.ENABLED False) trains with the student's.
    """
    own = cfg.model.distillator.student.solver if side == "student" else cfg.model.distillator.teacher.solver
    values: dict[str, Any] = {}
    for field in fields(ResolvedSolver):
        value = getattr(own, field.name)
        values[field.name] = getattr(cfg.solver, field.name) if value is None else value
    return ResolvedSolver(**values)


def scale_to_world_size(cfg: Config, world_size: int) -> tuple[Config, list[str]]:
    """Scale batch, learning rates and schedule from SOLVER.REFERENCE_WORLD_SIZE ranks to those at hand.

    As in detectron2 (`DefaultTrainer.auto_scale_workers`): images per rank stay, learning rates grow with the
    batch, iterations shrink with it. Student's and teacher's solvers and the phases of LGD go along.

    Args:
        cfg: the configuration.
        world_size: ranks of this run.

    Returns:
        The scaled configuration, whose REFERENCE_WORLD_SIZE is `world_size`, and a line for each change. The
        same configuration and no lines where REFERENCE_WORLD_SIZE is 0 or `world_size` already.

    Raises:
        ConfigError: IMS_PER_BATCH cannot be divided among REFERENCE_WORLD_SIZE ranks.
    """
    reference = cfg.solver.reference_world_size
    if reference in (0, world_size):
        return cfg, []
    if cfg.solver.ims_per_batch % reference:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH {cfg.solver.ims_per_batch} cannot be divided among "
            f"SOLVER.REFERENCE_WORLD_SIZE {reference} ranks"
        )
    before = flatten(cfg)
    after = {"SOLVER.REFERENCE_WORLD_SIZE": world_size} | _scaled(before, world_size / reference)
    changes = {key: value for key, value in after.items() if value != before[key]}
    scaled = with_values(cfg, changes)
    check_config(scaled)
    return scaled, [f"{key}: {before[key]} -> {value}" for key, value in changes.items()]


def _scaled(values: dict[str, Any], scale: float) -> dict[str, Any]:
    """The settings that go with the batch (rates) and against it (iterations), scaled."""
    solvers = ("SOLVER", *SIDE_SOLVERS)
    rates = [f"{solver}.BASE_LR" for solver in solvers]
    durations = [
        "SOLVER.MAX_ITER",
        "SOLVER.CHECKPOINT_PERIOD",
        "TEST.EVAL_PERIOD",
        *(f"{solver}.{key}" for solver in solvers for key in ("STEPS", "WARMUP_ITERS")),
        *(["TRAIN.EMA.WARMUP_ITERS"] if values["TRAIN.EMA.ENABLED"] else []),
        "MODEL.DISTILLATOR.PRE_NONDISTILL_ITERS",
        "MODEL.DISTILLATOR.POST_NONDISTILL_ITERS",
        "MODEL.DISTILLATOR.PRE_FREEZE_STUDENT_BACKBONE_ITERS",
        "MODEL.DISTILLATOR.HEAD.FIXED_ITERS",
        "MODEL.DISTILLATOR.HEAD.RAMP_ITERS",
        "MODEL.DISTILLATOR.LAMBDA_STEPS",
    ]
    scaled = {"SOLVER.IMS_PER_BATCH": round(values["SOLVER.IMS_PER_BATCH"] * scale)}
    scaled |= {name: values[name] * scale for name in rates if values[name] is not None}
    if values["TRAIN.EMA.ENABLED"]:  # as many images leave as much ("How to Scale Your EMA", 2307.13813)
        scaled["TRAIN.EMA.DECAY"] = values["TRAIN.EMA.DECAY"] ** scale
    return scaled | {name: _shorten(values[name], scale) for name in durations}


def _shorten(duration: Any, scale: float) -> Any:
    """Divide an iteration count, or each of a tuple; only zero becomes zero, and None stays."""
    if isinstance(duration, tuple):
        return tuple(_shorten(iteration, scale) for iteration in duration)
    return duration and max(1, round(duration / scale))
