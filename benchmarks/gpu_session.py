"""Run on a machine with a GPU everything that only such a machine can show, in order of value.

    PYTHONPATH=. python benchmarks/gpu_session.py --out OUT --data DATA          # an hour
    ... --out OUT --data DATA --seconds 580                                      # as much as fits
    ... --out OUT --data DATA --seconds 580 --after recipes-fcos                 # the rest
    ... --list

Each stage is a command of its own with a limit of time, so that none takes the others' time or ends them.
OUT gets session.json (machine, and each stage's command, exit code, seconds, figures and last lines), written
anew after every stage, and session.log. A stage that fails with a batch is tried again with half of it.

To be carried to a bare machine besides the repository: wheels of hotcoco and pycocotools for its Python, on
PYTHONPATH once unpacked, and in DATA the folders bccd, dice, nuclei and coco_mini in COCO layout.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import report

BENCHMARKS = Path(__file__).parent
TAIL = 3000
RECIPES = {
    "retinanet": "retinanet/r50_2x_ms_lgd",
    "fcos": "fcos/r50_2x_ms_lgd",
    "atss": "atss/r50_1x_ss_lgd",
    "faster_rcnn": "faster_rcnn/r50_2x_ms_lgd",
    "mask_rcnn": "mask_rcnn/r50_1x_ms_lgd",
    "swin": "mask_rcnn/swin_t_3x_ms_lgd",
}
COMPILED = ("retinanet", "fcos", "faster_rcnn")
GAIN_DATA = ("bccd", "dice", "nuclei")


@dataclass(frozen=True)
class Stage:
    """A command, without the interpreter, and the seconds that it may take."""

    name: str
    seconds: int
    command: tuple[str, ...]
    halves_batch: bool = False
    """Whether to repeat it with half of --batch where it fails."""


@dataclass(frozen=True)
class Outcome:
    """What became of a stage; `code` is 124 where it ran out of time, `figures` what it wrote as JSON."""

    name: str
    command: str
    code: int
    seconds: float
    figures: Any
    tail: str


def list_stages(device: str, data: Path, scratch: Path, batch: int, size: Sequence[int]) -> list[Stage]:
    """Everything, in order of value."""
    canvas = [str(side) for side in size]
    steps = {name: _step(name, recipe, device, batch, canvas) for name, recipe in RECIPES.items()}
    compiled = {name: _compiled(steps[name]) for name in COMPILED}
    return [
        compiled["retinanet"],
        Stage("cuda-tests", 300, ("-m", "pytest", "-q", "-m", "slow or not slow", "tests/test_cuda.py")),
        steps["fcos"],
        steps["faster_rcnn"],
        _with_settings("head-twice", steps["retinanet"], "TRAIN.HEAD_ONCE", "False"),
        _with_settings("cudnn-benchmark", steps["retinanet"], "CUDNN_BENCHMARK", "True"),
        _with_settings("cuda-graphs", compiled["retinanet"], "TRAIN.CUDA_GRAPHS", "True"),
        _profile("profile-lgd", device, batch, canvas, scratch),
        _profile("profile-student", device, batch, canvas, scratch, "MODEL.DISTILLATOR.ENABLED", "False"),
        steps["mask_rcnn"],
        steps["swin"],
        steps["atss"],
        compiled["fcos"],
        compiled["faster_rcnn"],
        _train("find-batch", RECIPES["retinanet"], device, data, scratch, 90, "--find-batch"),
        *(_train(f"recipes-{name}", recipe, device, data, scratch, 60) for name, recipe in RECIPES.items()),
        _train("train-compiled", RECIPES["retinanet"], device, data, scratch, 600, compiled=True),
        *(_gain(name, data, scratch) for name in GAIN_DATA),
    ]


def _step(name: str, recipe: str, device: str, batch: int, canvas: list[str]) -> Stage:
    detector = recipe if name == "swin" else name
    script = str(BENCHMARKS / "train_step.py")
    options = ("--device", device, "--batch", str(batch), "--size", *canvas, "--dtype", "bf16")
    return Stage(f"step-{name}", 120, (script, "--detectors", detector, *options), halves_batch=True)


def _compiled(stage: Stage) -> Stage:
    """The same with each model compiled, too: that takes a minute or more for each."""
    name = stage.name.replace("step", "compiled")
    return replace(stage, name=name, seconds=480, command=(*stage.command, "--compile"))


def _with_settings(name: str, stage: Stage, *settings: str) -> Stage:
    return replace(stage, name=name, command=(*stage.command, "--settings", *settings))


def _profile(name: str, device: str, batch: int, canvas: list[str], scratch: Path, *settings: str) -> Stage:
    recipe = str(report.ROOT / "configs" / f"{RECIPES['retinanet']}.yaml")
    command = (
        str(BENCHMARKS / "profile_step.py"), "--config-file", recipe, "--device", device,
        "--batch", str(batch), "--size", *canvas, "--out", str(scratch / name),
        "SOLVER.AMP.ENABLED", "True", "TRAIN.COMPILE", "False", *settings,
    )  # fmt: skip
    return Stage(name, 90, command, halves_batch=True)


def _train(
    name: str,
    recipe: str,
    device: str,
    data: Path,
    scratch: Path,
    seconds: int,
    *flags: str,
    compiled: bool = False,
) -> Stage:
    """Twenty steps at the recipe's full size on real images, and the evaluation."""
    settings = {
        "MODEL.DEVICE": device,
        "MODEL.WEIGHTS": "",
        "NUM_CLASSES": 0,
        "DATASETS.TRAIN": f"('coco:{data / 'coco_mini'}:train',)",
        "DATASETS.TEST": f"('coco:{data / 'coco_mini'}:val',)",
        "SOLVER.IMS_PER_BATCH": 8,
        "SOLVER.REFERENCE_WORLD_SIZE": 0,
        "SOLVER.BASE_LR": 1e-5,
        "SOLVER.MAX_ITER": 20,
        "MODEL.DISTILLATOR.PRE_FREEZE_STUDENT_BACKBONE_ITERS": 5,
        "MODEL.DISTILLATOR.PRE_NONDISTILL_ITERS": 10,
        "SOLVER.AMP.ENABLED": True,
        "TRAIN.COMPILE": compiled,  # a step of every canvas and phase takes minutes first
        "LOG_PERIOD": 5,
        "OUTPUT_DIR": scratch / name,
    }
    pairs = [str(item) for pair in settings.items() for item in pair]
    config = str(report.ROOT / "configs" / f"{recipe}.yaml")
    return Stage(name, seconds, ("-m", "lgd.train", "--config-file", config, *flags, *pairs))


def _gain(name: str, data: Path, scratch: Path) -> Stage:
    stage = f"gain-{name}"
    command = (
        "-m", "lgd.cli", "gain", "--data", f"coco:{data / name}:train", "--recipes", "examples/bccd_small",
        "--methods", "plain", "lgd", "--seeds", "1", "--out", str(scratch / "gain"),
        "--json", str(scratch / f"{stage}.json"),
        "SOLVER.IMS_PER_BATCH", "8", "SOLVER.AMP.ENABLED", "True", "DATALOADER.NUM_WORKERS", "8",
    )  # fmt: skip
    return Stage(stage, 240, command)


def run_stage(stage: Stage, seconds: float, log: Path, scratch: Path) -> Outcome:
    """Run a stage for at most so many seconds."""
    figures = scratch / f"{stage.name}.json"
    figures.unlink(missing_ok=True)
    writes = stage.command[0].endswith(".py")
    command = [sys.executable, *stage.command[:1]]
    command += ["--json", str(figures)] if writes else []
    command += stage.command[1:]
    begin = time.monotonic()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(report.ROOT), os.environ.get("PYTHONPATH")])
    )
    with log.open("a+") as file:
        start = file.seek(0, os.SEEK_END)
        try:
            # A group of its own: what a stage has started ends with it.
            process = subprocess.Popen(
                command,
                cwd=report.ROOT,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            code = 124
        file.seek(start)
        tail = file.read()[-TAIL:]
    found = json.loads(figures.read_text()) if figures.exists() else None
    return Outcome(stage.name, " ".join(command), code, time.monotonic() - begin, found, tail)


def _halve(stage: Stage) -> Stage | None:
    place = stage.command.index("--batch") + 1 if stage.halves_batch else 0
    batch = int(stage.command[place]) // 2 if place else 0
    if batch < 1:
        return None
    command = (*stage.command[:place], str(batch), *stage.command[place + 1 :])
    return replace(stage, command=command, halves_batch=False)


def run_session(stages: Sequence[Stage], seconds: float, out: Path, scratch: Path, device: str) -> None:
    """Run the stages that fit into the time; those that don't are named."""
    out.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    session: dict[str, Any] = {"machine": report.describe_machine(device), "stages": [], "left": []}
    queue = list(stages)
    while queue:
        stage = queue.pop(0)
        left = deadline - time.monotonic()
        if left < stage.seconds / 2:
            session["left"].append(stage.name)
            continue
        outcome = run_stage(stage, min(stage.seconds, left), out / "session.log", scratch)
        session["stages"].append(asdict(outcome))
        (out / "session.json").write_text(json.dumps(session, indent=1) + "\n")
        print(f"{stage.name:<20}exit {outcome.code:<4}{outcome.seconds:7.1f} s", flush=True)
        print("  " + outcome.tail.strip().replace("\n", "\n  ")[-1200:], flush=True)
        smaller = _halve(stage)
        if outcome.code not in (0, 124) and smaller:
            queue.insert(0, smaller)
    (out / "session.json").write_text(json.dumps(session, indent=1) + "\n")
    if session["left"]:
        print(f"no time left for: {', '.join(session['left'])}")


def main() -> None:
    """Run the session."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu_session"), metavar="FOLDER")
    parser.add_argument("--data", type=Path, default=Path("datasets"), metavar="FOLDER")
    parser.add_argument("--seconds", type=float, default=1500, help="of the whole session")
    parser.add_argument("--stages", help="only these, with commas between")
    parser.add_argument("--after", help="only those after this one")
    parser.add_argument("--list", action="store_true", help="say what would be run, and stop")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, nargs=2, default=[800, 1344], metavar=("H", "W"))
    parser.add_argument("--scratch", type=Path, default=Path("outputs/gpu_session_scratch"), metavar="FOLDER")
    arguments = parser.parse_args()
    stages = list_stages(
        arguments.device,
        arguments.data.resolve(),
        arguments.scratch.resolve(),
        arguments.batch,
        arguments.size,
    )
    names = [stage.name for stage in stages]
    if arguments.after:
        stages = stages[names.index(arguments.after) + 1 :]
    if arguments.stages:
        stages = [stage for stage in stages if stage.name in arguments.stages.split(",")]
    if arguments.list:
        for stage in stages:
            print(f"{stage.name:<20}{stage.seconds:>5} s  python {' '.join(stage.command)}")
        print(f"at most {sum(stage.seconds for stage in stages) / 60:.0f} minutes")
        return
    run_session(stages, arguments.seconds, arguments.out, arguments.scratch.resolve(), arguments.device)


if __name__ == "__main__":
    main()
