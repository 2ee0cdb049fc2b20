"""Where computing in bfloat16 pays."""

from __future__ import annotations

import torch

_OF_PROCESSORS = ("avx512_bf16", "amx_bf16")
"""Instructions that multiply such numbers: AMD's since Zen 4, Intel's since Cooper Lake."""


def multiplies_bfloat16(device: torch.device) -> bool | None:
    """Whether a device multiplies bfloat16 faster than float32; None where torch cannot tell."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return None
    can = torch.cpu.get_capabilities()
    return any(can.get(name, False) for name in _OF_PROCESSORS)
