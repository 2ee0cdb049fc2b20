"""Time prediction: our ways to run a detector beside torchvision's, in one run.

    python benchmarks/predict.py                              # RetinaNet R-50, 320 and 640 pixels, one core
    python benchmarks/predict.py --sizes 640 --batch 4 --models eager,onnxruntime,torchvision
    python benchmarks/predict.py --folder                     # a folder of pictures on all cores instead
    python benchmarks/predict.py --folder --data photos --weights outputs/mine

A picture: from uint8 pixels at their size to boxes, scores and labels. The clock is the process's own time,
the models take turns, figures are medians. Nets have random weights, and class biases that let as many
classes of cells of the picture pass the threshold as `--candidates` says: a net that finds nothing decodes
nothing.

A folder: from files to detections, on the wall's clock, and all cores' time beside it. The plain loop is what
people write around torchvision's detectors: open a picture with Pillow, to a tensor, to the model, one after
the other; beside it the same loop around our model. "more MiB" is what the peak grows by with twice as many
pictures.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import report
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.transforms.v2.functional import pil_to_tensor

import lgd
from lgd.bench.machine import peak_memory, take_turns
from lgd.bench.pictures import write_pictures
from lgd.bench.step import make_batch
from lgd.build import build_model
from lgd.config.keys import flatten
from lgd.config.load import load_config
from lgd.export.command import main as export
from lgd.inference.model import TrainedModel
from lgd.structures import Batch
from lgd.weights.export import write_student

RECIPE = report.ROOT / "configs/retinanet/r50_2x_ms.yaml"
CLASSES, THRESHOLD, DETECTIONS = 80, 0.05, 100
EAGER, COMPILED, ONNX, OPENVINO, TORCHVISION = "eager", "compile", "onnxruntime", "openvino", "torchvision"
LOWER, COMPILED_LOWER = "eager-bfloat16", "compile-bfloat16"
MODELS = (TORCHVISION, EAGER, COMPILED, ONNX, OPENVINO)
"""Unless others are asked for: the two of bfloat16 are for processors that multiply it."""


def raise_biases(bias: Tensor, logits: Tensor, candidates: int) -> None:
    """Let so many of the logits pass the threshold."""
    worst = logits.flatten().topk(candidates).values[-1]
    bias += torch.logit(torch.tensor(THRESHOLD)) - worst


@torch.no_grad()
def write_ours(path: Path, size: int, batch: Batch, candidates: int, *, bfloat16: bool = False) -> Path:
    """Write a student that detects, whose pictures have that short side."""
    settings = {"NUM_CLASSES": CLASSES, "INPUT.MIN_SIZE_TEST": size, "SOLVER.AMP.ENABLED": bfloat16}
    cfg = load_config(RECIPE, [str(word) for item in settings.items() for word in item])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    head = model.student.head
    features = model.student.extract_features(batch)
    logits = torch.cat([head.cls_score(head.cls_subnet(each)).flatten() for each in features.values()])
    raise_biases(head.cls_score.bias, logits, candidates)
    classes = {"names": [str(label) for label in range(CLASSES)], "category_ids": list(range(CLASSES))}
    write_student(path, model, {"config": flatten(cfg), "classes": classes})
    return path


@torch.no_grad()
def make_torchvision(size: int, batch: Batch, candidates: int) -> nn.Module:
    """Torchvision's detector of the same kind, which detects too."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        norm_layer=FrozenBatchNorm2d,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(2048, 256),
    )
    model: Any = RetinaNet(
        backbone,
        num_classes=CLASSES,
        min_size=size,
        max_size=max(size, 1333),
        score_thresh=THRESHOLD,
        detections_per_img=DETECTIONS,
    ).eval()
    images = model.transform([image.float() / 255 for image in batch.images])[0].tensors
    head = model.head.classification_head
    logits = head(list(model.backbone(images).values()))
    raise_biases(head.cls_logits.bias, logits, candidates)
    return model


def make_runs(
    names: Sequence[str], size: int, batch: Batch, candidates: int, folder: Path
) -> dict[str, Callable[[], object]]:
    """What each model does with a batch."""
    weights = write_ours(folder / "student.safetensors", size, batch, candidates)
    exported = folder / f"{size}.onnx"
    lower = folder / "bfloat16.safetensors"
    if {LOWER, COMPILED_LOWER} & set(names):
        write_ours(lower, size, batch, candidates, bfloat16=True)
    if {ONNX, OPENVINO} & set(names) and export([str(weights), str(exported), "--winograd"]):
        sys.exit("the export failed")
    loads = {
        EAGER: partial(lgd.load, weights, "cpu"),
        COMPILED: partial(lgd.load, weights, "cpu", "compile"),
        LOWER: partial(lgd.load, lower, "cpu"),
        COMPILED_LOWER: partial(lgd.load, lower, "cpu", "compile"),
        ONNX: partial(lgd.load, exported, "cpu", "onnx"),
        OPENVINO: partial(lgd.load, exported, "cpu", "openvino"),
    }
    runs: dict[str, Callable[[], object]] = {}
    for name in names:
        if name == TORCHVISION:
            model = make_torchvision(size, batch, candidates)
            images = [image.float() / 255 for image in batch.images]
            runs[name] = partial(torch.no_grad()(model), images)
        else:
            runs[name] = partial(loads[name]().run, batch)
    return runs


def time_process(call: Callable[[], object]) -> float:
    """Seconds of this process that a call takes."""
    begin = time.process_time()
    call()
    return time.process_time() - begin


def measure_pictures(arguments: Any, folder: Path) -> list[list[Any]]:
    """Rows of the table, a group for each size."""
    rows = []
    for size in arguments.sizes:
        batch = make_batch(
            arguments.batch, size, size, num_boxes=1, num_classes=CLASSES, device=torch.device("cpu")
        )
        runs = make_runs(arguments.models.split(","), size, batch, arguments.candidates, folder)
        timed = {name: partial(time_process, run) for name, run in runs.items()}
        seconds = take_turns(timed, num_turns=arguments.rounds)
        peer = seconds.get(TORCHVISION)
        rows += [
            [size, name, 1000 * each / arguments.batch, peer and peer / each]
            for name, each in seconds.items()
        ]
    return rows


def loop_over_torchvision(model: nn.Module, files: Iterable[Path]) -> int:
    """The plain loop; returns the number of detections."""
    found = 0
    for file in files:
        with Image.open(file) as image, torch.no_grad():
            pixels = pil_to_tensor(image.convert("RGB")).float() / 255
        with torch.no_grad():
            found += len(model([pixels])[0]["boxes"])
    return found


def loop_over_ours(model: TrainedModel, files: Iterable[Path]) -> int:
    """The same around our model."""
    found = 0
    for file in files:
        with Image.open(file) as image:
            found += len(model.predict(image.convert("RGB"), THRESHOLD).boxes)
    return found


def stream_ours(model: TrainedModel, files: Iterable[Path], batch: int) -> int:
    """A folder as `lgd predict` goes through it."""
    results = model.stream(list(files), THRESHOLD, batch, keep_pixels=False)
    return sum(len(result.boxes) for result in results)


def time_wall(call: Callable[[], object], of_process: list[float]) -> float:
    """Seconds that a call takes; those of the process go to a list."""
    begin, begin_of_process = time.perf_counter(), time.process_time()
    call()
    of_process.append(time.process_time() - begin_of_process)
    return time.perf_counter() - begin


def measure_folder(arguments: Any, folder: Path) -> list[list[Any]]:
    """Rows of the table."""
    size, count = arguments.sizes[0], arguments.pictures
    if not arguments.data:
        write_pictures(folder / "pictures", "train", num_images=count)
    files = sorted((arguments.data or folder / "pictures/train").glob("*.*"))[:count]
    batch = make_batch(1, size, size, num_boxes=1, num_classes=CLASSES, device=torch.device("cpu"))
    weights = arguments.weights or write_ours(
        folder / "student.safetensors", size, batch, arguments.candidates
    )
    peer = make_torchvision(size, batch, arguments.candidates)
    ours, exported = lgd.load(weights, "cpu"), folder / "exported.onnx"
    if export([str(weights), str(exported), "--winograd"]):
        sys.exit("the export failed")
    files_of = {name: lgd.load(exported, "cpu", name) for name in ("onnx", "openvino")}
    calls: Mapping[str, Callable[[Sequence[Path]], object]] = {
        "torchvision, plain loop": partial(loop_over_torchvision, peer),
        "ours, plain loop": partial(loop_over_ours, ours),
        "ours, stream": partial(stream_ours, ours, batch=arguments.batch),
        "ours, stream, onnxruntime": partial(stream_ours, files_of["onnx"], batch=arguments.batch),
        "ours, stream, openvino": partial(stream_ours, files_of["openvino"], batch=arguments.batch),
    }
    of_process: dict[str, list[float]] = {name: [] for name in calls}
    runs = {name: partial(time_wall, partial(call, files), of_process[name]) for name, call in calls.items()}
    seconds = take_turns(runs, num_turns=arguments.rounds, num_warm_up=1)
    first = next(iter(seconds.values()))
    rows = []
    for name, call in calls.items():
        once = peak_memory(partial(call, files), torch.device("cpu")) or 0
        twice = peak_memory(partial(call, list(itertools.chain(files, files))), torch.device("cpu")) or 0
        rows.append(
            [
                name,
                len(files) / seconds[name],
                first / seconds[name],
                statistics.median(of_process[name][1:]) / len(files),
                report.mebibytes(once),
                report.mebibytes(max(0, twice - once)),
            ]
        )
    return rows


def main() -> None:
    """Print the table."""
    parser = report.make_parser(__doc__)
    parser.add_argument(
        "--sizes", type=report.numbers, default=[320, 640], help="short sides, commas between"
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--models", default=",".join(MODELS), help="some of these, commas between")
    parser.add_argument("--candidates", type=int, default=1000, help="classes of cells above the threshold")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", action="store_true", help="time a folder instead")
    parser.add_argument("--pictures", type=int, default=32, help="of the folder, at most")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="of pictures, in place of made ones")
    parser.add_argument("--weights", help="what lgd.load takes, in place of random weights, for --folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if arguments.folder:
            columns = ["way", "pictures/s", "times the first", "s of CPU a picture", "peak MiB", "more MiB"]
            title = f"A folder on {os.cpu_count()} cores, short side {arguments.sizes[0]}"
            rows = measure_folder(arguments, Path(name))
        else:
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
            torch.set_num_threads(1)
            columns = ["size", "model", "ms of CPU a picture", "times torchvision's speed"]
            title = f"Prediction, RetinaNet R-50, batch {arguments.batch}, one core"
            rows = measure_pictures(arguments, Path(name))
    report.publish(title, report.describe_machine(), columns, rows, arguments.json)


if __name__ == "__main__":
    main()
