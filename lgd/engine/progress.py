"""Losses of a log period, kept on the device until they are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lgd.ranks import process_group


class NonFiniteError(ValueError):
    """A loss became NaN or infinite."""


class Progress:
    """Averages of losses and gradient norm since the last log line, over all ranks.

    Adding costs no host sync on CUDA; `averages` and `state` cost one reduction and one sync.
    A non-finite loss is found at once on the CPU and at the next reduction on CUDA, in any case
    before a checkpoint is written.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.names: tuple[str, ...] = ()
        self.recent: list[tuple[int, Tensor, list[int]]] = []
        self.sums: list[float] = []
        self.count = 0
        self.skipped_here = 0
        self.skipped_images = 0

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
        values = torch.stack([value.detach().double() for value in losses.values()])
        self.recent.append((step, values, list(image_ids)))
        self.skipped_here += num_skipped
        if self.device.type == "cpu":
            self._check_finite([self.recent[-1]], values[None])

    def averages(self) -> dict[str, float]:
        """Return the averages by name, with "total_loss", and start a new period."""
        self._reduce()
        averages = {name: value / self.count for name, value in zip(self.names, self.sums, strict=True)}
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
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on with the unfinished period of a checkpoint."""
        self.names = tuple(state["names"])
        self.sums = list(state["sums"])
        self.count = int(state["count"])
        self.skipped_images = int(state["skipped_images"])

    def _reduce(self) -> None:
        """Move what is on the device, summed over the ranks, to the host."""
        if not self.recent:
            return
        values = torch.stack([values for _, values, _ in self.recent])
        skipped = torch.tensor([float(self.skipped_here)], dtype=torch.float64, device=self.device)
        local = torch.cat([values.sum(0), skipped])
        *sums, num_skipped = process_group.all_reduce_sum(local).tolist()
        self._check_finite(self.recent, values)
        world_size = process_group.get_world_size()
        means = [value / world_size for value in sums]
        self.sums = [old + new for old, new in zip(self.sums or [0.0] * len(means), means, strict=True)]
        self.count += len(self.recent)
        self.skipped_images += int(num_skipped)
        self.recent, self.skipped_here = [], 0

    def _check_finite(self, recent: Sequence[tuple[int, Tensor, list[int]]], values: Tensor) -> None:
        finite = torch.isfinite(values).cpu()
        if bool(finite.all()):
            return
        row = int((~finite).any(1).nonzero()[0])
        step, losses, image_ids = recent[row]
        bad = ", ".join(
            f"{name} = {value}"
            for name, value in zip(self.names, losses.tolist(), strict=True)
            if value != value or value in (float("inf"), float("-inf"))
        )
        raise NonFiniteError(
            f"non-finite loss at step {step}: {bad}; images {image_ids}. Lower the learning rate "
            "(SOLVER.BASE_LR), lengthen SOLVER.WARMUP_ITERS, or look at these images"
        )
