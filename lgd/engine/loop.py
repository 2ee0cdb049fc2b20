"""The training loop: plain iterations, read from top to bottom."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lgd.data.prefetch import prefetch
from lgd.distill.distiller import LabelGuidedDistiller, PlainStudent
from lgd.distill.head import SlowHead, head_parameters
from lgd.distill.schedule import DistillSchedule, Phase
from lgd.engine.averaging import WeightAverage, weights_by_model
from lgd.engine.compile import CompileWatch
from lgd.engine.metrics import StepRecord, measure_memory
from lgd.engine.nonfinite import NonFinitePolicy, StepGuard
from lgd.engine.optim import LRSchedule, clip_gradients, load_optimizer, set_lr
from lgd.engine.progress import Progress
from lgd.ranks import process_group
from lgd.ranks.interruption import Interrupted
from lgd.ranks.watch import Watch
from lgd.structures import Batch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Side:
    """One optimizer and its schedule: "student" (with the adapter) or "teacher".

    `multiplier` is a factor on the rate of the optimizer's second group, where it has one: the backbone.
    """

    name: str
    optimizer: torch.optim.Optimizer
    schedule: LRSchedule
    multiplier: float = 1.0

    def parameters(self) -> Iterator[nn.Parameter]:
        """Every parameter that this side trains."""
        for group in self.optimizer.param_groups:
            yield from group["params"]


@dataclass(frozen=True)
class LoopOptions:
    """Numbers of the loop.

    Attributes:
        max_iter: steps to train.
        images_per_step: images of one step over all ranks and micro-batches.
        log_period: steps between log lines.
        eval_period: steps between evaluations; 0 for one at the end only.
        checkpoint_period: steps between checkpoints.
        accumulate_steps: micro-batches whose gradients are averaged into one step.
        clip_kind: "value", "norm" or "none", see `clip_gradients`.
        clip_limit: the bound of the clipping.
        clip_norm_type: p of the p-norm that "norm" limits.
        mixed_precision: run the forward pass under bfloat16 autocast.
        seed: seed of the random draws inside the model, together with step and rank.
        compiled: whether parts of the model are compiled.
    """

    max_iter: int
    images_per_step: int
    log_period: int = 20
    eval_period: int = 0
    checkpoint_period: int = 5000
    accumulate_steps: int = 1
    clip_kind: Literal["value", "norm", "none"] = "none"
    clip_limit: float = 1.0
    clip_norm_type: float = 2.0
    mixed_precision: bool = False
    seed: int = 0
    compiled: bool = False


@dataclass
class TrainState:
    """What changes while training; `state_dict` is what a checkpoint holds of it.

    Attributes:
        model: distiller or plain student.
        sides: the optimizers.
        progress: losses of the unfinished log period.
        step: steps done.
        best: the metric that chooses the best model, by its name, and the "step"; empty before the first.
        owes_evaluation: the evaluation that is due after `step` was abandoned, to leave in time.
        average: the moving average of the student's weights; None without one.
        patience: the metric that the next evaluations must better, by its name, and how many "evaluations"
            have not; empty before the first.
        stops: the evaluation after `step` was one too many without a better metric: training ends.
    """

    model: LabelGuidedDistiller | PlainStudent
    sides: Sequence[Side]
    progress: Progress
    step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    owes_evaluation: bool = False
    average: WeightAverage | None = None
    patience: dict[str, float] = field(default_factory=dict)
    stops: bool = False

    def state_dict(self) -> dict[str, Any]:
        """Everything that an exact resume needs, as tensors and plain containers.

        Every rank must call it: the unfinished log period is reduced.
        """
        return {
            "model": self.model.state_dict(),
            "optimizers": {side.name: side.optimizer.state_dict() for side in self.sides},
            "progress": self.progress.state(),
            "best": dict(self.best),
            "patience": dict(self.patience),
            "owes_evaluation": self.owes_evaluation,
            **({"slow_head": dict(self.slow_head.weights)} if self.slow_head else {}),
            **({} if self.average is None else {"ema": self.average.state_dict()}),
        }

    def load_state_dict(self, step: int, state: Mapping[str, Any]) -> None:
        """Restore everything as it was after `step` steps."""
        self.load_weights(state)
        self.progress.load_state(state["progress"])
        self.best = dict(state["best"])
        self.patience = dict(state.get("patience") or {})
        self.owes_evaluation = bool(state.get("owes_evaluation", False))
        self.step = step

    def load_weights(self, state: Mapping[str, Any]) -> None:
        """Restore what a step changes: model, optimizers and average, which begins anew if there was none."""
        self.model.load_state_dict(state["model"])
        for side in self.sides:
            load_optimizer(side.optimizer, state["optimizers"][side.name])
        if self.slow_head is not None and state.get("slow_head"):
            self.slow_head.load(state["slow_head"], head_parameters(self.model.student))
        if self.average is not None and state.get("ema") is not None:
            self.average.load_state_dict(state["ema"])
        elif self.average is not None:
            self.average.begin_anew()

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """See `weights_by_model`."""
        averages = None if self.average is None else self.average.tensors
        return weights_by_model(self.model.state_dict(), averages)

    def update(self) -> None:
        """Make the step that the gradients ask for."""
        for side in self.sides:
            side.optimizer.step()
        if self.average is not None:
            self.average.follow()

    @property
    def slow_head(self) -> SlowHead | None:
        """What stands in for the head under the teacher's features, where something does."""
        return self.model.slow_head if isinstance(self.model, LabelGuidedDistiller) else None


def train(
    state: TrainState,
    batches: Iterator[Batch],
    schedule: DistillSchedule,
    options: LoopOptions,
    *,
    device: torch.device,
    report: Callable[[StepRecord], None],
    evaluate: Callable[[TrainState], None],
    save: Callable[[TrainState, bool], None],
    shall_leave: Callable[[], bool] = lambda: False,
    watch: Watch | None = None,
    nonfinite: NonFinitePolicy | None = None,
) -> None:
    """Train `state` from its step to `options.max_iter`, or until it `stops`.

    Args:
        state: model, optimizers and step; changed in place.
        batches: micro-batches of this rank, beginning with the first of step `state.step`.
        schedule: when the backbone is frozen and when the student is distilled.
        options: numbers.
        device: where the model lies.
        report: called on every rank at the end of each log period.
        evaluate: called on every rank when an evaluation is due; may raise Interrupted on all of them.
        save: called on every rank when a checkpoint is due, or before leaving early, with whether it leaves;
            then, and after the last step, it returns once the checkpoint is on the disk, or raises on all.
        shall_leave: called on every rank after every step but the last; the answer is the same on all.
        watch: is told where the loop is.
        nonfinite: what to do about a loss that becomes NaN or infinite; None to raise.

    Raises:
        Interrupted: the run was asked to leave; a checkpoint is saved.
        NonFiniteError: a loss became NaN or infinite, and nothing else was to be done about it.
    """
    watch = watch or Watch()
    backbone = [p for p in state.model.student.backbone_parameters() if p.requires_grad]
    module: nn.Module = state.model
    frozen: bool | None = None
    if state.owes_evaluation:
        _finish_step(state, options, evaluate, save, shall_leave, watch)
    batches = prefetch(batches, device)
    clock, compile_watch = _Clock(watch), CompileWatch(options.compiled, watch)
    guard = StepGuard(nonfinite or NonFinitePolicy(), state.model, state.progress)
    for step in range(state.step, options.max_iter):
        if state.stops:
            break
        watch.at(step + 1, "beginning")
        guard.begin(after_checkpoint=_is_due(step, options.checkpoint_period))
        phase = schedule.phase(step)
        if phase.freeze_backbone != frozen:
            frozen = phase.freeze_backbone
            del module  # an old wrapper's hooks must be gone before the new one sets its own
            module = _wrap(state.model, backbone, frozen, device)
        _seed_step(options.seed, step)
        state.model.begin_step(step)
        for side in state.sides:
            set_lr(side.optimizer, side.schedule.at(step), side.multiplier)
        losses, image_ids, num_skipped = _accumulate_gradients(
            module, batches, phase, options, device, clock, compile_watch
        )
        watch.again("updating the weights")
        losses["grad_norm"] = clip_gradients(
            [p for side in state.sides for p in side.parameters()],
            kind=options.clip_kind,
            limit=options.clip_limit,
            norm_type=options.clip_norm_type,
        )
        if guard.allows(step, losses, image_ids, num_skipped):
            state.progress.add(step, losses, image_ids, num_skipped)
            state.update()
        for side in state.sides:
            side.optimizer.zero_grad(set_to_none=True)
        state.step = step + 1
        last = state.step == options.max_iter
        if last or _is_due(state.step, options.log_period):
            report(_make_record(state, phase, clock, options, device))
        evaluates = state.owes_evaluation = last or _is_due(state.step, options.eval_period)
        _finish_step(state, options, evaluate, save, shall_leave, watch)
        if evaluates:
            clock.restart()


def _finish_step(
    state: TrainState,
    options: LoopOptions,
    evaluate: Callable[[TrainState], None],
    save: Callable[[TrainState, bool], None],
    shall_leave: Callable[[], bool],
    watch: Watch,
) -> None:
    """Evaluate and save where that is due; save and raise `Interrupted` where the run shall leave."""
    last = state.step == options.max_iter
    leaves = False
    if state.owes_evaluation:
        watch.at(state.step, "evaluating", may_take_long=True)
        try:
            evaluate(state)
            state.owes_evaluation = False
        except Interrupted:
            leaves = True
    last = last or state.stops
    watch.at(state.step, "agreeing with the other ranks on whether to leave")
    leaves = leaves or (not last and shall_leave())
    if leaves or last or _is_due(state.step, options.checkpoint_period):
        watch.at(state.step, "saving", may_take_long=True)
        save(state, leaves)
    if leaves:
        raise Interrupted(f"asked to leave: saved step {state.step} of {options.max_iter}")


def _accumulate_gradients(
    module: nn.Module,
    batches: Iterator[Batch],
    phase: Phase,
    options: LoopOptions,
    device: torch.device,
    clock: _Clock,
    compile_watch: CompileWatch,
) -> tuple[dict[str, Tensor], list[int], int]:
    """Forward and backward over the micro-batches of one step: mean losses, image ids, skips."""
    totals: dict[str, Tensor] = {}
    image_ids: list[int] = []
    num_skipped = 0
    for micro_step in range(options.accumulate_steps):
        batch = clock.wait_for(batches)
        image_ids += batch.image_ids.tolist()
        num_skipped += len(batch.skipped)
        for message in batch.skipped:
            logger.warning("image skipped: %s", message)
        skips = micro_step + 1 < options.accumulate_steps
        with _no_sync(module, skips), compile_watch.step(batch, phase):
            with torch.autocast(device.type, torch.bfloat16, enabled=options.mixed_precision):
                losses = module(
                    batch,
                    distill=phase.distill,
                    head_share=phase.head_share,
                    weight_factor=phase.weight_factor,
                )
                total = torch.stack(list(losses.values())).sum() / options.accumulate_steps
            total.backward()  # type: ignore[no-untyped-call]
        for name, value in {**losses, "total_loss": total * options.accumulate_steps}.items():
            share = value.detach() / options.accumulate_steps
            totals[name] = totals[name] + share if name in totals else share
    return totals, image_ids, num_skipped


def _wrap(
    model: nn.Module, backbone: Sequence[nn.Parameter], frozen: bool, device: torch.device
) -> nn.Module:
    """Freeze or thaw the backbone, then wrap the model for gradient averaging over the ranks.

    Wrapping anew at the change of phase lets DDP know exactly which parameters get a gradient, so
    that it never searches for unused ones; and the frozen backbone builds no graph.
    """
    for parameter in backbone:
        parameter.requires_grad_(not frozen)
        parameter.grad = None
    if not process_group.is_initialized():
        return model
    wrapped = DistributedDataParallel(
        model, device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True
    )
    # Buffers are equal or local. The constructor's argument for this has another name from torch 2.15 on.
    wrapped.broadcast_buffers = False
    return wrapped


def _no_sync(module: nn.Module, skip: bool) -> AbstractContextManager[None]:
    if skip and isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return nullcontext()


def _seed_step(seed: int, step: int) -> None:
    """Seed the model's random draws from the step alone: a resumed run needs no saved state."""
    torch.manual_seed(((seed * 1_000_003 + step) * 65_537 + process_group.get_rank()) % 2**63)


def _is_due(step: int, period: int) -> bool:
    return period > 0 and step % period == 0


def _make_record(
    state: TrainState, phase: Phase, clock: _Clock, options: LoopOptions, device: torch.device
) -> StepRecord:
    losses = state.progress.averages()  # waits for the device, so the clock is read after it
    seconds, data_seconds, num_batches = clock.read()
    num_steps = max(num_batches, 1) / options.accumulate_steps
    return StepRecord(
        iteration=state.step,
        total_loss=losses.pop("total_loss"),
        grad_norm=losses.pop("grad_norm"),
        losses=losses,
        learning_rates={side.name: side.optimizer.param_groups[0]["lr"] for side in state.sides},
        seconds=seconds / num_steps,
        data_seconds=data_seconds / num_steps,
        images_per_second=num_steps * options.images_per_step / seconds,
        memory=measure_memory(device),
        skipped_images=state.progress.skipped_images,
        skipped_steps=state.progress.skipped_steps,
        phase=phase,
    )


class _Clock:
    """Wall time since the last report, and the part of it spent waiting for data."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self.restart()

    def restart(self) -> None:
        self.started = time.perf_counter()
        self.waited = 0.0
        self.num_batches = 0

    def wait_for(self, batches: Iterator[Batch]) -> Batch:
        self._watch.again("waiting for data")
        begin = time.perf_counter()
        batch = next(batches)
        self._watch.again("in the forward or backward pass")
        self.waited += time.perf_counter() - begin
        self.num_batches += 1
        return batch

    def read(self) -> tuple[float, float, int]:
        result = time.perf_counter() - self.started, self.waited, self.num_batches
        self.restart()
        return result
