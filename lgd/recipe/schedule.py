"""How long to train, in batches of how many, and by which method."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lgd.inspect.advice import Sides, Size
from lgd.recipe.machine import Machine
from lgd.words import counted

Method = Literal["plain", "lgd"]

LGD_PAYS_FROM = 3000
"""Steps below which plain training was the better one on blood cells (BCCD): 37.2 against 32.0 AP after 200
steps. At 3,000 they were even within what seeds scatter."""

_STEPS = {"small": 1200, "base": 9000}
"""Steps that a training from scratch, or from ImageNet's weights, should have at least."""
_STEPS_FROM_LITE = 450
"""The same for a small model from ImageNet's weights; on blood cells (BCCD) that is AP50 90."""
_EPOCHS = {"small": (4, 100), "base": (12, 100)}
"""Fewest and most epochs that are chosen unasked."""

_GIB_OF_MEGAPIXEL = {"small": 0.7, "base": 2.4}
"""What a forward and backward pass keeps of an image in float32; LGD adds a third, bfloat16 halves it."""
_GIB_OF_MODEL = {"small": 0.8, "base": 2.0}


@dataclass(frozen=True)
class Schedule:
    """The length of a training.

    Attributes:
        batch: images of a step, over all ranks.
        epochs: passes over the data; not whole where the steps were asked for.
        steps: of the whole training.
        steps_of_epoch: of one pass.
        method: with LGD or plain.
        why_batch: a line.
        why_method: a line.
    """

    batch: int
    epochs: float
    steps: int
    steps_of_epoch: int
    method: Method
    why_batch: str
    why_method: str

    @property
    def in_words(self) -> str:
        """How its passes are divided."""
        return f"{counted(f'{self.epochs:.3g}', 'epoch')} of {counted(self.steps_of_epoch, 'step')}"


def choose_schedule(
    images: int,
    size: Size,
    sides: Sides,
    machine: Machine,
    *,
    epochs: int | None,
    method: Method | None,
    batch: int | None = None,
    steps: int | None = None,
    from_lite: bool = False,
) -> Schedule:
    """Choose what is None of it.

    Args:
        images: with objects, of the training set; at least one.
        size: of the model.
        sides: of the pictures that it sees.
        machine: where it trains.
        epochs: passes over the data.
        method: with LGD or plain.
        batch: images of a step.
        steps: of the training; they win over `epochs`.
        from_lite: whether a small model starts from ImageNet's weights.
    """
    why_batch = "as asked"
    if batch is None:
        batch, why_batch = _choose_batch(images, size, sides, machine, method)
    steps_of_epoch = math.ceil(images / batch)
    if steps is None:
        fewest, most = _EPOCHS[size]
        enough = _STEPS_FROM_LITE if from_lite else _STEPS[size]
        epochs = epochs or min(max(math.ceil(enough / steps_of_epoch), fewest), most)
        steps = epochs * steps_of_epoch
    why_method = "as asked"
    if method is None:
        method = "plain" if steps < LGD_PAYS_FROM else "lgd"
        why_method = (
            f"in fewer than {LGD_PAYS_FROM} steps LGD costs AP (BCCD, 200 steps: 32.0 against 37.2)"
            if method == "plain"
            else f"with {LGD_PAYS_FROM} steps and more its teacher has the time to learn"
        )
    return Schedule(batch, steps / steps_of_epoch, steps, steps_of_epoch, method, why_batch, why_method)


def _choose_batch(
    images: int, size: Size, sides: Sides, machine: Machine, method: Method | None
) -> tuple[int, str]:
    """A power of two a rank: what suits the device, fits its memory, and is an eighth of the data or less."""
    most = 16 if machine.device == "cuda" else 4 if machine.cores < 8 else 8
    if size == "base":
        most = max(1, 16 // machine.ranks) if machine.device == "cuda" else 2
    of_image = _GIB_OF_MEGAPIXEL[size] * sides.test * sides.longest / 1e6
    of_image *= 1.0 if method == "plain" else 4 / 3
    of_image *= 0.5 if machine.device == "cuda" else 1.0
    room = 0.7 * machine.memory_of_rank - _GIB_OF_MODEL[size]
    fitting = max(1, int(room / of_image))
    of_rank = 2 ** int(math.log2(min(most, fitting, max(1, images // (8 * machine.ranks)))))
    return of_rank * machine.ranks, f"for {machine.in_words} with {machine.memory_of_rank:.0f} GiB of memory"


def drops(steps: int) -> list[int]:
    """When the rate falls to a tenth, twice, as in COCO's 1x schedule."""
    return [max(1, steps * 2 // 3), max(1, steps * 8 // 9)]


def period(schedule: Schedule) -> int:
    """Steps between evaluations: about five in all, but whole epochs where these are longer."""
    wanted = math.ceil(schedule.steps / 5)
    return min(schedule.steps, max(1, round(wanted / schedule.steps_of_epoch)) * schedule.steps_of_epoch)
