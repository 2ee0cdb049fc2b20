"""Every recipe of configs/ builds, trains with LGD on, evaluates student and teacher, saves and resumes.

The recipes are made small by KEY VALUE pairs alone, which leave detector, backbone and its depth, LGD's
settings, optimizers and clipping as they are. Those that differ in nothing but what is overridden then (the
schedule, the lengths of the short side) are one run, which stands for all of them: `ALIKE`.
"""

from __future__ import annotations

import json
import math
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from lgd import train
from lgd.config.distillator_schema import IMITATING
from lgd.config.keys import flatten
from lgd.config.load import load_config
from lgd.config.solver import resolve_solver
from tests.data.boxes_sets import person, voc_object, write_crowdhuman, write_voc
from tests.training import REPOSITORY, read_metrics

CONFIGS = REPOSITORY / "configs"
RECIPES = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.rglob("*.yaml")
    if path.parent.name != "bases" and not path.name.startswith("Base-")
)

SMALL = {
    "NUM_CLASSES": 0,
    "MODEL.WEIGHTS": "",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.SWINT.EMBED_DIM": 24,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 50,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 30,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
    "MODEL.FCOS.SCORE_THRESH_TEST": 0.0,
    "MODEL.DISTILLATOR.LABEL_ENCODER.WIDTH": 64,
    "MODEL.DISTILLATOR.PRE_NONDISTILL_ITERS": 1,
    "MODEL.DISTILLATOR.POST_NONDISTILL_ITERS": 0,
    "MODEL.DISTILLATOR.PRE_FREEZE_STUDENT_BACKBONE_ITERS": 1,
    "INPUT.MIN_SIZE_TRAIN": "[128, 144]",
    "INPUT.MAX_SIZE_TRAIN": 192,
    "INPUT.MIN_SIZE_TEST": 128,
    "INPUT.MAX_SIZE_TEST": 192,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.STEPS": "[1]",
    "SOLVER.WARMUP_ITERS": 1,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "TEST.EVAL_PERIOD": 0,
    "TEST.DETECTIONS_PER_IMAGE": 10,
    "TEST.VIS_IMAGES": 0,
    "LOG_PERIOD": 1,
    "SEED": 5,
}


def smaller(name: str) -> list[str]:
    """KEY VALUE pairs that make a run of seconds of a recipe; data and OUTPUT_DIR stay."""
    settings = SMALL | {"MODEL.RESNETS.WIDTH_PER_GROUP": 1 if "x101" in name else 8}
    if has_own_data(name):
        del settings["NUM_CLASSES"]
    return [str(item) for pair in settings.items() for item in pair]


def has_own_data(name: str) -> bool:
    """By its name: reading all recipes for it would take a second whenever tests are collected."""
    return "voc" in name or "crowdhuman" in name


@cache
def what_runs(name: str) -> dict[str, Any]:
    """Every setting that the small run of a recipe depends on, its OUTPUT_DIR and number of classes apart."""
    cfg = load_config(CONFIGS / name, smaller(name))
    values = {
        key: value
        for key, value in flatten(cfg).items()
        if key != "OUTPUT_DIR" and (cfg.model.distillator.enabled or not key.startswith("MODEL.DISTILLATOR."))
    }
    return values | {side: resolve_solver(cfg, side) for side in ("student", "teacher")}


def group(names: list[str]) -> dict[str, list[str]]:
    """Recipes by the first of those that run alike."""
    groups: dict[str, list[str]] = {}
    trees: list[tuple[dict[str, Any], str]] = []
    for name in names:
        tree = what_runs(name)
        first = next((first for other, first in trees if other == tree), None)
        if first is None:
            trees.append((tree, name))
        groups.setdefault(first or name, []).append(name)
    return groups


ALIKE = {
    "faster_rcnn/r101": (["2x_ms", "3x_ms"], ["2x_ms_lgd", "3x_ms_lgd"]),
    "faster_rcnn/r50": (
        ["1x_ms", "1x_ss", "2x_ms", "3x_ms"],
        ["1x_ms_lgd", "1x_ss_lgd", "2x_ms_lgd", "3x_ms_lgd"],
    ),
    "retinanet/r101": (["2x_ms", "3x_ms"], ["2x_ms_lgd", "3x_ms_lgd"]),
    "retinanet/r50": (
        ["1x_ms", "1x_ss", "2x_ms", "2x_ss", "3x_ms"],
        ["1x_ms_lgd", "1x_ss_lgd"],
        ["2x_ms_lgd", "2x_ss_lgd", "3x_ms_lgd"],
    ),
}
"""Recipes that run alike, as a test finds them: to look for them takes a second or two, and these names are
needed whenever tests are collected."""


def groups_of(names: list[str]) -> dict[str, list[str]]:
    """As `group` finds them, by `ALIKE`."""
    groups = {name: [name] for name in names}
    for start, several in ALIKE.items():
        for first, *others in ([f"{start}_{end}.yaml" for end in ends] for ends in several):
            groups[first] += others
            for name in others:
                del groups[name]
    return groups


GROUPS = groups_of(RECIPES)


def data_sets(spec: str, coco: Path, folder: Path) -> str:
    """A small data set in the place of a recipe's own, of the same format."""
    if spec.startswith("voc:"):
        _, place, split = spec.split(":")
        objects = [voc_object("person", (5, 8, 40, 44)), voc_object("dog", (20, 3, 60, 30))]
        return write_voc(folder / place, {f"{k:06d}": objects for k in range(4)}, split=split)
    if spec.startswith("crowdhuman:"):
        people = [person((5, 8, 20, 30)), person((30, -5, 15, 40)), person((0, 0, 9, 9), tag="mask")]
        return write_crowdhuman(folder, {f"{k}": people for k in range(4)}, split=spec.split(":")[-1])
    return f"coco:{coco}:{'val' if 'val' in spec else 'train'}"


def small_data_sets(name: str, coco: Path, folder: Path) -> list[str]:
    """KEY VALUE pairs that put small data sets in the places of a recipe's own."""
    datasets = load_config(CONFIGS / name).datasets
    pairs = (("DATASETS.TRAIN", datasets.train), ("DATASETS.TEST", datasets.test))
    return [
        text for key, specs in pairs for text in (key, str([data_sets(spec, coco, folder) for spec in specs]))
    ]


def small_teacher(name: str, coco: Path, folder: Path) -> list[str]:
    """KEY VALUE pairs for a pretrained teacher: the recipe that the student's names, trained in small."""
    recipe = REPOSITORY / load_config(CONFIGS / name).model.distillator.teacher.config_file
    relative = recipe.relative_to(CONFIGS).as_posix()
    settings = [*smaller(relative), *small_data_sets(relative, coco, folder), "OUTPUT_DIR", str(folder)]
    assert train.main(["--config-file", str(recipe), *settings]) == 0
    place = "MODEL.DISTILLATOR.TEACHER"
    return [
        *(f"{place}.CONFIG_FILE", str(folder / "config.yaml")),
        *(f"{place}.WEIGHTS", str(folder / "model_final.pth")),
    ]


def final_model(output: Path) -> dict[str, torch.Tensor]:
    return torch.load(output / "model_final.pth", weights_only=True)["model"]


def losses_by_step(output: Path) -> dict[int, dict[str, float]]:
    return {
        line["iteration"]: {key: value for key, value in line.items() if "loss" in key}
        for line in read_metrics(output)
        if "total_loss" in line
    }


DISTILLED = {"CrossKD": {"loss_distill", "loss_distill_box"}, "LGD+PKD": {"loss_distill", "loss_pkd"}}
"""Losses of the methods that have more than one of their own."""


def check_losses(output: Path, method: str) -> None:
    steps = losses_by_step(output)
    assert list(steps) == [1, 2]
    for losses in steps.values():
        assert all(math.isfinite(value) for value in losses.values()), losses
        distilled = DISTILLED.get(method, {"loss_distill"} if method else set())
        own = {key for key in losses if key.startswith("loss_") and ".tea" not in key} - distilled
        taught = {f"{key}.tea" for key in own} if "LGD" in method else set()
        assert own
        assert set(losses) == own | taught | distilled | {"total_loss"}


OWN_METRICS = {"coco": set(), "voc": {"AP50-07"}, "crowdhuman": {"mMR", "JI"}}
"""What is measured beside COCO's metrics, by kind of data set."""


def check_results(output: Path, *, with_teacher: bool, with_masks: bool) -> None:
    ((dataset, results),) = json.loads((output / "results.json").read_text()).items()
    assert set(results) == ({"student", "teacher"} if with_teacher else {"student"})
    for kinds in results.values():
        assert ("segm" in kinds) == with_masks
        for numbers in kinds.values():
            measured = {"AP", "AP50"} | OWN_METRICS[dataset.split(":")[0]]
            assert all(0 <= numbers[metric] <= 100 for metric in measured)


def test_every_recipe_stands_in_one_group_of_recipes_that_run_alike() -> None:
    assert group(RECIPES) == GROUPS


def test_names_tell_which_recipes_have_data_of_their_own() -> None:
    for name in RECIPES:
        tests_on = load_config(CONFIGS / name).datasets.test[0]
        assert has_own_data(name) == tests_on.startswith(("voc:", "crowdhuman:")), name


def test_only_schedules_and_scales_are_lost_in_groups() -> None:
    groups = {frozenset(names) for names in GROUPS.values()}
    two_x = {f"retinanet/r50_{schedule}_lgd.yaml" for schedule in ("2x_ms", "2x_ss", "3x_ms")}
    one_x = {f"retinanet/r50_{schedule}_lgd.yaml" for schedule in ("1x_ms", "1x_ss")}
    plain = {f"retinanet/r50_{schedule}.yaml" for schedule in ("1x_ms", "1x_ss", "2x_ms", "2x_ss", "3x_ms")}
    assert {frozenset(two_x), frozenset(one_x), frozenset(plain)} <= groups
    for names in groups:
        kinds = {name.removesuffix(".yaml").split("_1x")[0].split("_2x")[0].split("_3x")[0] for name in names}
        assert len(kinds) == 1, names


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUPS)
def test_trains_evaluates_saves_and_resumes(name: str, small_data: Path, tmp_path: Path) -> None:
    model = load_config(CONFIGS / name).model
    method = model.distillator.method if model.distillator.enabled else ""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    settings = [*smaller(name), *small_data_sets(name, small_data, tmp_path)]
    if method in IMITATING:
        settings += small_teacher(name, small_data, tmp_path / "teacher")
    assert train.main(["--config-file", str(CONFIGS / name), *settings, "OUTPUT_DIR", str(whole)]) == 0
    check_losses(whole, method)
    check_results(whole, with_teacher="LGD" in method, with_masks=model.mask_on)

    shutil.copytree(whole, resumed)
    (resumed / "checkpoints" / "step_0000002.pth").unlink()
    (resumed / "model_final.pth").unlink()
    settings += ["OUTPUT_DIR", str(resumed)]
    assert train.main(["--config-file", str(CONFIGS / name), "--resume", *settings]) == 0
    assert losses_by_step(resumed) == losses_by_step(whole)
    expected, got = final_model(whole), final_model(resumed)
    assert expected.keys() == got.keys()
    assert all(torch.equal(value, got[key]) for key, value in expected.items())
