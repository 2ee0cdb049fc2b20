"""`lgd bench [--config-file FILE] [KEY VALUE ...]`: how fast this machine trains, and what limits it."""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lgd import exits
from lgd.bench.machine import machine_facts, matrix_ceiling, take_turns
from lgd.bench.pictures import write_pictures
from lgd.bench.step import Step, make_batch, make_step
from lgd.build import build_train_loader, micro_batch_size
from lgd.build.training import reads_masks
from lgd.config.keys import with_values
from lgd.config.load import load_config
from lgd.config.schema import Config
from lgd.config.solver import scale_to_world_size
from lgd.data.coco import load_coco
from lgd.data.errors import DataError
from lgd.data.index import AnnotationIndex
from lgd.data.synthetic import write_synthetic
from lgd.events import add_json_option, json_file, wants_events, write_event
from lgd.files import prepare_file, write_text_atomically
from lgd.preflight.report import align
from lgd.ranks import process_group
from lgd.ranks.cores import count_cores
from lgd.run.complaints import answer
from lgd.run.data import open_training_data
from lgd.run.log import log_as_json
from lgd.words import counted

STUDENT, DISTILLED = "student", "with LGD"

_NUM_SCENES, _NUM_PICTURES = 48, 16
_MOST_TURNS = 7


class _Workload(NamedTuple):
    batch: int
    height: int
    width: int


_MOST_ON_CPU = _Workload(4, 256, 352)
"""What an R-50 with LGD steps through in seconds on a few cores."""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="lgd bench",
        description="Time a recipe's training step, plain and with LGD, and its loader: under a minute.",
    )
    parser.add_argument(
        "--config-file", default="configs/demo.yaml", metavar="RECIPE", help="default: demo, a small one"
    )
    parser.add_argument(
        "--batch", type=int, metavar="N", help="images of a step; the recipe's share of a GPU"
    )
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="canvas; the recipe's largest 4:3"
    )
    parser.add_argument("--boxes", type=int, default=7, metavar="N", help="objects of an image")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="for the timed steps, after the first two"
    )
    add_json_option(parser)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings over the recipe's")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.boxes < 1 or arguments.seconds <= 0 or (arguments.batch or 1) < 1:
        parser.error("--boxes and --batch must be at least 1, --seconds above 0")
    if any(side < 64 or side % 32 for side in arguments.size or ()):
        parser.error("--size must be multiples of 32, at least 64")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 for what the user can mend."""
    arguments = parse_arguments(argv)
    if wants_events(arguments):
        log_as_json()
    return answer(partial(_bench, arguments), json_file(arguments))


def _bench(arguments: argparse.Namespace) -> int:
    file = json_file(arguments)
    if file is not None:
        prepare_file(file)
    cfg = load_config(arguments.config_file, arguments.opts)
    cfg, _ = scale_to_world_size(cfg, 1)
    figures = _measure(cfg, arguments)
    words = sys.stdout
    if wants_events(arguments):
        write_event("result", **figures)
        words = sys.stderr
    words.write("\n".join(describe(figures)) + "\n")
    if file is not None:
        write_text_atomically(file, json.dumps(figures, indent=2) + "\n")
    return exits.DONE


def _measure(cfg: Config, arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that `describe` reads."""
    device = process_group.select_device(cfg.model.device, 0)
    with tempfile.TemporaryDirectory() as folder:
        index, source = _open_data(cfg, Path(folder))
        if cfg.num_classes == 0:
            cfg = replace(cfg, num_classes=len(index.class_names))
        loader = images_per_second(cfg, index, seconds=min(5.0, arguments.seconds))
    batch, (height, width) = _workload(cfg, device, arguments)
    return {
        "machine": machine_facts(device),
        "recipe": str(arguments.config_file),
        "batch": batch,
        "size": [height, width],
        "recipe_batch": micro_batch_size(cfg),
        "recipe_size": list(recipe_canvas(cfg)),
        "boxes": arguments.boxes,
        "dtype": "bf16" if cfg.solver.amp.enabled else "float32",
        "steps": _time_steps(cfg, batch, (height, width), device, arguments),
        "loader_images_per_second": loader,
        "loader_source": source,
        "num_workers": cfg.dataloader.num_workers,
        "num_cores": count_cores(),
        "on_cpu": device.type == "cpu",
    }


def _open_data(cfg: Config, folder: Path) -> tuple[AnnotationIndex, str]:
    """The recipe's training data; where it is not there, pictures made for the purpose in `folder`."""
    specs = cfg.datasets.train
    if specs and all(spec.startswith("synthetic:") for spec in specs):
        write_synthetic(folder, "train", num_images=_NUM_SCENES)
        path = folder / "annotations" / "instances_train.json"
        return load_coco(path, folder / "train", name="scenes"), "synthetic scenes"
    try:
        return open_training_data(cfg), ", ".join(specs)
    except DataError:
        path = write_pictures(folder, "train", num_images=_NUM_PICTURES)
        return load_coco(
            path, folder / "train", name="pictures"
        ), "made JPEGs of 640 x 480 (the data is not here)"


def images_per_second(cfg: Config, index: AnnotationIndex, seconds: float) -> float:
    """How many images one loader process of the recipe makes ready in a second, measured in this one."""
    cfg = with_values(cfg, {"DATALOADER.NUM_WORKERS": 0, "DATASETS.WEIGHTS": ()})
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        batches = iter(build_train_loader(cfg, index, first_step=0, device=torch.device("cpu")))
        next(batches)
        num_images, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            num_images += len(next(batches).images)
        return num_images / (time.perf_counter() - begin)
    finally:
        torch.set_num_threads(num_threads)


def recipe_canvas(cfg: Config) -> tuple[int, int]:
    """(height, width) of the recipe's largest picture of 4:3, rounded up to multiples of 32."""
    short = max(cfg.input.min_size_train)
    long = min(cfg.input.max_size_train, round(short * 4 / 3))
    return -(-min(short, long) // 32) * 32, -(-long // 32) * 32


def _workload(
    cfg: Config, device: torch.device, arguments: argparse.Namespace
) -> tuple[int, tuple[int, int]]:
    """Batch and canvas to measure: the recipe's, on a CPU no larger than what takes seconds."""
    batch, (height, width) = micro_batch_size(cfg), recipe_canvas(cfg)
    if device.type == "cpu":
        batch = min(batch, _MOST_ON_CPU.batch)
        height, width = min(height, _MOST_ON_CPU.height), min(width, _MOST_ON_CPU.width)
    return arguments.batch or batch, tuple(arguments.size) if arguments.size else (height, width)


def _time_steps(
    cfg: Config,
    num_images: int,
    size: tuple[int, int],
    device: torch.device,
    arguments: argparse.Namespace,
) -> dict[str, dict[str, float | None]]:
    """Time, arithmetic and memory of the plain student and of LGD, by name."""
    steps: dict[str, Step] = {}
    for name, enabled in ((STUDENT, False), (DISTILLED, True)):
        if enabled and not cfg.model.distillator.enabled:
            continue
        variant = with_values(cfg, {"MODEL.DISTILLATOR.ENABLED": enabled})
        batch = make_batch(
            num_images, *size, num_boxes=arguments.boxes, num_classes=cfg.num_classes, device=device,
            with_masks=reads_masks(variant),
        )  # fmt: skip
        steps[name] = make_step(variant, batch, device)
    dtype = next(iter(steps.values())).dtype
    first_ceiling = matrix_ceiling(device, dtype)
    facts = {name: step.weigh() for name, step in steps.items()}
    turn = sum(step.time() for step in steps.values())
    num_turns = max(1, min(_MOST_TURNS, int(arguments.seconds / turn)))
    seconds = take_turns({n: s.time for n, s in steps.items()}, num_turns=num_turns, num_warm_up=0)
    ceiling = max(first_ceiling, matrix_ceiling(device, dtype))  # other work may have slowed the first
    return {
        name: {
            "seconds": seconds[name],
            "images_per_second": num_images / seconds[name],
            "tflops": facts[name][0] / seconds[name] / 1e12,
            "share_of_ceiling": facts[name][0] / seconds[name] / ceiling,
            "peak_bytes": facts[name][1],
        }
        for name in steps
    }


def describe(figures: dict[str, Any]) -> Iterator[str]:
    """Yield the report's lines."""
    machine = figures["machine"]
    yield f"{machine['device']}; lgd {machine['lgd']}, torch {machine['torch']}, python {machine['python']}"
    (height, width), (recipe_height, recipe_width) = figures["size"], figures["recipe_size"]
    yield (
        f"{figures['recipe']}: {counted(figures['batch'], 'image')} of {height} x {width}, "
        f"{counted(figures['boxes'], 'object')} each, {figures['dtype']}"
    )
    if (figures["batch"], figures["size"]) != (figures["recipe_batch"], figures["recipe_size"]):
        yield (
            f"  (the recipe's: {figures['recipe_batch']} of {recipe_height} x {recipe_width}; "
            f"--batch {figures['recipe_batch']} --size {recipe_height} {recipe_width} measures that)"
        )
    yield ""
    rows = [["step", "s", "images/s", "of student", "TFLOP/s", "of ceiling", "peak"]]
    student = figures["steps"][STUDENT]["seconds"]
    for name, step in figures["steps"].items():
        peak = "-" if step["peak_bytes"] is None else f"{step['peak_bytes'] / 2**20:.0f} MiB"
        rows.append([
            name, f"{step['seconds']:.3f}", f"{step['images_per_second']:.1f}",
            f"{step['seconds'] / student:.2f}", f"{step['tflops']:.3g}",
            f"{step['share_of_ceiling']:.0%}", peak,
        ])  # fmt: skip
    yield from align(rows)
    yield ""
    loader = figures["loader_images_per_second"]
    yield f"loader: {loader:.0f} images/s of one process, {figures['loader_source']}"
    yield limit(figures)


def limit(figures: dict[str, Any]) -> str:
    """Say in a line whether the loader keeps up with the step."""
    loader, num_workers = figures["loader_images_per_second"], figures["num_workers"]
    step = list(figures["steps"].values())[-1]["images_per_second"]
    # The step was measured on this canvas; the loader makes the recipe's.
    area = figures["size"][0] * figures["size"][1] / (figures["recipe_size"][0] * figures["recipe_size"][1])
    asked = step * area
    needed = max(1, math.ceil(asked / loader))
    offered = loader * max(1, min(num_workers, figures["num_cores"]))
    workers = f"DATALOADER.NUM_WORKERS {num_workers} on {counted(figures['num_cores'], 'core')}"
    if offered < asked:
        return (
            f"limited by data: the step asks for {asked:.1f} images/s, {workers} give at most {offered:.1f}; "
            f"{needed} would do"
        )
    beside = ", less beside the step" if figures["on_cpu"] else ""
    return f"limited by compute: the step asks for {asked:.1f} images/s, {workers} give {offered:.0f}{beside}"
