"""Profile a recipe's training step: a trace, and the ten operations that take longest.

    python benchmarks/profile_step.py                                       # the recipe demo on the CPU
    python benchmarks/profile_step.py --config-file configs/retinanet/r50_2x_ms_lgd.yaml --device cuda \
        --batch 16 --size 800 1344 SOLVER.AMP.ENABLED True
    python benchmarks/profile_step.py ... MODEL.DISTILLATOR.ENABLED False   # the plain student

The trace in --out opens in TensorBoard's profiler (tensorboard --logdir, with torch-tb-profiler), in
chrome://tracing and in Perfetto. Times are those of an operation without what it calls, per step. (The script
is not called profile.py, which would stand before Python's own module of that name.)
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import report
import torch
from torch.profiler import ProfilerActivity, profile, schedule, tensorboard_trace_handler

from lgd.bench.machine import matrix_ceiling
from lgd.bench.step import Step, make_batch, make_step
from lgd.build.training import reads_masks
from lgd.config.load import load_config

COLUMNS = ("operation", "calls a step", "ms a step", "of the step's", "GFLOP a step")


def run_profiled(step: Step, num_steps: int, folder: Path) -> Iterable[Any]:
    """Take a step to warm up and some more under the profiler; returns the operations' averages."""
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if step.device.type == "cuda" else []
    with profile(
        activities=activities,
        schedule=schedule(wait=1, warmup=1, active=num_steps),
        on_trace_ready=tensorboard_trace_handler(str(folder)),
        with_flops=True,
    ) as profiler:
        for _ in range(2 + num_steps):
            step.take()
            profiler.step()
    averages: Iterable[Any] = profiler.key_averages()
    return averages


def dearest(averages: Iterable[Any], num_steps: int, on_cuda: bool, limit: int = 10) -> list[list[Any]]:
    """The table's rows: the operations of the most time of their own, and a last one for the others."""
    field = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    # The profiler's own brackets around a step are no operations.
    events = [each for each in averages if not each.key.startswith("ProfilerStep")]
    events.sort(key=lambda each: getattr(each, field), reverse=True)
    total = sum(getattr(each, field) for each in events) or 1
    rows: list[list[Any]] = [
        [
            each.key,
            each.count / num_steps,
            getattr(each, field) / num_steps / 1e3,
            getattr(each, field) / total,
            each.flops / num_steps / 1e9 if each.flops else None,
        ]
        for each in events[:limit]
    ]
    rest = events[limit:]
    if rest:
        microseconds = sum(getattr(each, field) for each in rest)
        count = sum(each.count for each in rest) / num_steps
        rows.append(
            [f"{len(rest)} others", count, microseconds / num_steps / 1e3, microseconds / total, None]
        )
    return rows


def main() -> None:
    """Print the table and where the trace is."""
    parser = report.make_parser(__doc__)
    parser.add_argument("--config-file", type=Path, default=report.ROOT / "configs/demo.yaml")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=[160, 224], metavar=("H", "W"))
    parser.add_argument("--boxes", type=int, default=7, help="objects of an image")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("outputs/profile"), metavar="FOLDER")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings over the recipe's")
    arguments = parser.parse_intermixed_args()
    device = torch.device(arguments.device)
    cfg = load_config(arguments.config_file, ["NUM_CLASSES", "80", *arguments.opts])
    batch = make_batch(
        arguments.batch,
        *arguments.size,
        num_boxes=arguments.boxes,
        num_classes=cfg.num_classes,
        device=device,
        with_masks=reads_masks(cfg),
    )
    step = make_step(cfg, batch, device)
    averages = run_profiled(step, arguments.steps, arguments.out)
    ceiling = matrix_ceiling(device, step.dtype)
    height, width = arguments.size
    report.publish(
        f"Profile of {arguments.config_file.parent.name}/{arguments.config_file.name}: "
        f"{arguments.batch} images of {height} x {width}, {arguments.boxes} objects each; "
        f"a large matrix product reaches {ceiling / 1e12:.3g} TFLOP/s",
        report.describe_machine(arguments.device),
        COLUMNS,
        dearest(averages, arguments.steps, device.type == "cuda"),
        arguments.json,
    )
    print(f"\ntrace: {arguments.out}")


if __name__ == "__main__":
    main()
