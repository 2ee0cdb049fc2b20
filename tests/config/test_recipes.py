"""Every recipe here loads and survives a dump; the reference's own load unchanged, to the right values."""

from __future__ import annotations

import dataclasses
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lgd.config.keys import flatten, known_keys, known_sections
from lgd.config.load import dump_config, load_config
from lgd.config.schema import ALIASES, Config
from lgd.config.solver import resolve_solver
from lgd.distill.label_encoder import format_for
from tests.config.reference_recipes import ADDED_KEYS, BASES, EARLIER, REFERENCE_RECIPES, RELEASED, SETTINGS

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
OURS = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
RECIPES = [name for name in OURS if not name.startswith(("Base-", "bases/"))]


@cache
def ours(name: str) -> Config:
    """One of our recipes, which many tests look at."""
    return load_config(CONFIGS / name)


def place(folder: Path, name: str, text: str) -> Path:
    """Put a recipe where the reference has it, below our bases."""
    path = folder / "configs" / "Distillation" / f"{name}.yaml"
    path.parent.mkdir(parents=True)
    for base in CONFIGS.glob("Base-*.yaml"):
        shutil.copy(base, folder / "configs")
    path.write_text(text)
    return path


def load_reference(folder: Path, name: str) -> Config:
    (full_name,) = (known for known in REFERENCE_RECIPES if name in known)
    return load_config(place(folder, full_name, REFERENCE_RECIPES[full_name]))


@pytest.mark.parametrize("name", OURS)
def test_ours_load_without_a_doubt_and_reload_from_their_dump(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = load_config(CONFIGS / name)
    dumped = tmp_path / "config.yaml"
    dumped.write_text(dump_config(cfg))
    again = load_config(dumped)
    assert again == cfg
    if name in RECIPES:  # a base alone leaves LGD's default phases, which the reference has as well
        assert not caplog.records


@pytest.mark.parametrize("name", REFERENCE_RECIPES)
def test_references_load_without_a_doubt_and_reload_from_their_dump(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = load_config(place(tmp_path, name, REFERENCE_RECIPES[name]))
    dumped = tmp_path / "config.yaml"
    dumped.write_text(dump_config(cfg))
    assert load_config(dumped) == cfg
    assert not caplog.records


def test_values_of_the_references_retinanet(tmp_path: Path) -> None:
    cfg = load_reference(tmp_path, "retinanet_R_50_2xMS")
    assert cfg.model.meta_architecture == "RetinaNet"
    assert cfg.model.weights == "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
    assert cfg.model.backbone.name == "build_retinanet_resnet_fpn_backbone"
    assert cfg.model.anchor_generator.sizes[0] == (32, 40.31747359663594, 50.79683366298238)
    assert cfg.model.retinanet.smooth_l1_loss_beta == 0.0
    assert cfg.model.distillator.teacher.add_context_box is True
    assert cfg.model.distillator.teacher.detach_appearance_embed is False
    assert cfg.model.distillator.teacher.solver.weight_decay == 1e-4
    assert cfg.model.distillator.teacher.solver.warmup_iters == 1000
    assert cfg.model.distillator.student.solver.steps == (120_000, 160_000)
    assert cfg.model.distillator.pre_nondistill_iters == 30_000
    assert cfg.model.distillator.pre_freeze_student_backbone_iters == 20_000
    assert (cfg.solver.ims_per_batch, cfg.solver.max_iter) == (16, 180_000)
    assert cfg.solver.clip_gradients.enabled
    assert (cfg.solver.clip_gradients.clip_type, cfg.solver.clip_gradients.clip_value) == ("value", 1.0)
    assert cfg.input.min_size_train == (640, 672, 704, 736, 768, 800)
    assert cfg.datasets.train == ("coco_2017_train",)
    assert cfg.num_classes == 80


def test_values_of_the_references_fcos(tmp_path: Path) -> None:
    cfg = load_reference(tmp_path, "fcos_X_101")
    assert cfg.model.meta_architecture == "FCOS"
    assert cfg.model.pixel_std == (57.375, 57.12, 58.395)
    assert (cfg.model.resnets.num_groups, cfg.model.resnets.width_per_group) == (32, 8)
    assert cfg.model.resnets.deform_on_per_stage == (False, True, True, True)
    assert cfg.model.resnets.stride_in_1x1 is False
    assert cfg.model.distillator.post_nondistill_iters == 50_000
    assert cfg.model.fcos.object_sizes_of_interest[-1] == (512, float("inf"))


def test_values_of_the_references_mask_rcnn(tmp_path: Path) -> None:
    cfg = load_reference(tmp_path, "mask_rcnn_Swin_Tiny")
    student, teacher = resolve_solver(cfg, "student"), resolve_solver(cfg, "teacher")
    assert (student.optimizer, student.base_lr, student.weight_decay) == ("ADAMW", 1e-4, 0.05)
    assert (teacher.optimizer, teacher.base_lr, teacher.weight_decay) == ("SGD", 0.02, 1e-4)
    assert student.steps == teacher.steps == (210_000, 250_000)
    assert cfg.model.mask_on
    assert cfg.model.backbone.freeze_at == -1
    assert cfg.model.fpn.in_features == ("stage2", "stage3", "stage4", "stage5")
    assert cfg.model.distillator.label_encoder.load_labelmap
    assert cfg.model.roi_box_head.num_fc == 2


@pytest.mark.parametrize(
    ("our_name", "reference"),
    [("r50_2x_ms_lgd", "retinanet_R_50_2xMS"), ("r50_2x_ss_lgd", "retinanet_R_50_2xSS")],
)
def test_ours_mean_what_the_references_do(our_name: str, reference: str, tmp_path: Path) -> None:
    mine, theirs = ours(f"retinanet/{our_name}.yaml"), load_reference(tmp_path, reference)
    for side in ("student", "teacher"):
        assert resolve_solver(mine, side) == resolve_solver(theirs, side)
    names = [name for name in known_keys() if ".SOLVER." not in name and not name.endswith("META_ARCH")]
    names.remove("OUTPUT_DIR")
    our_values, their_values = flatten(mine), flatten(theirs)
    assert {name: our_values[name] for name in names} == {name: their_values[name] for name in names}


@pytest.mark.parametrize("schedule", ["2x_ms", "2x_ss", "1x_ms", "1x_ss"])
def test_plain_recipes_differ_from_those_with_lgd_in_nothing_else(schedule: str) -> None:
    with_lgd = flatten(ours(f"retinanet/r50_{schedule}_lgd.yaml"))
    plain = flatten(ours(f"retinanet/r50_{schedule}.yaml"))
    changed = {name for name in plain if plain[name] != with_lgd[name]}
    assert changed == {"MODEL.DISTILLATOR.ENABLED", "OUTPUT_DIR"}
    assert plain["MODEL.DISTILLATOR.ENABLED"] is False


def test_no_two_recipes_write_to_the_same_folder() -> None:
    folders = [ours(name).output_dir for name in RECIPES]
    assert len(set(folders)) == len(folders)


def test_the_map_names_every_recipe() -> None:
    text = (CONFIGS / "README.md").read_text()
    for name in OURS:
        pair = f"{name.removesuffix('.yaml').removesuffix('_lgd')}[_lgd].yaml"
        assert f"`{name}`" in text or f"`{pair}`" in text, name


def test_the_map_names_only_recipes_that_are_here() -> None:
    for name in re.findall(r"`([\w/-]+(?:\[_lgd\])?\.yaml)`", (CONFIGS / "README.md").read_text()):
        for ending in ("", "_lgd"):
            assert (CONFIGS / name.replace("[_lgd]", ending)).is_file(), name


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("_lgd.yaml")])
def test_the_plain_recipe_beside_it_differs_in_nothing_but_lgd(name: str) -> None:
    lgd, plain = (flatten(ours(file)) for file in (name, name.replace("_lgd", "")))
    changed = {key for key in lgd if lgd[key] != plain[key]}
    assert changed == {"MODEL.DISTILLATOR.ENABLED", "OUTPUT_DIR"}
    assert lgd["MODEL.DISTILLATOR.ENABLED"] is True
    for file, values in ((name, lgd), (name.replace("_lgd", ""), plain)):
        assert values["OUTPUT_DIR"] == f"outputs/{file.removesuffix('.yaml')}"


DETECTORS = {
    "retinanet": ("RetinaNet", False),
    "fcos": ("FCOS", False),
    "atss": ("ATSS", False),
    "gfl": ("GFL", False),
    "poto": ("POTO", False),
    "faster_rcnn": ("GeneralizedRCNN", False),
    "mask_rcnn": ("GeneralizedRCNN", True),
}
BACKBONES = {
    "r50": ("MSRA/R-50.pkl", 50, 1, False),
    "r101": ("MSRA/R-101.pkl", 101, 1, False),
    "r101_dcn": ("MSRA/R-101.pkl", 101, 1, True),
    "x101": ("FAIR/X-101-32x8d.pkl", 101, 32, False),
    "x101_dcn": ("FAIR/X-101-32x8d.pkl", 101, 32, True),
}
SCHEDULES = {"1x": 90_000, "2x": 180_000, "3x": 270_000, "voc": 18_000, "crowdhuman": 28_125}
NAME = re.compile(
    r"(\w+)/(\w+?)_(1x|2x|3x|voc|crowdhuman)(?:_(ms|ss))?(?:_lgd|_fgfi|_pkd|_crosskd|_lgd_pkd)?\.yaml"
)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.split("/")[0] in DETECTORS])
def test_a_recipe_is_what_its_name_says(name: str) -> None:
    match = NAME.fullmatch(name)
    assert match, name
    detector, backbone, schedule, scale = match.groups()
    cfg = ours(name)
    assert (cfg.model.meta_architecture, cfg.model.mask_on) == DETECTORS[detector]
    assert cfg.model.distillator.label_encoder.load_labelmap is cfg.model.mask_on
    resnet = cfg.model.resnets
    if backbone == "swin_t":
        assert "swint" in cfg.model.backbone.name
        assert cfg.model.swint.out_features == cfg.model.fpn.in_features
    else:
        weights, depth, groups, deformable = BACKBONES[backbone]
        assert cfg.model.weights.endswith(weights)
        assert (resnet.depth, resnet.num_groups, any(resnet.deform_on_per_stage)) == (
            depth,
            groups,
            deformable,
        )
        assert resnet.stride_in_1x1 is (groups == 1)
    assert cfg.solver.max_iter == SCHEDULES[schedule]
    assert cfg.solver.steps[-1] < cfg.solver.max_iter
    if scale is not None:
        assert cfg.input.min_size_train == ((800,) if scale == "ss" else (640, 672, 704, 736, 768, 800))


def meaning(cfg: Config) -> dict[str, Any]:
    """Every setting with an effect; of SOLVER, what each side makes of it."""
    values = flatten(cfg)
    for side in ("student", "teacher"):
        for key, value in dataclasses.asdict(resolve_solver(cfg, side)).items():
            values[f"MODEL.DISTILLATOR.{side.upper()}.SOLVER.{key.upper()}"] = value
            values.pop(f"SOLVER.{key.upper()}", None)
    for key in ("OUTPUT_DIR", "MODEL.DISTILLATOR.STUDENT.META_ARCH", "MODEL.DISTILLATOR.TEACHER.META_ARCH"):
        del values[key]
    return values


def test_there_are_fourteen_released_recipes() -> None:
    assert len(RELEASED) == 14


@pytest.mark.parametrize(("theirs", "our_name"), [*RELEASED.items(), *EARLIER.items()])
def test_a_recipe_of_the_reference_means_the_same_as_ours(theirs: str, our_name: str, tmp_path: Path) -> None:
    cfg = load_config(place(tmp_path, theirs, REFERENCE_RECIPES[theirs]))
    assert meaning(cfg) == meaning(ours(our_name))


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_of_every_recipe_of_the_reference(name: str, tmp_path: Path) -> None:
    values = flatten(load_config(place(tmp_path, name, REFERENCE_RECIPES[name])))
    for key, value in SETTINGS[name].items():
        if key not in known_sections() and key != "_BASE_":
            assert values[key] == known_keys()[key].coerce(value, key), key


@pytest.mark.parametrize("name", BASES)
def test_our_bases_say_what_the_references_do(name: str) -> None:
    values = flatten(ours(name))
    for key, value in BASES[name].items():
        if key not in known_sections():
            assert values[key] == known_keys()[key].coerce(value, key), key


def test_every_key_that_the_reference_adds_is_here_with_its_default() -> None:
    keys = known_keys()
    for name, default in ADDED_KEYS.items():
        name = ALIASES.get(name, name)
        sides_fall_back = ".SOLVER." in name and keys[name].default is None
        if name == "MODEL.DISTILLATOR.LABEL_ENCODER.CATEGORY_FORMAT":
            assert (keys[name].default, default) == (
                "auto",
                format_for(80),
            )  # more classes are another matter
            continue
        assert sides_fall_back or keys[name].default == keys[name].coerce(default, name), name


def test_the_tree_is_frozen_and_hashable() -> None:
    cfg = Config()
    assert hash(cfg) == hash(Config())
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.solver.max_iter = 1  # type: ignore[misc]
