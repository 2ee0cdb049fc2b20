"""When to distill and when to freeze the student's backbone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """What holds during one step.

    Attributes:
        freeze_backbone: the student's backbone is left as it is.
        distill: the student learns from the distillation loss (the adapter always does).
        head_share: of the gradient of the teacher's losses, what reaches the student's head; in [0, 1].
        weight_factor: of the distillation loss, beside its weight.
    """

    freeze_backbone: bool
    distill: bool
    head_share: float = 1.0
    weight_factor: float = 1.0


@dataclass(frozen=True)
class DistillSchedule:
    """The phases of a run, in steps; all zeros (but `max_iter`) for a plain student.

    Attributes:
        pre_nondistill: no distillation before this step.
        post_nondistill: no distillation after step `max_iter - post_nondistill`, which itself still distills.
        pre_freeze: the backbone is frozen before this step.
        max_iter: steps of the run.
        head_fixed: the teacher's losses leave the student's head as it is before this step.
        head_ramp: steps from then on until they train it wholly.
        weight_steps: at each of these the distillation's weight is multiplied by `weight_gamma`.
        weight_gamma: positive.
    """

    pre_nondistill: int
    post_nondistill: int
    pre_freeze: int
    max_iter: int
    head_fixed: int = 0
    head_ramp: int = 0
    weight_steps: tuple[int, ...] = ()
    weight_gamma: float = 1.0

    def phase(self, step: int) -> Phase:
        """Return the phase of `step`, counted from 0."""
        return Phase(
            freeze_backbone=step < self.pre_freeze,
            distill=self.pre_nondistill <= step <= self.max_iter - self.post_nondistill,
            head_share=self._head_share(step),
            weight_factor=self.weight_gamma ** sum(step >= start for start in self.weight_steps),
        )

    def _head_share(self, step: int) -> float:
        """0 before `head_fixed`, 1 from `head_ramp` steps later on, in equal steps between."""
        return min(max((step - self.head_fixed + 1) / (self.head_ramp + 1), 0.0), 1.0)
