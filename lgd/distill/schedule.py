"""When to distill and when to freeze the student's backbone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """What holds during one step.

    Attributes:
        freeze_backbone: the student's backbone is left as it is.
        distill: the student learns from the distillation loss (the adapter always does).
    """

    freeze_backbone: bool
    distill: bool


@dataclass(frozen=True)
class DistillSchedule:
    """The phases of a run, in steps; all zeros (but `max_iter`) for a plain student.

    Attributes:
        pre_nondistill: no distillation before this step.
        post_nondistill: no distillation after step `max_iter - post_nondistill`, which itself still distills.
        pre_freeze: the backbone is frozen before this step.
        max_iter: steps of the run.
    """

    pre_nondistill: int
    post_nondistill: int
    pre_freeze: int
    max_iter: int

    def phase(self, step: int) -> Phase:
        """Return the phase of `step`, counted from 0."""
        return Phase(
            freeze_backbone=step < self.pre_freeze,
            distill=self.pre_nondistill <= step <= self.max_iter - self.post_nondistill,
        )
