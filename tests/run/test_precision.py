"""Advice on bfloat16."""

import pytest
import torch

from lgd.layers.bfloat16 import multiplies_bfloat16
from lgd.run import precision
from lgd.run.precision import advise_precision


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"amx_bf16": True}, True),
        ({"avx512_f": True, "avx512_bf16": False}, False),
        ({}, False),
    ],
)
def test_processors(monkeypatch, flags, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    assert multiplies_bfloat16(torch.device("cpu")) is expected


def test_what_torch_cannot_tell_is_neither(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert multiplies_bfloat16(torch.device("cpu")) is None
    assert multiplies_bfloat16(torch.device("meta")) is None
    for mixed in (True, False):
        assert list(advise_precision(torch.device("cpu"), mixed_precision=mixed)) == []


@pytest.mark.parametrize(
    ("device", "pays", "mixed", "says"),
    [
        ("cpu", True, False, ["this processor multiplies bfloat16: SOLVER.AMP.ENABLED True trains"]),
        ("cpu", True, True, []),
        ("cpu", False, False, []),
        ("cpu", False, True, ["this processor has no bfloat16 of its own: SOLVER.AMP.ENABLED False"]),
        ("cuda", True, False, []),
        ("cuda", False, True, ["this GPU has no bfloat16 of its own: SOLVER.AMP.ENABLED False"]),
    ],
)
def test_what_is_said(monkeypatch, device, pays, mixed, says):
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda _: pays)
    lines = list(advise_precision(torch.device(device), mixed_precision=mixed))
    assert len(lines) == len(says)
    assert all(line.startswith(start) for line, start in zip(lines, says, strict=True))
