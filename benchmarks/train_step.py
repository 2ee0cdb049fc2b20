"""Time a training step: our detectors on R-50, the same with LGD, and torchvision's, in one run.

    python benchmarks/train_step.py                                  # CPU: 2 images of 320 x 320
    python benchmarks/train_step.py --detectors retinanet,faster_rcnn,fcos
    python benchmarks/train_step.py --device cuda --batch 16 --size 800 1344 --bf16

The models of a detector take turns, so that what else the machine does hits all; figures are medians.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from lgd.build import Model, build_model, build_sides
from lgd.config.load import load_config
from lgd.structures import Batch, Targets

CONFIGS = Path(__file__).parents[1] / "configs"
PEERS = {"retinanet": RetinaNet, "faster_rcnn": FasterRCNN, "fcos": FCOS}


def make_batch(num_images: int, height: int, width: int, num_boxes: int, device: torch.device) -> Batch:
    """Random images with random boxes of 20 pixels to half the canvas."""
    torch.manual_seed(0)
    corners = torch.rand(num_images, num_boxes, 2) * 0.5
    extents = 0.05 + torch.rand(num_images, num_boxes, 2) * 0.45
    scale = torch.tensor([width, height, width, height])
    boxes = torch.cat([corners, corners + extents], dim=-1) * scale
    labels = torch.randint(0, 80, (num_images, num_boxes))
    sizes = torch.tensor([[height, width]] * num_images)
    images = torch.randint(0, 256, (num_images, 3, height, width), dtype=torch.uint8)
    targets = Targets(boxes, labels, torch.ones_like(labels, dtype=torch.bool))
    return Batch(images, sizes, sizes, torch.arange(num_images), targets).to(device)


def make_ours(
    detector: str, device: torch.device, lgd: bool, freeze: bool
) -> tuple[Model, list[torch.optim.Optimizer]]:
    """Our model in training mode and its optimizers."""
    recipe = CONFIGS / detector / "r50_2x_ms_lgd.yaml"
    cfg = load_config(recipe, ["MODEL.DISTILLATOR.ENABLED", str(lgd)])
    model = build_model(cfg).to(device).to(memory_format=torch.channels_last)
    optimizers = [side.optimizer for side in build_sides(cfg, model, device)]
    for parameter in model.student.backbone_parameters():
        parameter.requires_grad_(parameter.requires_grad and not freeze)
    return model, optimizers


def make_torchvision(
    detector: str, device: torch.device, size: tuple[int, int]
) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    """Make the peer as its reference script trains it: frozen BN, stem and layer1 fixed."""
    two_stage = detector == "faster_rcnn"
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        norm_layer=FrozenBatchNorm2d,
        trainable_layers=3,
        returned_layers=[1, 2, 3, 4] if two_stage else [2, 3, 4],
        extra_blocks=LastLevelMaxPool() if two_stage else LastLevelP6P7(2048, 256),
    )
    model = PEERS[detector](backbone, num_classes=81, min_size=min(size), max_size=max(size)).to(device)
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, [torch.optim.SGD(trained, lr=1e-5, momentum=0.9, weight_decay=1e-4)]


def take_step(
    compute_losses: Callable[[], dict[str, torch.Tensor]],
    optimizers: list[torch.optim.Optimizer],
    device: torch.device,
    bf16: bool,
) -> float:
    """One training step; returns its seconds."""
    _synchronize(device)
    begin = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        total = torch.stack(list(compute_losses().values())).sum()
    total.backward()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = 1e-5  # the weights are random: stay where they are
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    _synchronize(device)
    return time.perf_counter() - begin


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(detector: str, arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Time all models of a detector in turns."""
    device, size = torch.device(arguments.device), tuple(arguments.size)
    batch = make_batch(arguments.batch, *size, arguments.boxes, device)
    images = [image.float() / 255 for image in batch.images]
    targets = [
        {"boxes": boxes, "labels": labels + 1}
        for boxes, labels in zip(batch.targets.boxes, batch.targets.labels, strict=True)
    ]
    runs: dict[str, tuple[Callable[[], dict[str, torch.Tensor]], list[torch.optim.Optimizer]]] = {}
    if detector in PEERS:
        peer, peer_optimizers = make_torchvision(detector, device, size)
        runs["torchvision"] = (partial(peer, images, targets), peer_optimizers)
    for name, lgd, freeze in (
        ("student", False, False),
        ("lgd", True, False),
        ("lgd, frozen backbone", True, True),
    ):
        model, optimizers = make_ours(detector, device, lgd, freeze)
        runs[name] = (partial(model, batch, distill=True), optimizers)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    peaks: dict[str, float] = {}
    for turn in range(arguments.steps + 2):
        for name, (compute_losses, optimizers) in runs.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            duration = take_step(compute_losses, optimizers, device, arguments.bf16)
            if turn >= 2:  # the first two warm up
                seconds[name].append(duration)
            if device.type == "cuda":
                peaks[name] = torch.cuda.max_memory_allocated(device) / 2**20
    return [
        {
            "detector": detector,
            "model": name,
            "seconds": statistics.median(times),
            "images_per_second": arguments.batch / statistics.median(times),
            "peak_MiB": peaks.get(name),
        }
        for name, times in seconds.items()
    ]


def main() -> None:
    """Print the table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--detectors", default="retinanet", help="names of folders in configs/ with commas between them"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=[320, 320], metavar=("H", "W"))
    parser.add_argument("--boxes", type=int, default=5, help="objects of an image")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast for all")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    rows = [row for detector in arguments.detectors.split(",") for row in measure(detector, arguments)]
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.processor() or "CPU"
    setting = (
        f"{name}, torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"{torch.get_num_threads()} threads; {arguments.batch} x {arguments.size[0]} x {arguments.size[1]}, "
        f"{arguments.boxes} boxes, {'bfloat16' if arguments.bf16 else 'float32'}, "
        f"medians of {arguments.steps}"
    )
    seconds = {(row["detector"], row["model"]): row["seconds"] for row in rows}
    print(setting)
    print(
        f"{'detector':<12}{'model':<22}{'s/step':>9}{'images/s':>10}{'of torchvision':>16}{'of student':>12}"
        f"{'peak MiB':>10}"
    )
    for row in rows:
        ratios = ""
        for base, width in (("torchvision", 16), ("student", 12)):
            other = seconds.get((row["detector"], base))
            ratios += f"{'-' if other is None else format(row['seconds'] / other, '.2f'):>{width}}"
        peak = "-" if row["peak_MiB"] is None else f"{row['peak_MiB']:.0f}"
        print(
            f"{row['detector']:<12}{row['model']:<22}{row['seconds']:>9.4f}{row['images_per_second']:>10.2f}"
            f"{ratios}{peak:>10}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"setting": setting, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
