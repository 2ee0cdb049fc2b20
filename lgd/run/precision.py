"""Advice on the numbers that a training computes with."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lgd.layers.bfloat16 import multiplies_bfloat16

_SETTING = "SOLVER.AMP.ENABLED"


def advise_precision(device: torch.device, *, mixed_precision: bool) -> Iterator[str]:
    """Yield a line where the other precision is the faster one on this device.

    On a GPU float32 is left without one: whoever compares with the reference wants it.
    """
    pays = multiplies_bfloat16(device)
    if mixed_precision and pays is False:
        kind = "processor" if device.type == "cpu" else "GPU"
        yield f"this {kind} has no bfloat16 of its own: {_SETTING} False trains faster"
    if not mixed_precision and pays and device.type == "cpu":
        yield f"this processor multiplies bfloat16: {_SETTING} True trains about 1.5 times as fast"
