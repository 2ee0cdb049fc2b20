"""One run of a study: trained in a process of its own, once, and read back from what it leaves."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lgd
from lgd import exits
from lgd.config.values import ConfigError
from lgd.files import write_text_atomically
from lgd.gain.study import Run

SUMMARY = "summary.json"
_SETTINGS = "settings.json"
_TERMINAL = "terminal.txt"


class TrainingError(RuntimeError):
    """A training that did not come to its end.

    Args:
        message: for the user.
        code: that its process ended with; see `lgd.exits`.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def train(
    run: Run, options: Sequence[str], folder: Path, threads: int | None = None, *, shown: bool = False
) -> dict[str, Any]:
    """Train, or go on where an earlier try has stopped, and leave a summary; or read the one that is there.

    Args:
        run: what it is.
        options: KEY VALUE pairs over its recipe.
        folder: its OUTPUT_DIR.
        threads: of the process; None lets it choose.
        shown: what it says is for the terminal, not for a file in the folder.

    Returns:
        See `summarise`.

    Raises:
        ConfigError: the folder has a run with other settings.
        TrainingError: it did not come to its end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _settle(folder / _SETTINGS, [run.recipe, *options])
    if (folder / SUMMARY).exists():
        summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text())
        return summary
    command = [sys.executable, "-m", "lgd.train", "--config-file", run.recipe, "--resume", *options]
    paths = [str(Path(lgd.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {
        **({} if threads is None else {"OMP_NUM_THREADS": str(threads)}),
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    with nullcontext() if shown else (folder / _TERMINAL).open("a") as log:
        code = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log and subprocess.STDOUT, env=environment
        ).returncode
    if code != exits.DONE:
        place = "its lines above" if shown else folder / _TERMINAL
        raise TrainingError(f"{run.name()} {exits.describe_end(code)}: see {place}", code)
    summary = summarise(folder)
    write_text_atomically(folder / SUMMARY, json.dumps(summary, indent=1) + "\n")
    return summary


def _settle(path: Path, options: Sequence[str]) -> None:
    """Hold a run to the settings that it began with."""
    if path.exists() and json.loads(path.read_text()) != list(options):
        raise ConfigError(f"{path.parent} was begun with other settings; give another --out, or delete it")
    write_text_atomically(path, json.dumps(list(options)))


def summarise(folder: Path) -> dict[str, Any]:
    """Read what a finished run has left.

    Returns:
        "AP", "AP50" and, where there are, "mask AP", "teacher AP", in [0, 100]; "seconds" of a step, the
        median; "memory", MiB; "curve", [step, AP] at each evaluation. Where the weights are averaged too,
        AP is the better one's, student's or average's, as in the run's last model.
    """
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "total_loss" in line]
    (models,) = json.loads((folder / "results.json").read_text()).values()
    student = _best(models)
    return {
        "AP": student["bbox"]["AP"],
        "AP50": student["bbox"]["AP50"],
        **({"mask AP": student["segm"]["AP"]} if "segm" in student else {}),
        **({"teacher AP": models["teacher"]["bbox"]["AP"]} if "teacher" in models else {}),
        "seconds": statistics.median(line["time"] for line in steps),
        "memory": max(line["memory"] for line in steps),
        "curve": [[line["iteration"], ap] for line in lines if (ap := _ap(line)) is not None],
    }


def _ap(line: dict[str, Any]) -> float | None:
    """The box AP, where a line of the metrics is an evaluation."""
    if "eval" not in line:
        return None
    (models,) = line["eval"].values()
    ap: float | None = _best(models)["bbox"]["AP"]
    return ap


def _best(models: Mapping[str, Any]) -> Any:
    """The metrics of student or average, whichever has the better box AP."""
    found = [models[name] for name in ("student", "ema") if name in models]
    return max(found, key=lambda each: each["bbox"]["AP"] or 0)
