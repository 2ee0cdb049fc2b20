"""Hold our answer to a case against what the reference recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Limits:
    """Largest differences (relative; pixels for boxes) and the least share of detections matched."""

    loss: float
    gradient: float
    feature: float
    pixels: float
    score: float
    matched: float


LIMITS = {
    "float64": Limits(loss=1e-7, gradient=1e-6, feature=1e-7, pixels=1e-3, score=1e-6, matched=1.0),
    "float32": Limits(loss=1e-3, gradient=5e-3, feature=1e-3, pixels=0.1, score=1e-3, matched=0.75),
}
NEGLIGIBLE = 1e-6  # a gradient so much smaller than the largest is rounding: a bias before a norm


def differences(result: Mapping[str, Any], recorded: Mapping[str, Any]) -> list[str]:
    """Everything in a single step's result that is over its limit, one line each."""
    limits = LIMITS[result["dtype"]]
    found: list[str] = []
    for part, ours in result.items():
        if part == "dtype":
            continue
        check = _step_differences if part.startswith("train") else _detection_differences
        found += [f"{part}: {line}" for line in check(ours, recorded[part], limits)]
    return found


def trace_differences(result: Mapping[str, Any], recorded: Mapping[str, Any]) -> list[str]:
    """Everything in a trace's result that is over its limit, one line each."""
    limits = LIMITS[result["dtype"]]
    found = [] if len(result["steps"]) == len(recorded["steps"]) else ["another number of steps"]
    for ours, theirs in zip(result["steps"], recorded["steps"], strict=False):
        lines = list(_far(ours["losses"], theirs["losses"], limits.loss))
        rates = ("iteration", "stu_lr", "tea_lr")
        lines += _far({k: ours[k] for k in rates}, {k: theirs[k] for k in rates}, limits.loss)
        found += [f"step {theirs['iteration']}: {line}" for line in lines]
    name = "l2_of_total_parameter_change"
    floor = NEGLIGIBLE * max(recorded[name].values())
    return found + [
        f"change of {line}" for line in _far(result[name], recorded[name], limits.gradient, floor)
    ]


def _step_differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], limits: Limits) -> Iterator[str]:
    yield from _far(ours["losses"], theirs["losses"], limits.loss)
    norms = {name: norm or 0.0 for name, norm in theirs["grad_norms"].items()}
    our_norms = {name: ours["grad_norms"].get(name) or 0.0 for name in norms}
    floor = NEGLIGIBLE * max(norms.values())
    yield from (f"gradient of {line}" for line in _far(our_norms, norms, limits.gradient, floor))
    frozen = theirs["requires_grad_false"]
    yield from (f"{name} has a gradient" for name in frozen if ours["grad_norms"].get(name))
    after = "loss_normalizer_after"
    if theirs.get(after) is not None:
        yield from _far({after: ours[after]}, {after: theirs[after]}, limits.loss)
    for side, levels in ours["stats"].items():
        for level, stats in levels.items() if "stats" in theirs else ():
            recorded = theirs["stats"][side][level]
            yield from _far(
                {f"{side} {level}": stats["l2"]}, {f"{side} {level}": recorded["l2"]}, limits.feature
            )
            picked = zip(stats["strided8"], recorded["strided8"], strict=True)
            if max(abs(a - b) for a, b in picked) > limits.feature * recorded["std"]:
                yield f"{side} {level}: other values"


def _far(
    ours: Mapping[str, float], theirs: Mapping[str, float], limit: float, floor: float = 1e-8
) -> Iterator[str]:
    if ours.keys() != theirs.keys():
        yield f"other names: {sorted(ours.keys() ^ theirs.keys())}"
        return
    for name, value in theirs.items():
        error = abs(ours[name] - value) / max(abs(value), floor)
        if not error <= limit:
            yield f"{name}: {ours[name]!r} for {value!r}, off by {error:.1e}"


def _detection_differences(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], limits: Limits
) -> Iterator[str]:
    if len(ours) != len(theirs):
        yield f"{len(ours)} images for {len(theirs)}"
        return
    total = sum(max(len(a["scores"]), len(b["scores"])) for a, b in zip(ours, theirs, strict=True))
    matched = sum(_count_matches(a, b, limits) for a, b in zip(ours, theirs, strict=True))
    if matched < limits.matched * total:
        yield f"{matched} of {total} detections matched"


def _count_matches(ours: Mapping[str, Any], theirs: Mapping[str, Any], limits: Limits) -> int:
    """Pair detections of one image, each at most once: same class, near score and box, like mask."""
    free = torch.ones(len(ours["scores"]), dtype=torch.bool)
    boxes, scores, classes = (
        torch.tensor(ours[key], dtype=torch.float64) for key in ("boxes", "scores", "classes")
    )
    count = 0
    for number, (box, score, label) in enumerate(
        zip(theirs["boxes"], theirs["scores"], theirs["classes"], strict=True)
    ):
        distances = (boxes - torch.tensor(box, dtype=torch.float64)).abs().amax(1)
        fits = free & (classes == label) & ((scores - score).abs() <= limits.score)
        distances = distances.masked_fill(~fits, torch.inf)
        if len(distances) == 0 or distances.min() > limits.pixels:
            continue
        nearest = int(distances.argmin())
        if "masks" not in theirs or _alike(ours["masks"][nearest]["area"], theirs["masks"][number]["area"]):
            free[nearest] = False
            count += 1
    return count


def _alike(area: int, recorded: int) -> bool:
    return abs(area - recorded) <= max(2, 0.002 * recorded)
