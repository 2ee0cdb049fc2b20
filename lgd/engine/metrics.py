"""What there is to watch of a run: progress lines, metrics.jsonl, TensorBoard and other trackers."""

from __future__ import annotations

import logging
import math
import resource
import statistics
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from lgd.distill.schedule import Phase
from lgd.engine.lines import LineFile
from lgd.events import event
from lgd.trackers.open import open_writers
from lgd.trackers.tracker import Log, Scalar, Writer
from lgd.words import counted

logger = logging.getLogger(__name__)

TIMING_KEYS = frozenset({"time", "data_time", "images_per_second", "memory", "eta_seconds"})
"""The keys of metrics.jsonl that depend on the machine; all others repeat bit by bit."""

ModelMetrics = Mapping[str, Mapping[str, Mapping[str, float | None] | None]]
""""student", "teacher" or "ema" -> "bbox", "segm", ... -> metric -> percent."""

Losses = Mapping[str, Mapping[str, float]]
""""student" or "teacher" -> loss -> mean over the images of a test set."""

_SECONDS_TO_FINISH = 30.0
"""For each tracker at the end of a training."""

_SECONDS_TO_LEAVE = 5.0
"""For each tracker where a training leaves, or fails."""

_TEACHER_SUFFIX = ".tea"
_PERIODS_FOR_ETA = 10


@dataclass(frozen=True)
class StepRecord:
    """A log period in numbers.

    Attributes:
        iteration: steps done.
        total_loss: what was minimised, mean of the period.
        losses: its parts by name ("loss_cls", "loss_cls.tea", "loss_distill", ...), means of the period.
        learning_rates: by side: "student" and, with LGD, "teacher".
        grad_norm: L2 norm of all gradients before clipping, mean of the period.
        seconds: wall time of one step, mean of the period.
        data_seconds: of these, spent waiting for data.
        images_per_second: of all ranks together.
        memory: MiB, as from `measure_memory`.
        skipped_images: unreadable images that were replaced since the run began.
        phase: what held during the last step.
        skipped_steps: steps that were left out, since their losses were no numbers, since the run began.
    """

    iteration: int
    total_loss: float
    losses: Mapping[str, float]
    learning_rates: Mapping[str, float]
    grad_norm: float
    seconds: float
    data_seconds: float
    images_per_second: float
    memory: float
    skipped_images: int
    phase: Phase
    skipped_steps: int = 0

    @property
    def distills(self) -> bool:
        """Whether the student learned from a teacher: a plain student has none."""
        return self.phase.distill and "teacher" in self.learning_rates

    @property
    def phase_name(self) -> str:
        """The phase in words: "freeze", "distill", both joined by "+", or "train" where neither holds."""
        names = [
            name for name, on in (("freeze", self.phase.freeze_backbone), ("distill", self.distills)) if on
        ]
        return "+".join(names) or "train"


class MetricsWriter:
    """Writes progress lines, OUTPUT_DIR/metrics.jsonl, TensorBoard events and what other trackers there are.

    The student's curves and all that both sides share are the TensorBoard run OUTPUT_DIR, the teacher's are
    the run OUTPUT_DIR/teacher under the same tags, so that each chart shows the two together.

    On a resume everything later than the checkpoint is taken back, so that a run that was killed and resumed
    leaves what an uninterrupted one leaves.
    """

    def __init__(
        self,
        output_dir: Path | None,
        max_iter: int,
        first_iteration: int = 0,
        repeats_evaluation: bool = False,
        unwritten: Sequence[str] = (),
        log: Log | None = None,
    ) -> None:
        """Open the files.

        Args:
            output_dir: where to write; None on every rank but the first, whose writer then does nothing.
            max_iter: steps of the run.
            first_iteration: steps done by the checkpoint that training goes on from, 0 without one; what
                there is of later steps is taken back.
            repeats_evaluation: the evaluation of `first_iteration` follows; what there is of it is
                taken back.
            unwritten: lines of metrics.jsonl that had not been written when the checkpoint was.
            log: the trackers; None for TensorBoard alone.

        Raises:
            ValueError: TensorBoard is not installed.
            OSError: the folder cannot be written.
        """
        self._max_iter = max_iter
        self._step_seconds: deque[float] = deque(maxlen=_PERIODS_FOR_ETA)
        self._phase_name = ""
        self._lines: LineFile | None = None
        self._writers: list[Writer] = []
        self._held: list[Callable[[], None]] | None = None
        if output_dir is not None:
            output_dir.mkdir(parents=True, exist_ok=True)
            self._lines = LineFile(output_dir / "metrics.jsonl", first_iteration, repeats_evaluation)
            self._lines.add_missing(unwritten)
            self._writers = open_writers(output_dir, first_iteration + 1, log or Log())

    def log(self, record: StepRecord) -> None:
        """Write the numbers of a log period everywhere."""
        if self._lines is None:
            return
        self._step_seconds.append(record.seconds)
        eta_seconds = statistics.median(self._step_seconds) * (self._max_iter - record.iteration)
        line = _flatten(record) | {"eta_seconds": eta_seconds}
        self._lines.write_in_turn(line)
        self._add_scalars(record.iteration, _scalars(record))
        self._add_phase(record.iteration, record.phase_name)
        said = event("step", max_iter=self._max_iter, **line)
        logger.info("%s", format_progress(record, self._max_iter, eta_seconds), extra=said)

    def log_evaluation(self, iteration: int, dataset: str, results: ModelMetrics) -> None:
        """Write AP and AR of an evaluation to metrics.jsonl and the trackers.

        Args:
            iteration: steps done.
            dataset: name of the test set.
            results: {"student": {"bbox": {"AP": percent, ...}, "segm": ...}, "teacher": ...}; None where not
                measurable.
        """
        if self._lines is not None:
            self._lines.write({"iteration": iteration, "eval": {dataset: results}})
            self._add_scalars(iteration, _evaluation_scalars(dataset, results))

    def log_losses(self, iteration: int, dataset: str, losses: Losses) -> None:
        """Write the losses on a test set, as an evaluation's are, to metrics.jsonl and the trackers."""
        if self._lines is None:
            return
        self._lines.write({"iteration": iteration, "eval_losses": {dataset: losses}})
        points = [(model, name, value) for model, each in losses.items() for name, value in each.items()]
        tag = f"validation_loss/{_flat(dataset)}/"
        scalars = [(model, tag + name, value) for model, name, value in points]
        self._show(partial(self._add_scalars, iteration, scalars))

    def hold(self) -> None:
        """Keep back log periods, and what an evaluation shows: it is still to be scored.

        A run that is killed before the score repeats the evaluation, and TensorBoard forgets nothing of the
        step that it goes on from.
        """
        if self._lines is not None:
            self._lines.hold()
            self._held = []

    def release(self) -> None:
        """Write what was kept back."""
        held, self._held = self._held or [], None
        for show in held:
            show()
        if self._lines is not None:
            self._lines.release()

    def log_images(self, dataset: str, iteration: int, images: Sequence[Tensor]) -> None:
        """Show (3, H, W) uint8 RGB images, the same ones at each evaluation."""
        for writer in self._writers:
            self._show(partial(writer.add_images, f"validation_images/{_flat(dataset)}", iteration, images))

    def log_figures(self, dataset: str, iteration: int, figures: Mapping[str, Tensor]) -> None:
        """Show pictures of an evaluation, (3, H, W) uint8 RGB by what they show."""
        for writer in self._writers:
            for name, figure in figures.items():
                writer.add_images(f"{name}/{_flat(dataset)}", iteration, [figure])

    def waiting(self) -> list[str]:
        """The lines of metrics.jsonl that the disk has refused so far, for a checkpoint."""
        return self._lines.waiting() if self._lines is not None else []

    def flush(self) -> dict[Path, str]:
        """Try again to write what the disk has refused; why it still does, by file."""
        refused = self._lines.flush() if self._lines is not None else {}
        for writer in self._writers:
            refused |= writer.flush()
        return refused

    def __enter__(self) -> MetricsWriter:
        """Nothing to do."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; after an error nothing is written but what trackers take soon."""
        if error is None:
            self.close()
        else:
            self.leave(_SECONDS_TO_LEAVE)

    def close(self) -> None:
        """Flush and close the files; trackers may take their time over what they still have to send."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None
        self.leave(_SECONDS_TO_FINISH, finished=True)

    def leave(self, seconds: float, *, finished: bool = False) -> None:
        """Let the trackers finish what they have, in so many seconds each."""
        writers, self._writers = self._writers, []
        for writer in writers:
            writer.close(seconds, finished=finished)

    def _show(self, show: Callable[[], None]) -> None:
        """Let trackers show something of an evaluation, with its score where that is waited for."""
        if self._held is None:
            show()
        else:
            self._held.append(show)

    def _add_scalars(self, step: int, scalars: Iterable[Scalar]) -> None:
        points = list(scalars)
        for writer in self._writers:
            writer.add_scalars(step, points)

    def _add_phase(self, step: int, name: str) -> None:
        """Add the phase in words where it changes."""
        if name != self._phase_name:
            self._phase_name = name
            for writer in self._writers:
                writer.add_text("phase", name, step)


def measure_memory(device: torch.device) -> float:
    """Return the peak so far in MiB: of this process's tensors on CUDA, of its resident memory on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB on Linux


def format_progress(record: StepRecord, max_iter: int, eta_seconds: float) -> str:
    """Lay out a log period as one line for a terminal or a log file."""
    count = f"[{record.iteration:>{len(str(max_iter))}}/{max_iter}] {record.iteration / max_iter:6.1%}"
    fields = [
        count,
        f"loss {record.total_loss:.3f} ({_format_losses(record.losses)})",
        "lr " + "/".join(f"{lr:.2e}" for lr in record.learning_rates.values()),
        f"{record.images_per_second:.1f} img/s",
        f"data {record.data_seconds / max(record.seconds, 1e-9):.0%}",
        f"ETA {_format_duration(eta_seconds)}",
        f"mem {record.memory / 1024:.1f} GiB" if record.memory >= 1024 else f"mem {record.memory:.0f} MiB",
        f"phase {record.phase_name}",
    ]
    if record.skipped_images:
        fields.append(f"skipped {record.skipped_images}")
    if record.skipped_steps:
        fields.append(f"left out {counted(record.skipped_steps, 'step')}")
    return "  ".join(fields)


def _format_losses(losses: Mapping[str, float]) -> str:
    """The parts of the loss in groups: the student's, the teacher's, the distillation."""
    teacher = {name: value for name, value in losses.items() if name.endswith(_TEACHER_SUFFIX)}
    distill = {name: value for name, value in losses.items() if name == "loss_distill"}
    student = {name: value for name, value in losses.items() if name not in teacher | distill}
    groups = (("", student), ("tea ", teacher), ("", distill))
    return " | ".join(prefix + _format_group(group) for prefix, group in groups if group)


def _format_group(losses: Mapping[str, float]) -> str:
    short = {
        name.removesuffix(_TEACHER_SUFFIX).removeprefix("loss_").removesuffix("_reg"): value
        for name, value in losses.items()
    }
    return " ".join(f"{name} {value:.3f}" for name, value in short.items())


def _format_duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (f"{days}d " if days else "") + f"{hour}:{minute:02}:{second:02}"


def _flatten(record: StepRecord) -> dict[str, Any]:
    """A line of metrics.jsonl, with the timing-dependent values last."""
    return {
        "iteration": record.iteration,
        "total_loss": record.total_loss,
        **record.losses,
        **{f"lr_{side}": lr for side, lr in record.learning_rates.items()},
        "grad_norm": record.grad_norm,
        "phase": record.phase_name,
        "skipped_images": record.skipped_images,
        "skipped_steps": record.skipped_steps,
        "time": record.seconds,
        "data_time": record.data_seconds,
        "images_per_second": record.images_per_second,
        "memory": record.memory,
    }


def _scalars(record: StepRecord) -> Iterator[Scalar]:
    """Yield the curves' points; a teacher's loss has the tag of the student's, for one chart."""
    yield "student", "loss/total_loss", record.total_loss
    for name, value in record.losses.items():
        model = "teacher" if name.endswith(_TEACHER_SUFFIX) else "student"
        yield model, f"loss/{name.removesuffix(_TEACHER_SUFFIX)}", value
    for side, lr in record.learning_rates.items():
        yield side, "optimizer/lr", lr
    yield "student", "optimizer/grad_norm", record.grad_norm
    yield "student", "phase/freeze", float(record.phase.freeze_backbone)
    yield "student", "phase/distill", float(record.distills)
    yield "student", "speed/images_per_second", record.images_per_second
    yield "student", "speed/seconds_per_iteration", record.seconds
    yield "student", "speed/data_seconds_per_iteration", record.data_seconds
    yield "student", "system/memory_MiB", record.memory
    yield "student", "system/skipped_images", float(record.skipped_images)
    yield "student", "system/skipped_steps", float(record.skipped_steps)


def _evaluation_scalars(dataset: str, results: ModelMetrics) -> Iterator[Scalar]:
    """Yield each metric that could be measured."""
    for model, kinds in results.items():
        for kind, metrics in kinds.items():
            for name, value in (metrics or {}).items():
                if value is not None and math.isfinite(value):
                    yield model, _metric_tag(kind, dataset, name), value


def _metric_tag(kind: str, dataset: str, name: str) -> str:
    """The chart of a metric. TensorBoard opens the first two groups by name: these shall be AP and loss."""
    if name.startswith("AP-"):
        return f"per_class_AP_{kind}/{_flat(dataset)}/{_flat(name.removeprefix('AP-'))}"
    return f"{'recall' if name.startswith('AR') else 'AP'}_{kind}/{_flat(dataset)}/{name}"


def _flat(name: str) -> str:
    """A name without slashes, which TensorBoard would take for levels."""
    return name.replace("/", "_")
