"""Steps whose losses are NaN or infinite: the run ends, leaves them out, or goes back to a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lgd.engine.progress import ADVICE, NonFiniteError, Progress, name_non_finite, stack_losses
from lgd.ranks import process_group
from lgd.words import counted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NonFinitePolicy:
    """What to do about a step whose losses, or whose gradients' norm, are no numbers on some rank.

    Attributes:
        action: "abort": `Progress` ends the run. "skip": no rank makes the step; weights, buffers, optimizers
            and averages stay as they were, and the next step follows. "rollback": in their place come those
            of the last checkpoint, and the next step follows all the same: what was trained on since is not
            seen again. Without such a checkpoint it skips.
        limit: such steps in a row (of rollbacks: since the checkpoint) that are borne.
        go_back: puts model, optimizers and average back to the last checkpoint, on every rank; returns its
            step, or None where there is none.
    """

    action: Literal["abort", "skip", "rollback"] = "abort"
    limit: int = 10
    go_back: Callable[[], int | None] = lambda: None


class StepGuard:
    """Lets only those steps happen whose losses are numbers.

    Unless the action is "abort" it costs a host sync a step (and, with several ranks, the sum of one number),
    and a copy of the model's buffers, since a forward pass with NaN may have spoiled them.
    """

    def __init__(self, policy: NonFinitePolicy, model: nn.Module, progress: Progress) -> None:
        self._policy = policy
        self._progress = progress
        self._buffers = [] if policy.action == "abort" else [each.detach() for each in model.buffers()]
        self._before: list[Tensor] = []

    def begin(self, *, after_checkpoint: bool) -> None:
        """Before a forward pass; `after_checkpoint`: whether the step before ended with a checkpoint."""
        self._before = [buffer.clone() for buffer in self._buffers]
        if after_checkpoint and self._policy.action == "rollback":
            self._progress.skipped_in_a_row = 0

    def allows(
        self, step: int, losses: Mapping[str, Tensor], image_ids: Sequence[int], num_skipped: int
    ) -> bool:
        """Whether the step shall be made; if not, everything is as if it had not begun, or as further back.

        Every rank calls it. Arguments are those of `Progress.add`.

        Raises:
            NonFiniteError: on every rank, after too many such steps.
        """
        if self._policy.action == "abort":
            return True
        bad = (~torch.isfinite(stack_losses(losses))).any().double()[None]
        if not process_group.all_reduce_sum(bad).item():
            if self._policy.action == "skip":
                self._progress.skipped_in_a_row = 0
            return True
        self._progress.leave_out(losses, num_skipped)
        told = f"non-finite loss at step {step}: {self._explain(losses, image_ids)}"
        if self._progress.skipped_in_a_row > self._policy.limit:
            raise NonFiniteError(
                f"{told}; left out before it: {counted(self._policy.limit, 'such step')} "
                f"(TRAIN.MAX_NONFINITE). {ADVICE}"
            )
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(before)
        step_of_checkpoint = self._policy.go_back() if self._policy.action == "rollback" else None
        done = (
            "left out" if step_of_checkpoint is None else f"back to the weights of step {step_of_checkpoint}"
        )
        logger.warning("%s; %s, %d in all", told, done, self._progress.skipped_steps)
        return False

    def _explain(self, losses: Mapping[str, Tensor], image_ids: Sequence[int]) -> str:
        """Which losses, and the images of those ranks that have them."""
        values = {name: value.item() for name, value in losses.items()}
        norm = {name: values.pop(name) for name in ("grad_norm",) if name in values}
        mine = (name_non_finite(values), name_non_finite(norm), list(image_ids))
        ranks = process_group.all_gather_objects(mine)
        # A gradient that is none is so on every rank, since they are averaged; the loss says whence.
        guilty = [rank for rank in ranks if rank[0]] or [rank for rank in ranks if rank[1]]
        names = dict.fromkeys(name for of_losses, of_norm, _ in guilty for name in of_losses or of_norm)
        images = [each for _, _, ids in guilty for each in ids]
        return f"{', '.join(names)}; images {self._progress.name_images(images)}"
