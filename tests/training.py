"""Small runs of the real thing for tests: `python -m lgd.train` on a few small images."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]

SMALL = {
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
    "MODEL.DISTILLATOR.LABEL_ENCODER.WIDTH": 32,
    "MODEL.DISTILLATOR.PRE_NONDISTILL_ITERS": 2,
    "MODEL.DISTILLATOR.PRE_FREEZE_STUDENT_BACKBONE_ITERS": 3,
    "INPUT.MIN_SIZE_TRAIN": "[64, 72]",
    "INPUT.MIN_SIZE_TEST": 64,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.MAX_ITER": 12,
    "SOLVER.STEPS": "[8]",
    "SOLVER.WARMUP_ITERS": 2,
    "SOLVER.CHECKPOINT_PERIOD": 3,
    "TEST.EVAL_PERIOD": 0,
    "TEST.VIS_IMAGES": 1,
    "LOG_PERIOD": 2,
    "SEED": 5,
}


def small_settings(data, output, **changes):
    """KEY VALUE pairs over configs/demo.yaml for a run of seconds; `changes` have __ for dots."""
    settings = {
        **SMALL,
        "DATASETS.TRAIN": f"('coco:{data}:train',)",
        "DATASETS.TEST": f"('coco:{data}:val',)",
        "OUTPUT_DIR": str(output),
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    return [str(item) for pair in settings.items() for item in pair]


def command(settings, *flags, config="configs/demo.yaml"):
    return [sys.executable, "-m", "lgd.train", "--config-file", str(REPOSITORY / config), *flags, *settings]


def start(settings, *flags, **popen):
    return start_program(command(settings, *flags), **popen)


def start_program(arguments, **popen):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        arguments, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **popen
    )


def descendants(process_id):
    """Every process that descends from this one."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The second field, the command in parentheses, may hold spaces.
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [process_id]
    for parent in found:
        found += sorted(child for child, other in parents.items() if other == parent)
    return found[1:]


def run_to_end(settings, *flags):
    """Run and return the output; fails with it on a non-zero exit."""
    process = start(settings, *flags)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def read_metrics(output):
    """Lines of metrics.jsonl without what depends on the machine's speed."""
    from lgd.engine.metrics import TIMING_KEYS

    lines = [json.loads(line) for line in (Path(output) / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING_KEYS} for line in lines]
