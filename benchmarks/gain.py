"""What distillation gains: small detectors trained plain, with LGD and with FGFI, over several seeds.

    python benchmarks/gain.py --data coco:datasets/bccd:train --detectors retinanet,fcos
        --methods plain,lgd,fgfi --seeds 3 --iterations 1500 --json gain.json [KEY VALUE ...]

Every run trains from scratch (`python -m lgd.train` over configs/demo.yaml) and is evaluated on the split
`val` of the same folder. Runs that are finished are not repeated and a broken one goes on from its
checkpoint, so the command can be stopped and given again. FGFI's teacher is a plain detector of more layers,
trained first for as many iterations. `--equal-time` adds the plain detector trained for as long as LGD took.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lgd import __version__
from lgd.notices import above_bars, lines_on_stderr, long_work

ROOT = Path(__file__).parents[1]
BASE = ROOT / "configs/demo.yaml"
TEACHER_DEPTH = 34

_TWO_STAGE = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ("res2", "res3", "res4", "res5"),
    "MODEL.FPN.IN_FEATURES": ("res2", "res3", "res4", "res5"),
    "MODEL.ANCHOR_GENERATOR.SIZES": ((16,), (32,), (64,), (128,), (256,)),
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 500,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 500,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 250,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 250,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 128,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 256,
    "MODEL.DISTILLATOR.TEACHER.ADD_CONTEXT_BOX": False,
    "MODEL.DISTILLATOR.TEACHER.DETACH_APPEARANCE_EMBED": True,
}
_ANCHOR_FREE = {"MODEL.FCOS.NUM_CONVS": 1, "MODEL.FCOS.FOCAL_LOSS_GAMMA": 1.0}
_SIZES = ((-1, 32), (32, 64), (64, 128), (128, 256), (256, 10000))  # half of COCO's, as the images are
DETECTORS: Mapping[str, Mapping[str, Any]] = {
    "retinanet": {},
    "fcos": {
        "MODEL.META_ARCHITECTURE": "FCOS",
        "MODEL.FCOS.OBJECT_SIZES_OF_INTEREST": _SIZES,
        **_ANCHOR_FREE,
    },
    "atss": {"MODEL.META_ARCHITECTURE": "ATSS", **_ANCHOR_FREE},
    "poto": {"MODEL.META_ARCHITECTURE": "POTO", **_ANCHOR_FREE},
    "faster_rcnn": _TWO_STAGE,
    "mask_rcnn": {
        **_TWO_STAGE,
        "MODEL.MASK_ON": True,
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 2,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 48,
        "MODEL.DISTILLATOR.LABEL_ENCODER.LOAD_LABELMAP": True,
    },
}
METHODS = ("plain", "lgd", "fgfi")


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        data: data set as in DATASETS.TRAIN.
        detector: a key of DETECTORS.
        method: "plain", "lgd", "fgfi", "teacher" or "plain, equal time".
        seed: of everything random.
        iterations: steps.
    """

    data: str
    detector: str
    method: str
    seed: int
    iterations: int

    def folder(self, out: Path) -> Path:
        """Where the run writes."""
        data = "-".join(Path(self.data.partition(":")[2].rpartition(":")[0]).parts[-1:])
        name = f"{self.method.replace(', ', '_').replace(' ', '_')}-{self.iterations}-seed{self.seed}"
        return out / data / self.detector / name


def settings_of(run: Run, arguments: argparse.Namespace) -> dict[str, Any]:
    """The run's settings over the base recipe."""
    kind_and_root, _, _ = run.data.rpartition(":")
    settings = {
        "DATASETS.TRAIN": (run.data,),
        "DATASETS.TEST": (f"{kind_and_root}:{arguments.test_split}",),
        "INPUT.MIN_SIZE_TRAIN": (224, 240, 256),
        "INPUT.MAX_SIZE_TRAIN": 384,
        "INPUT.MIN_SIZE_TEST": 256,
        "INPUT.MAX_SIZE_TEST": 384,
        "SOLVER.IMS_PER_BATCH": arguments.batch,
        "SOLVER.MAX_ITER": run.iterations,
        "SOLVER.CHECKPOINT_PERIOD": max(1, run.iterations // 4),
        "SOLVER.AMP.ENABLED": arguments.bf16,
        "TEST.EVAL_PERIOD": 0,
        "TEST.VIS_IMAGES": 0,
        "TRAIN.KEEP_CHECKPOINTS": 1,
        "TRAIN.COMPILE": False,  # would take longer than these short trainings
        "DATALOADER.NUM_WORKERS": arguments.workers,
        "LOG_PERIOD": 20,
        "SEED": run.seed,
        "OUTPUT_DIR": str(run.folder(arguments.out)),
        **DETECTORS[run.detector],
    }
    distillator = "MODEL.DISTILLATOR"
    if run.method == "lgd":
        settings[f"{distillator}.PRE_NONDISTILL_ITERS"] = run.iterations // 6
        settings[f"{distillator}.EVAL_TEACHER"] = True
    elif run.method == "fgfi":
        teacher = teacher_of(run).folder(arguments.out)
        settings[f"{distillator}.METHOD"] = "FGFI"
        settings[f"{distillator}.TEACHER.WEIGHTS"] = str(teacher / "model_final.pth")
        settings[f"{distillator}.TEACHER.CONFIG_FILE"] = str(teacher / "config.yaml")
        settings[f"{distillator}.PRE_NONDISTILL_ITERS"] = 0
        settings[f"{distillator}.LABEL_ENCODER.LOAD_LABELMAP"] = False
    else:
        settings[f"{distillator}.ENABLED"] = False
        settings[f"{distillator}.LABEL_ENCODER.LOAD_LABELMAP"] = False
    if run.method == "teacher":
        settings["MODEL.RESNETS.DEPTH"] = TEACHER_DEPTH
    return settings


def teacher_of(run: Run) -> Run:
    """The training of FGFI's teacher: one for all seeds."""
    return replace(run, method="teacher", seed=1)


def train(run: Run, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Train, and give notice of it."""
    result = train_once(run, arguments)
    arguments.advance(1)
    return result


def train_once(run: Run, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Train unless it is done already; returns what came out, None where the training failed."""
    folder = run.folder(arguments.out)
    summary = folder / "summary.json"
    if not summary.exists():
        folder.mkdir(parents=True, exist_ok=True)
        options = [str(x) for pair in settings_of(run, arguments).items() for x in pair] + arguments.opts
        settle(folder / "settings.json", options)
        command = [sys.executable, "-m", "lgd.train", "--config-file", str(BASE), "--resume"]
        with (folder / "terminal.txt").open("a") as log:
            code = subprocess.run(
                [*command, *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                check=False,
            ).returncode
        if code:
            say(f"{describe(run)} failed with exit code {code}: see {folder / 'terminal.txt'}")
            return None
        summary.write_text(json.dumps(summarise(folder)))
    result: dict[str, Any] = json.loads(summary.read_text())
    say(f"{describe(run)}: " + "  ".join(f"{key} {value:.3g}" for key, value in result.items()))
    return result


def settle(path: Path, options: Sequence[str]) -> None:
    """Hold a run to the settings that it began with."""
    if path.exists() and json.loads(path.read_text()) != list(options):
        sys.exit(f"{path.parent} was begun with other settings; give another --out, or delete it")
    path.write_text(json.dumps(options))


def summarise(folder: Path) -> dict[str, Any]:
    """AP of student and teacher, time per step and memory, from a finished run's files."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "total_loss" in line]
    (models,) = json.loads((folder / "results.json").read_text()).values()
    return {
        "AP": models["student"]["bbox"]["AP"],
        "AP50": models["student"]["bbox"]["AP50"],
        **({"mask AP": models["student"]["segm"]["AP"]} if "segm" in models["student"] else {}),
        **({"teacher AP": models["teacher"]["bbox"]["AP"]} if "teacher" in models else {}),
        "s/iter": statistics.median(line["time"] for line in steps),
        "MiB": max(line["memory"] for line in steps),
    }


def compare(data: str, detector: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Train one detector with every method and seed; returns a row for each method."""
    base = Run(data, detector, "plain", 0, arguments.iterations)
    if "fgfi" in arguments.methods:
        train(teacher_of(base), arguments)
    rows = [train_seeds(replace(base, method=method), arguments) for method in arguments.methods]
    by_method = {row["method"]: row for row in rows}
    plain, lgd = by_method.get("plain"), by_method.get("lgd")
    if arguments.equal_time and plain and lgd and plain["runs"] and lgd["runs"]:
        iterations = round(arguments.iterations * lgd["s/iter"] / plain["s/iter"])
        rows.append(train_seeds(replace(base, method="plain, equal time", iterations=iterations), arguments))
    return rows


def train_seeds(run: Run, arguments: argparse.Namespace) -> dict[str, Any]:
    """Mean and spread over the seeds."""
    results = [train(replace(run, seed=seed), arguments) for seed in range(1, arguments.seeds + 1)]
    runs = [result for result in results if result is not None]
    row: dict[str, Any] = {
        "data": run.data,
        "detector": run.detector,
        "method": run.method,
        "iterations": run.iterations,
        "runs": runs,
    }
    for key in runs[0] if runs else ():
        values = [result[key] for result in runs]
        row[key] = statistics.median(values) if key in ("s/iter", "MiB") else statistics.mean(values)
        row[f"{key} sd"] = statistics.stdev(values) if len(values) > 1 else 0.0
    return row


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table; gains are over the plain detector of as many iterations."""
    columns = ("data", "detector", "method", "iterations", "AP (sd)", "gain", "AP50", "mask AP (sd)")
    columns += ("teacher AP", "s/iter", "MiB")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    plain = {(row["data"], row["detector"]): row.get("AP") for row in rows if row["method"] == "plain"}
    for row in rows:
        start = f"| {row['data']} | {row['detector']} | {row['method']} | {row['iterations']} |"
        if not row["runs"]:
            lines.append(f"{start} failed | | | | | | |")
            continue
        reference = plain.get((row["data"], row["detector"]))
        gain = "" if reference is None or row["method"] == "plain" else f"{row['AP'] - reference:+.2f}"
        mask = f"{row['mask AP']:.2f} ({row['mask AP sd']:.2f})" if "mask AP" in row else ""
        teacher = f"{row['teacher AP']:.2f}" if "teacher AP" in row else ""
        lines.append(
            f"{start} {row['AP']:.2f} ({row['AP sd']:.2f}) | {gain} | {row['AP50']:.2f} | {mask} | {teacher} "
            f"| {row['s/iter']:.3f} | {row['MiB']:.0f} |"
        )
    return "\n".join(lines)


def describe(run: Run) -> str:
    """The run in a line."""
    return f"{run.data} {run.detector} {run.method} seed {run.seed} ({run.iterations} iterations)"


def say(line: str) -> None:
    """Print at once, also into a pipe."""
    with above_bars(sys.stdout):
        print(line, flush=True)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", required=True, metavar="KIND:ROOT:SPLIT", help="training sets")
    parser.add_argument("--test-split", default="val", help="split of the same folders to evaluate on")
    parser.add_argument("--detectors", default="retinanet", help=f"of {','.join(DETECTORS)}")
    parser.add_argument("--methods", default="plain,lgd", help=f"of {','.join(METHODS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=8, help="images of a step")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--equal-time", action="store_true", help="also the plain detector for LGD's time")
    parser.add_argument("--out", type=Path, default=Path("outputs/gain"))
    parser.add_argument("--json", type=Path, help="write the rows here too")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings over all the others")
    arguments = parser.parse_intermixed_args()
    for name, known in (("detectors", tuple(DETECTORS)), ("methods", METHODS)):
        values = getattr(arguments, name).split(",")
        unknown = [value for value in values if value not in known]
        if unknown:
            parser.error(f"unknown {name} {', '.join(unknown)}; choose of {', '.join(known)}")
        setattr(arguments, name, values)
    return arguments


def main() -> None:
    """Train everything, with a bar or lines that say how much of it is done."""
    arguments = parse_arguments()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    with lines_on_stderr(), long_work("training", count_trainings(arguments), "trainings") as advance:
        arguments.advance = advance
        compare_all(arguments, device)


def count_trainings(arguments: argparse.Namespace) -> int:
    """How many trainings there will be, those of FGFI's teachers and of equal time included."""
    methods = len(arguments.methods) + (arguments.equal_time and {"plain", "lgd"} <= {*arguments.methods})
    each = methods * arguments.seeds + ("fgfi" in arguments.methods)
    return len(arguments.data) * len(arguments.detectors) * each


def compare_all(arguments: argparse.Namespace, device: str) -> None:
    """Train everything and print the table, also after each detector."""
    rows: list[dict[str, Any]] = []
    for data in arguments.data:
        for detector in arguments.detectors:
            rows += compare(data, detector, arguments)
            say("\n" + table(rows) + "\n")
            if arguments.json:
                about = {"lgd": __version__, "torch": torch.__version__, "device": device}
                arguments.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
