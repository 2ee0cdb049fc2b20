"""Time a training step: our detectors, the same with LGD, and torchvision's at the same input, in one run.

    python benchmarks/train_step.py                                  # CPU: 2 images of 320 x 320
    python benchmarks/train_step.py --detectors retinanet,faster_rcnn,mask_rcnn/swin_t_3x_ms_lgd
    python benchmarks/train_step.py --device cuda --batch 16 --size 800 1344 --dtype bf16 --compile
    python benchmarks/train_step.py --settings TRAIN.HEAD_ONCE False
    python benchmarks/train_step.py --boxes 1,10,100,1000            # a cost curve; also --classes, --batch

The models of a detector take turns, so that what else the machine does hits all; figures are medians. Of
several values of an option the first goes into the table, and all into a curve with its growth: the exponent
between a value and the one before it, 1 where the cost is linear. "of ceiling" holds the step's arithmetic
(products and convolutions) against a large matrix product in the same type, measured in the same run. The
peak is that of the one model with its gradients and optimizer states, without the batch. Detectors of two
stages, torchvision's too, take the anchors for their regions, so that the regions' size is not left to random
weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import report
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from lgd.bench.machine import matrix_ceiling, take_turns
from lgd.bench.step import Step, make_batch, make_step, propose_anchors
from lgd.build.training import reads_masks
from lgd.config.load import load_config
from lgd.config.schema import Config
from lgd.structures import Batch

CONFIGS = report.ROOT / "configs"
RECIPES = ("r50_2x_ms_lgd", "r50_1x_ms_lgd", "r50_1x_ss_lgd", "r50_3x_ms_lgd")
PEERS = {"retinanet": RetinaNet, "faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN, "fcos": FCOS}
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}

TORCHVISION, STUDENT, DISTILLED, FROZEN = "torchvision", "student", "with LGD", "with LGD, frozen backbone"
COMPILED = ", compiled"
COLUMNS = (
    "detector", "model", "s/step", "images/s", "of torchvision's", "of the student's", "TFLOP/s",
    "of ceiling", "peak MiB", "of the student's peak",
)  # fmt: skip


@dataclass(frozen=True)
class Workload:
    """What a step works on.

    Attributes:
        batch: images.
        size: (height, width) of the canvas.
        boxes: objects of an image.
        classes: of the data.
        device: where.
        dtype: a key of DTYPES.
        settings: KEY VALUE pairs over our recipes.
    """

    batch: int
    size: tuple[int, int]
    boxes: int
    classes: int
    device: torch.device
    dtype: str
    settings: tuple[str, ...] = ()

    def draw(self, with_masks: bool) -> Batch:
        """Random images and boxes."""
        return make_batch(
            self.batch,
            *self.size,
            num_boxes=self.boxes,
            num_classes=self.classes,
            device=self.device,
            with_masks=with_masks,
        )

    def __str__(self) -> str:
        """Return the workload in words."""
        height, width = self.size
        return (
            f"{self.batch} images of {height} x {width}, {self.boxes} boxes each, {self.classes} classes, "
            f"{self.dtype}"
        )


def read_recipe(detector: str, work: Workload, *, lgd: bool, compiled: bool = False) -> Config:
    """The recipe of a folder in configs/ (its R-50), or FOLDER/NAME itself."""
    names = [detector] if "/" in detector else [f"{detector}/{name}" for name in RECIPES]
    paths = [path for path in (CONFIGS / f"{name}.yaml" for name in names) if path.exists()]
    if not paths:
        sys.exit(f"no recipe {' or '.join(names)} in {CONFIGS}")
    settings = {
        "MODEL.DISTILLATOR.ENABLED": lgd,
        "NUM_CLASSES": work.classes,
        "SOLVER.AMP.ENABLED": work.dtype == "bf16",
        "TRAIN.COMPILE": compiled,
    }
    return load_config(paths[0], [*(str(x) for pair in settings.items() for x in pair), *work.settings])


def make_ours(
    detector: str, work: Workload, *, lgd: bool, freeze: bool = False, compiled: bool = False
) -> Step:
    """Our student, alone or with LGD."""
    cfg = read_recipe(detector, work, lgd=lgd, compiled=compiled)
    return make_step(cfg, work.draw(reads_masks(cfg)), work.device, freeze_backbone=freeze)


def make_torchvision(detector: str, work: Workload, *, compiled: bool = False) -> Step:
    """Make the peer as its reference script trains it: frozen BN, stem and layer1 fixed.

    Compiled are its backbone and its dense head: what else it does loops over images.
    """
    two_stage = "rcnn" in detector
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        norm_layer=FrozenBatchNorm2d,
        trainable_layers=3,
        returned_layers=[1, 2, 3, 4] if two_stage else [2, 3, 4],
        extra_blocks=LastLevelMaxPool() if two_stage else LastLevelP6P7(2048, 256),
    )
    model: nn.Module = PEERS[detector](
        backbone, num_classes=work.classes + 1, min_size=min(work.size), max_size=max(work.size)
    ).to(work.device)
    if two_stage:
        propose_anchors(model.rpn.head.cls_logits, model.rpn.head.bbox_pred)
    batch = work.draw(with_masks=False)
    images = [image.float() / 255 for image in batch.images]
    targets = [
        {
            "boxes": boxes,
            "labels": labels + 1,
            **({"masks": _paint(boxes, work.size)} if "mask" in detector else {}),
        }
        for boxes, labels in zip(batch.targets.boxes, batch.targets.labels, strict=True)
    ]
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.0, momentum=0.9, weight_decay=1e-4
    )
    if compiled:
        for part in (model.backbone, model.rpn.head if two_stage else model.head):
            part.compile(dynamic=False)
    losses = partial(model, images, targets)
    return Step(model, losses, [optimizer], work.device, DTYPES[work.dtype], compiled)


def _paint(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Bitmaps of the boxes: (N, H, W) uint8."""
    rows, columns = (torch.arange(side, device=boxes.device) for side in size)
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)
    inside = ((rows >= y1) & (rows < y2))[:, :, None] & ((columns >= x1) & (columns < x2))[:, None]
    return inside.to(torch.uint8)


def measure(steps: Mapping[str, Step], num_turns: int, ceiling: float) -> dict[str, dict[str, Any]]:
    """Time, arithmetic and memory of each step, which take turns."""
    facts = {name: step.weigh() for name, step in steps.items()}
    # Two steps have been taken to weigh it.
    seconds = take_turns(
        {name: step.time for name, step in steps.items()}, num_turns=num_turns, num_warm_up=0
    )
    first = next(iter(steps.values()))
    # Other work may have slowed the product that was measured before.
    ceiling = max(ceiling, matrix_ceiling(first.device, first.dtype))
    return {
        name: {
            "seconds": seconds[name],
            "flops": flops,
            "share": flops / seconds[name] / ceiling,
            "peak": report.mebibytes(peak),
        }
        for name, (flops, peak) in facts.items()
    }


def make_steps(detector: str, work: Workload, suffix: str = "", *, compiled: bool = False) -> dict[str, Step]:
    """Everything that is compared, by name."""
    steps = {}
    if detector in PEERS:
        steps[TORCHVISION + suffix] = make_torchvision(detector, work, compiled=compiled)
    steps[STUDENT + suffix] = make_ours(detector, work, lgd=False, compiled=compiled)
    steps[DISTILLED + suffix] = make_ours(detector, work, lgd=True, compiled=compiled)
    steps[FROZEN + suffix] = make_ours(detector, work, lgd=True, freeze=True, compiled=compiled)
    return steps


def compare(detector: str, work: Workload, num_turns: int, ceiling: float, compiled: bool) -> list[list[Any]]:
    """The table's rows of a detector: as it is, and where so asked compiled, held against the compiled."""
    suffixes = ("", COMPILED) if compiled else ("",)
    steps = {}
    for suffix in suffixes:
        steps |= make_steps(detector, work, suffix, compiled=bool(suffix))
    found = measure(steps, num_turns, ceiling)
    names = {
        suffix: [name for name in found if name.endswith(COMPILED) == bool(suffix)] for suffix in suffixes
    }
    return [
        row
        for suffix, group in names.items()
        for row in make_rows(detector, work, {name: found[name] for name in group}, suffix)
    ]


def make_rows(
    detector: str, work: Workload, found: Mapping[str, dict[str, Any]], suffix: str
) -> list[list[Any]]:
    """The rows of a group, held against the student and the peer among them."""
    student, peer = found[STUDENT + suffix], found.get(TORCHVISION + suffix)
    return [
        [
            detector,
            name,
            each["seconds"],
            work.batch / each["seconds"],
            peer and each["seconds"] / peer["seconds"],
            each["seconds"] / student["seconds"],
            each["flops"] / each["seconds"] / 1e12,
            each["share"],
            each["peak"],
            each["peak"] and each["peak"] / student["peak"],
        ]
        for name, each in found.items()
    ]


def draw_curve(
    detector: str, option: str, values: Sequence[int], work: Workload, num_turns: int, ceiling: float
) -> list[list[Any]]:
    """A cost curve's rows: student and LGD by the option's value, with the growth of time and memory."""
    found: dict[str, list[dict[str, Any]]] = {STUDENT: [], DISTILLED: []}
    for value in values:
        at = replace(work, **{option: value})
        steps = {name: make_ours(detector, at, lgd=name == DISTILLED) for name in found}
        for name, each in measure(steps, num_turns, ceiling).items():
            found[name].append(each)
    rows = []
    for name, points in found.items():
        times = report.growth(values, [point["seconds"] for point in points])
        known = all(point["peak"] for point in points)
        peaks = report.growth(values, [point["peak"] for point in points]) if known else [None] * len(values)
        rows += [
            [detector, name, value, point["seconds"], time, point["peak"], peak]
            for value, point, time, peak in zip(values, points, times, peaks, strict=True)
        ]
    return rows


def main() -> None:
    """Print the table and the curves, and write the table as JSON where asked."""
    parser = report.make_parser(__doc__)
    parser.add_argument(
        "--detectors", default="retinanet", help="folders in configs/, or recipes in them, commas between"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=report.numbers, default=[2], help="images of a step")
    parser.add_argument("--size", type=int, nargs=2, default=[320, 320], metavar=("H", "W"))
    parser.add_argument("--boxes", type=report.numbers, default=[5], help="objects of an image")
    parser.add_argument("--classes", type=report.numbers, default=[80])
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES), help="bf16: autocast, for all")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="measure each compiled, too")
    parser.add_argument("--settings", nargs="*", default=[], metavar="KEY VALUE", help="over our recipes")
    parser.add_argument("--curves-only", action="store_true", help="leave the table out")
    arguments = parser.parse_args()
    device, detectors = torch.device(arguments.device), arguments.detectors.split(",")
    work = Workload(
        batch=arguments.batch[0],
        size=tuple(arguments.size),
        boxes=arguments.boxes[0],
        classes=arguments.classes[0],
        device=device,
        dtype=arguments.dtype,
        settings=tuple(arguments.settings),
    )
    ceiling = matrix_ceiling(device, DTYPES[work.dtype])
    curves = _draw_curves(detectors, work, arguments, ceiling)
    rows = [] if arguments.curves_only else [
        row
        for name in detectors
        for row in compare(name, work, arguments.steps, ceiling, arguments.compile)
    ]  # fmt: skip
    report.publish(  # without rows, still what the curves were measured on
        f"Training step: {work}, medians of {arguments.steps}; a large matrix product "
        f"reaches {ceiling / 1e12:.3g} TFLOP/s",
        report.describe_machine(arguments.device),
        COLUMNS,
        rows,
        arguments.json,
        curves=curves,
    )
    for curve in curves:
        print(f"\nCost by {curve['option']}\n\n" + report.markdown_table(curve["columns"], curve["rows"]))


def _draw_curves(
    detectors: Sequence[str], work: Workload, arguments: argparse.Namespace, ceiling: float
) -> list[dict[str, Any]]:
    curves = []
    for option in ("batch", "boxes", "classes"):
        values = getattr(arguments, option)
        if len(values) > 1:
            rows = [
                row
                for name in detectors
                for row in draw_curve(name, option, values, work, arguments.steps, ceiling)
            ]
            columns = ["detector", "model", option, "s/step", "growth", "peak MiB", "growth of peak"]
            curves.append({"option": option, "columns": columns, "rows": rows})
    return curves


if __name__ == "__main__":
    main()
