"""What there is to watch of a run: progress lines, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import statistics
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lgd.distill.schedule import Phase
from lgd.engine.tensorboard import Scalar, TensorBoard
from lgd.evaluation.results import replace_non_finite
from lgd.files import GrowingFile, open_file, replacing

logger = logging.getLogger(__name__)

TIMING_KEYS = frozenset({"time", "data_time", "images_per_second", "memory", "eta_seconds"})
"""The keys of metrics.jsonl that depend on the machine; all others repeat bit by bit."""

ModelMetrics = Mapping[str, Mapping[str, Mapping[str, float | None] | None]]
""""student", "teacher" or "ema" -> "bbox", "segm", ... -> metric -> percent."""

Losses = Mapping[str, Mapping[str, float]]
""""student" or "teacher" -> loss -> mean over the images of a test set."""

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
    """Writes progress lines, OUTPUT_DIR/metrics.jsonl and TensorBoard events.

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

        Raises:
            ValueError: TensorBoard is not installed.
            OSError: the folder cannot be written.
        """
        self._max_iter = max_iter
        self._step_seconds: deque[float] = deque(maxlen=_PERIODS_FOR_ETA)
        self._files: tuple[_LineFile, TensorBoard] | None = None
        if output_dir is not None:
            output_dir.mkdir(parents=True, exist_ok=True)
            self._files = (
                _LineFile(output_dir / "metrics.jsonl", first_iteration, repeats_evaluation),
                TensorBoard(output_dir, first_iteration + 1),
            )
            self._files[0].add_missing(unwritten)

    def log(self, record: StepRecord) -> None:
        """Write the numbers of a log period everywhere."""
        if self._files is None:
            return
        self._step_seconds.append(record.seconds)
        eta_seconds = statistics.median(self._step_seconds) * (self._max_iter - record.iteration)
        lines, board = self._files
        lines.write_in_turn(_flatten(record) | {"eta_seconds": eta_seconds})
        board.add_scalars(record.iteration, _scalars(record))
        board.add_phase(record.iteration, record.phase_name)
        logger.info("%s", format_progress(record, self._max_iter, eta_seconds))

    def log_evaluation(self, iteration: int, dataset: str, results: ModelMetrics) -> None:
        """Write AP and AR of an evaluation to metrics.jsonl and TensorBoard.

        Args:
            iteration: steps done.
            dataset: name of the test set.
            results: {"student": {"bbox": {"AP": percent, ...}, "segm": ...}, "teacher": ...}; None where not
                measurable.
        """
        if self._files is None:
            return
        lines, board = self._files
        lines.write({"iteration": iteration, "eval": {dataset: results}})
        board.add_scalars(iteration, _evaluation_scalars(dataset, results))

    def log_losses(self, iteration: int, dataset: str, losses: Losses) -> None:
        """Write the losses on a test set, as an evaluation's are, to metrics.jsonl and TensorBoard."""
        if self._files is None:
            return
        lines, board = self._files
        lines.write({"iteration": iteration, "eval_losses": {dataset: losses}})
        points = [(model, name, value) for model, each in losses.items() for name, value in each.items()]
        tag = f"validation_loss/{_flat(dataset)}/"
        board.add_scalars(iteration, ((model, tag + name, value) for model, name, value in points))

    def hold(self) -> None:
        """Keep back the log periods that come now: an evaluation before them is still being scored."""
        if self._files is not None:
            self._files[0].hold()

    def release(self) -> None:
        """Write the log periods that were kept back."""
        if self._files is not None:
            self._files[0].release()

    def log_images(self, dataset: str, iteration: int, images: Sequence[Tensor]) -> None:
        """Show (3, H, W) uint8 RGB images in TensorBoard, the same ones at each evaluation."""
        if self._files is not None:
            self._files[1].add_images(f"validation_images/{_flat(dataset)}", iteration, images)

    def log_text(self, tag: str, text: str) -> None:
        """Show a preformatted text, such as the configuration, in TensorBoard."""
        if self._files is not None:
            self._files[1].add_text(tag, f"```\n{text}\n```", 0)

    def waiting(self) -> list[str]:
        """The lines of metrics.jsonl that the disk has refused so far, for a checkpoint."""
        return self._files[0].waiting() if self._files is not None else []

    def flush(self) -> dict[Path, str]:
        """Try again to write what the disk has refused; why it still does, by file."""
        return {} if self._files is None else self._files[0].flush() | self._files[1].flush()

    def close(self) -> None:
        """Flush and close the files."""
        if self._files is not None:
            for file in self._files:
                file.close()
            self._files = None


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
        fields.append(f"left out {record.skipped_steps} step(s)")
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


class _LineFile:
    """metrics.jsonl: a JSON object a line, each on disk before training goes on, if the disk takes it."""

    def __init__(self, path: Path, first_iteration: int, repeats_evaluation: bool) -> None:
        if path.exists():
            _drop_lines_after(path, first_iteration, repeats_evaluation)
        self._file = GrowingFile(path)
        self._held: list[Mapping[str, Any]] | None = None

    def add_missing(self, lines: Sequence[str]) -> None:
        """Append those lines that are not there."""
        present = set(_read(self._file.path).splitlines(keepends=True)) if lines else set()
        for line in lines:
            if line.encode() not in present:
                self._file.append(line.encode())

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append `entry` with every digit of its numbers; NaN and infinity become null."""
        self._file.append((json.dumps(replace_non_finite(entry)) + "\n").encode())

    def write_in_turn(self, entry: Mapping[str, Any]) -> None:
        """Append `entry`, or keep it until the lines before it are there."""
        if self._held is None:
            self.write(entry)
        else:
            self._held.append(entry)

    def hold(self) -> None:
        """Keep what comes in turn."""
        self._held = []

    def release(self) -> None:
        """Append what was kept."""
        held, self._held = self._held or [], None
        for entry in held:
            self.write(entry)

    def waiting(self) -> list[str]:
        """The lines that the disk has refused."""
        return [entry.decode() for entry in self._file.waiting()]

    def flush(self) -> dict[Path, str]:
        """Write what there is; why the disk refuses some of it."""
        self.release()
        reason = self._file.flush()
        return {self._file.path: reason} if reason else {}

    def close(self) -> None:
        self.release()
        self._file.close()


def _read(path: Path) -> bytes:
    with open_file(path) as file:
        return file.read()


def _drop_lines_after(path: Path, iteration: int, with_evaluation: bool) -> None:
    """Take back the lines of later steps, its own evaluation if asked, and what a crash left half-written."""
    content = _read(path)
    kept, num_damaged = [], 0
    for line in content.split(b"\n"):
        try:
            if line:
                entry = json.loads(line)
                if type(entry["iteration"]) is not int or entry["iteration"] < 0:
                    raise ValueError("no count of steps")
                is_evaluation = "eval" in entry or "eval_losses" in entry
                is_again = with_evaluation and entry["iteration"] == iteration and is_evaluation
                if entry["iteration"] <= iteration and not is_again:
                    kept.append(line + b"\n")
        except (ValueError, KeyError, TypeError, RecursionError):
            num_damaged += 1
    if num_damaged:
        logger.warning("%s: dropped %d damaged line(s)", path, num_damaged)
    text = b"".join(kept)
    if content.startswith(text):  # as ever, but for damage in its middle; needs no room on a full disk
        os.truncate(path, len(text))
    else:
        with replacing(path) as file:
            file.write(text)


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
