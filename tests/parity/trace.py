"""Optimisation steps on the batch of a case, by our engine's own loop."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from lgd.build import build_loop_options, build_schedule, build_sides
from lgd.engine.loop import TrainState, train
from lgd.engine.metrics import StepRecord
from lgd.engine.progress import Progress
from lgd.weights import reference_name
from tests.parity.case import Case, make_batch, make_config, make_model

LOOP_KEYS = {
    "PRE_FREEZE_STUDENT_BACKBONE_ITERS": "MODEL.DISTILLATOR.PRE_FREEZE_STUDENT_BACKBONE_ITERS",
    "PRE_NONDISTILL_ITERS": "MODEL.DISTILLATOR.PRE_NONDISTILL_ITERS",
}


def run_trace(trace: Mapping[str, Any], case: Case, dtype: torch.dtype) -> dict[str, Any]:
    """Train a case for some steps.

    Args:
        trace: the trace file's content.
        case: the case that it names.
        dtype: of the whole computation.

    Returns:
        The content of RESULT.json.
    """
    cfg = make_config(case, _make_changes(trace))
    model = make_model(case, cfg, dtype)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    model.train()
    device = torch.device("cpu")
    options = build_loop_options(cfg)
    records: list[StepRecord] = []
    train(
        TrainState(model, build_sides(cfg, model, device), Progress(device)),
        itertools.repeat(make_batch(case, dtype)),
        build_schedule(cfg),
        replace(options, max_iter=trace["loop_overrides"]["n_steps"], log_period=1, eval_period=0),
        device=device,
        report=records.append,
        evaluate=lambda _: None,
        save=lambda *_: None,
    )
    moved = {
        reference_name(name): (parameter.detach() - before[name]).norm().item()
        for name, parameter in trained.items()
    }
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "steps": [_to_record(record) for record in records],
        "l2_of_total_parameter_change": {name: moved[name] for name in case.parameter_names if name in moved},
    }


def _make_changes(trace: Mapping[str, Any]) -> dict[str, Any]:
    """The trace's schedule and solvers as settings of the config."""
    changes = {key: trace["loop_overrides"][name] for name, key in LOOP_KEYS.items()}
    for side in ("student", "teacher"):
        for name, value in trace[f"{side}_solver"].items():
            changes[f"MODEL.DISTILLATOR.{side.upper()}.SOLVER.{name}"] = value
    return changes


def _to_record(record: StepRecord) -> dict[str, Any]:
    return {
        "iteration": record.iteration - 1,  # ours counts steps done, the trace the step at hand
        "losses": dict(record.losses),
        "stu_lr": record.learning_rates["student"],
        "tea_lr": record.learning_rates["teacher"],
    }
