"""Compute what the ranks of a training send one another, and what that costs: the tables of docs/scaling.md.

    python benchmarks/comm.py                         # gradients of every recipe, and step times
    python benchmarks/comm.py --recipe fcos/r50_2x_ms_lgd.yaml --step-seconds 0.35

Nothing is measured: models are built without memory, times follow from the formula in docs/scaling.md.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lgd.build import build_model, build_schedule
from lgd.config.load import load_config

CONFIGS = Path(__file__).parents[1] / "configs"
NODES = (1, 2, 4, 8, 16, 20)
GIGABITS = (25, 100, 400)
GPUS_PER_NODE = 8
BYTES_PER_GRADIENT = 4
BUCKET_BYTES = 25 * 2**20
BACKWARD_SHARE = 2 / 3
USABLE_BANDWIDTH = 0.8
EXAMPLES = {"retinanet/r50_2x_ms_lgd.yaml": 0.25, "retinanet/x101_dcn_2x_ms_lgd.yaml": 0.6}
"""Recipes, and seconds of a step on one node: assumed."""


@dataclass(frozen=True)
class Gradients:
    """What one step averages over the ranks.

    Attributes:
        frozen_bytes: while the backbone is frozen; as `bytes` where it never is.
        bytes: afterwards.
        frozen_share: part of the steps with a frozen backbone.
    """

    frozen_bytes: int
    bytes: int
    frozen_share: float


def count_gradients(recipe: Path) -> Gradients:
    """Build the recipe's model on the meta device and count what trains in each phase."""
    cfg = load_config(recipe, [])
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about initialising what has no memory
        model = build_model(cfg)
    backbone = {id(parameter) for parameter in model.student.backbone_parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    frozen_steps = build_schedule(cfg).pre_freeze
    left = [p for p in trained if id(p) not in backbone] if frozen_steps else trained
    return Gradients(
        BYTES_PER_GRADIENT * sum(parameter.numel() for parameter in left),
        BYTES_PER_GRADIENT * sum(parameter.numel() for parameter in trained),
        frozen_steps / cfg.solver.max_iter,
    )


def step_seconds(gradient_bytes: int, nodes: int, gigabits: float, alone_seconds: float) -> float:
    """Seconds of a step on `nodes` nodes, of which one takes `alone_seconds`.

    A ring over all R ranks sends 2 (R - 1) / R times the gradients over every node's link. That overlaps with
    the backward pass, but for the last bucket.
    """
    if nodes == 1:
        return alone_seconds
    ranks = nodes * GPUS_PER_NODE
    seconds_per_byte = 2 * (ranks - 1) / ranks * 8 / (USABLE_BANDWIDTH * gigabits * 1e9)
    hidden = BACKWARD_SHARE * alone_seconds
    last_bucket = seconds_per_byte * min(gradient_bytes, BUCKET_BYTES)
    return alone_seconds + max(seconds_per_byte * gradient_bytes - hidden, last_bucket)


def recipes() -> dict[str, Path]:
    """A recipe for every model, by detector, backbone and kind: the schedule does not change what is sent."""
    found: dict[str, Path] = {}
    for path in sorted(CONFIGS.glob("*/r*_*.yaml")) + sorted(CONFIGS.glob("*/[sx]*_*.yaml")):
        name = re.sub(r"_[123]x_[ms]s", "", path.stem)
        if path.parent.name not in ("bases", "examples"):
            found.setdefault(f"{path.parent.name} {name.replace('_', ' ')}", path)
    return dict(sorted(found.items()))


def gradient_table(names: Iterable[str]) -> list[str]:
    """Lines of a Markdown table: megabytes a step of recipes of `recipes()`."""
    lines = ["| model | MB a step | backbone frozen | of the steps |", "|---|---|---|---|"]
    files = recipes()
    for name in names:
        gradients = count_gradients(files[name])
        whole, frozen = gradients.bytes / 1e6, gradients.frozen_bytes / 1e6
        phase = f"{frozen:.0f} | {gradients.frozen_share:.0%}" if gradients.frozen_share else "- | -"
        lines.append(f"| {name} | {whole:.0f} | {phase} |")
    return lines


def time_table(gradient_bytes: int, alone_seconds: float) -> list[str]:
    """Lines of a Markdown table: step time, and images a second as a share of `nodes` times one node's."""
    lines = [f"| nodes | {' | '.join(f'{g} Gb/s' for g in GIGABITS)} |", "|---|" + "---|" * len(GIGABITS)]
    for nodes in NODES:
        times = [step_seconds(gradient_bytes, nodes, gigabits, alone_seconds) for gigabits in GIGABITS]
        cells = [f"{1000 * t:.0f} ms, {alone_seconds / t:.0%}" for t in times]
        lines.append(f"| {nodes} | {' | '.join(cells)} |")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="", metavar="FILE", help="below configs/; else all gradients")
    parser.add_argument("--step-seconds", type=float, default=0.25, help="of one node of 8 GPUs")
    options = parser.parse_args(argv)
    if not options.recipe:
        print("\n".join(gradient_table(recipes())))
    examples = {options.recipe: options.step_seconds} if options.recipe else EXAMPLES
    for recipe, alone_seconds in examples.items():
        gradients = count_gradients(CONFIGS / recipe)
        print(f"\n`{recipe}`, {gradients.bytes / 1e6:.0f} MB, {alone_seconds} s a step on one node:\n")
        print("\n".join(time_table(gradients.bytes, alone_seconds)))


if __name__ == "__main__":
    main()
