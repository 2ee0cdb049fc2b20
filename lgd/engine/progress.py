"""Losses of a log period, kept on the device until they are asked for."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lgd.engine.jumps import Jump, JumpWatch
from lgd.ranks import process_group

logger = logging.getLogger(__name__)

ADVICE = "Lower the learning rate (SOLVER.BASE_LR), lengthen SOLVER.WARMUP_ITERS, or look at these images"


class NonFiniteError(ValueError):
    """A loss became NaN or infinite."""


class Progress:
    """Averages of losses and gradient norm since the last log line, over all ranks.

    Adding costs no host sync on CUDA; `averages` and `state` cost one reduction and one sync.
    A non-finite loss is found at once on the CPU and at the next reduction on CUDA, in any case
    before a checkpoint is written. A loss that jumps is warned of at the reduction.

    Args:
        device: where the losses are.
        loss_jump: see `JumpWatch`; 0 warns of none.
        name_images: says of ids which images they are.

    Attributes:
        skipped_images: unreadable images that were replaced since the run began.
        skipped_steps: steps that were left out since the run began.
        skipped_in_a_row: those of them with no other step between.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        loss_jump: float = 0.0,
        name_images: Callable[[Sequence[int]], str] = str,
    ) -> None:
        self.device = device
        self.name_images = name_images
        self.names: tuple[str, ...] = ()
        self.recent: list[tuple[int, Tensor, list[int]]] = []
        self.sums: list[float] = []
        self.count = 0
        self.skipped_here = 0
        self.skipped_images = 0
        self.skipped_steps = 0
        self.skipped_in_a_row = 0
        self._jumps = JumpWatch(loss_jump)

    def add(
        self, step: int, losses: Mapping[str, Tensor], image_ids: Sequence[int], num_skipped: int
    ) -> None:
        """Take the losses of one step.

        Args:
            step: the step, from 0, for the message of a non-finite loss.
            losses: scalars by name, the same names in every call.
            image_ids: the images of this rank's step.
            num_skipped: unreadable images that were replaced.

        Raises:
            NonFiniteError: on the CPU, a loss is NaN or infinite.
        """
        self.names = tuple(losses)
        values = stack_losses(losses)
        self.recent.append((step, values, list(image_ids)))
        self.skipped_here += num_skipped
        if self.device.type == "cpu":
            self._check_finite([self.recent[-1]], values[None])

    def leave_out(self, losses: Mapping[str, Tensor], num_skipped: int) -> None:
        """Count a step that is left out; its losses count for nothing."""
        self.names = tuple(losses)
        self.skipped_here += num_skipped
        self.skipped_steps += 1
        self.skipped_in_a_row += 1

    def averages(self) -> dict[str, float]:
        """Return the averages by name, with "total_loss", and start a new period; NaN without a step."""
        self._reduce()
        sums = self.sums or [math.nan] * len(self.names)
        averages = {name: value / max(self.count, 1) for name, value in zip(self.names, sums, strict=True)}
        self.sums, self.count = [], 0
        return averages

    def state(self) -> dict[str, Any]:
        """The unfinished period, for a checkpoint."""
        self._reduce()
        return {
            "names": list(self.names),
            "sums": list(self.sums),
            "count": self.count,
            "skipped_images": self.skipped_images,
            "skipped_steps": self.skipped_steps,
            "skipped_in_a_row": self.skipped_in_a_row,
            "recent_losses": list(self._jumps.recent),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on with the unfinished period of a checkpoint."""
        self.names = tuple(state["names"])
        self.sums = list(state["sums"])
        self.count = int(state["count"])
        self.skipped_images = int(state["skipped_images"])
        self.skipped_steps = int(state.get("skipped_steps") or 0)
        self.skipped_in_a_row = int(state.get("skipped_in_a_row") or 0)
        self._jumps.recent.clear()
        self._jumps.recent.extend(state.get("recent_losses") or ())

    def _reduce(self) -> None:
        """Move what is on the device, summed over the ranks, to the host."""
        if not self.recent:
            return
        values = torch.stack([values for _, values, _ in self.recent])
        skipped = torch.tensor([float(self.skipped_here)], dtype=torch.float64, device=self.device)
        totals = values[:, self.names.index("total_loss")] if "total_loss" in self.names else values[:0, 0]
        local = torch.cat([values.sum(0), skipped, totals])
        reduced = process_group.all_reduce_sum(local).tolist()
        self._check_finite(self.recent, values)
        world_size, num_losses = process_group.get_world_size(), len(self.names)
        means = [value / world_size for value in reduced[:num_losses]]
        self.sums = [old + new for old, new in zip(self.sums or [0.0] * len(means), means, strict=True)]
        self.count += len(self.recent)
        self.skipped_images += int(reduced[num_losses])
        jumps = self._jumps.look([total / world_size for total in reduced[num_losses + 1 :]])
        if jumps:
            self._warn_of(jumps)
        self.recent, self.skipped_here = [], 0

    def _warn_of(self, jumps: Sequence[Jump]) -> None:
        """Say, once a period, which loss jumped furthest; every rank calls it."""
        worst = max(jumps, key=lambda jump: jump.deviations)
        step, _, mine = self.recent[worst.index]
        image_ids = [each for ids in process_group.all_gather_objects(mine) for each in ids]
        others = f", {len(jumps) - 1} more of these {len(self.recent)} steps" if len(jumps) > 1 else ""
        logger.warning(
            "the loss jumped at step %d: %.4g, %.0f median deviations above %.4g, the median of the last "
            "%d steps; images %s%s",
            *(step, worst.value, worst.deviations, worst.median, len(self._jumps.recent)),
            *(self.name_images(image_ids), others),
        )

    def _check_finite(self, recent: Sequence[tuple[int, Tensor, list[int]]], values: Tensor) -> None:
        finite = torch.isfinite(values).cpu()
        if bool(finite.all()):
            return
        row = int((~finite).any(1).nonzero()[0])
        step, losses, image_ids = recent[row]
        bad = ", ".join(name_non_finite(dict(zip(self.names, losses.tolist(), strict=True))))
        raise NonFiniteError(
            f"non-finite loss at step {step}: {bad}; images {self.name_images(image_ids)}. {ADVICE}, or "
            "leave such steps out (TRAIN.ON_NONFINITE skip)"
        )


def stack_losses(losses: Mapping[str, Tensor]) -> Tensor:
    """The losses of a step as one float64 vector on their device."""
    return torch.stack([value.detach().double() for value in losses.values()])


def name_non_finite(losses: Mapping[str, float]) -> list[str]:
    """Say "loss_cls = nan" of every loss that is no number."""
    return [f"{name} = {value}" for name, value in losses.items() if not math.isfinite(value)]
