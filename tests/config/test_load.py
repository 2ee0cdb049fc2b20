"""Files over files, overrides over files, text as values, and what a user is told."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lgd.config.check import check_config
from lgd.config.keys import attribute_to_key, flatten, known_keys, known_sections, with_values
from lgd.config.load import ConfigError, config_hash, dump_config, load_config
from lgd.config.schema import Config


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_file(text: str, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write_file


@pytest.fixture
def empty(write: Any) -> Path:
    path: Path = write("")
    return path


def test_an_empty_file_gives_the_defaults(empty: Path) -> None:
    assert load_config(empty) == Config()


def test_an_empty_section_changes_nothing(write: Any) -> None:
    assert load_config(write("MODEL:\n  RPN:\nSOLVER:\n")) == Config()


def test_child_wins_over_base_key_by_key_and_overrides_over_both(write: Any) -> None:
    write("SOLVER: {BASE_LR: 0.5, MAX_ITER: 50000, STEPS: [1, 2, 3]}\n", "base.yaml")
    child = write("_BASE_: ../base.yaml\nSOLVER: {MAX_ITER: 60000, STEPS: [4]}\n", "sub/child.yaml")
    cfg = load_config(child, ["SOLVER.GAMMA", "0.2", "SOLVER.MAX_ITER", "70000"])
    assert (cfg.solver.base_lr, cfg.solver.gamma, cfg.solver.max_iter, cfg.solver.steps) == (
        0.5,
        0.2,
        70_000,
        (4,),
    )


def test_a_base_may_be_absolute_and_have_a_base(write: Any, tmp_path: Path) -> None:
    write("SEED: 1\nLOG_PERIOD: 5\n", "a.yaml")
    write("_BASE_: a.yaml\nSEED: 2\n", "b.yaml")
    cfg = load_config(str(write(f"_BASE_: {tmp_path}/b.yaml\n", "sub/c.yaml")))
    assert (cfg.seed, cfg.log_period) == (2, 5)


def test_of_several_bases_the_later_wins_key_by_key(write: Any) -> None:
    write("SEED: 1\nSOLVER: {MAX_ITER: 10, STEPS: [3, 5]}\n", "root.yaml")
    write("_BASE_: root.yaml\nLOG_PERIOD: 7\n", "a.yaml")
    write("SOLVER: {MAX_ITER: 20}\nMODEL: {FCOS: {NUM_CLASSES: 3}}\n", "b.yaml")
    write("MODEL: {RETINANET: {NUM_CLASSES: 4}}\n", "c.yaml")
    cfg = load_config(write("_BASE_: [a.yaml, b.yaml, c.yaml]\n", "recipe.yaml"))
    assert (cfg.seed, cfg.log_period, cfg.solver.max_iter, cfg.solver.steps) == (1, 7, 20, (3, 5))
    assert cfg.num_classes == 4


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("SOLVER.BASE_LR", "1e-4", 0.0001),
        ("SOLVER.BASE_LR", "1", 1.0),
        ("SOLVER.WARMUP_ITERS", "1e03", 1000),
        ("SOLVER.WARMUP_ITERS", "1000.0", 1000),
        ("SOLVER.MAX_ITER", "90_000", 90_000),
        ("SEED", "-1", -1),
        ("SEED", "9007199254740993", 9_007_199_254_740_993),
        ("SOLVER.STEPS", "(60000, 80000)", (60_000, 80_000)),
        ("SOLVER.STEPS", "[60000,80000]", (60_000, 80_000)),
        ("SOLVER.STEPS", "60000, 80000", (60_000, 80_000)),
        ("SOLVER.STEPS", "60000", (60_000,)),
        ("SOLVER.STEPS", "()", ()),
        ("SOLVER.STEPS", "''", ()),
        ("SOLVER.STEPS", "", ()),
        ("SOLVER.STEPS", "'(1, 2)'", (1, 2)),
        ("INPUT.MIN_SIZE_TRAIN", "(800,)", (800,)),
        ("DATASETS.TRAIN", "('coco:a:b',)", ("coco:a:b",)),
        ("DATASETS.TRAIN", "('coco:a:b')", ("coco:a:b",)),
        ("DATASETS.TRAIN", "(coco:a:b,)", ("coco:a:b",)),
        ("DATASETS.TRAIN", "[coco:/x/a b:train, coco_2017_val]", ("coco:/x/a b:train", "coco_2017_val")),
        ("DATASETS.TRAIN", "coco:a:b", ("coco:a:b",)),
        ("DATASETS.TRAIN", '"coco:a:b"', ("coco:a:b",)),
        ("MODEL.MASK_ON", "YES", True),
        ("MODEL.MASK_ON", "off", False),
        ("MODEL.WEIGHTS", "'a.pth'", "a.pth"),
        ("OUTPUT_DIR", "2024", "2024"),
        ("MODEL.WEIGHTS", "''", ""),
        ("MODEL.RESNETS.DEPTH", "101", 101),
        ("MODEL.RESNETS.NORM", "''", ""),
        ("MODEL.PIXEL_STD", "[57.375, 57.12, 58.395]", (57.375, 57.12, 58.395)),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16, 24.5]]", ((8.0,), (16.0, 24.5))),
        ("MODEL.FCOS.OBJECT_SIZES_OF_INTEREST", "[[-1, 64], [64, inf]]", ((-1.0, 64.0), (64.0, math.inf))),
        ("MODEL.DISTILLATOR.TEACHER.SOLVER.STEPS", "None", None),
        ("MODEL.DISTILLATOR.TEACHER.SOLVER.STEPS", "(5, 6)", (5, 6)),
        ("MODEL.DISTILLATOR.TEACHER.SOLVER.BASE_LR", "null", None),
        ("MODEL.DISTILLATOR.STUDENT.META_ARCH", "None", None),
        ("MODEL.NMS_TYPE", "None", None),
        ("TRAIN.FUSED_OPTIMIZER", "auto", "auto"),
        ("TRAIN.FUSED_OPTIMIZER", "False", False),
        ("TRAIN.FUSED_OPTIMIZER", "on", True),
    ],
)
def test_text_is_what_it_spells_in_a_file_and_on_the_command_line(
    key: str, text: str, expected: Any, empty: Path, write: Any
) -> None:
    value = flatten(load_config(empty, [key, text]))[key]
    assert (value, type(value)) == (expected, type(expected))
    *sections, last = key.split(".")
    line = "".join(f"{section}: {{" for section in sections) + f"{last}: {text!r}" + "}" * len(sections)
    if key != "OUTPUT_DIR":  # YAML tells text from a number by its quotes
        assert flatten(load_config(write(line)))[key] == expected


@pytest.mark.parametrize(
    ("line", "key", "expected"),
    [
        ("SOLVER: {BASE_LR: 1}", "SOLVER.BASE_LR", 1.0),
        ("SOLVER: {MAX_ITER: 1000.0}", "SOLVER.MAX_ITER", 1000),
        ("SOLVER: {STEPS: [1, 2]}", "SOLVER.STEPS", (1, 2)),
        ("SOLVER: {STEPS: 7}", "SOLVER.STEPS", (7,)),
        ('SOLVER: {CLIP_GRADIENTS: {"ENABLED": True}}', "SOLVER.CLIP_GRADIENTS.ENABLED", True),
        (
            "MODEL: {DISTILLATOR: {TEACHER: {ADD_CONTEXT_BOX: NO}}}",
            "MODEL.DISTILLATOR.TEACHER.ADD_CONTEXT_BOX",
            False,
        ),
        ("MODEL: {DISTILLATOR: {LAMBDA: 2}}", "MODEL.DISTILLATOR.LAMBDA", 2.0),
        ("TRAIN: {FUSED_OPTIMIZER: off}", "TRAIN.FUSED_OPTIMIZER", False),
        ("DATASETS: {TEST: []}", "DATASETS.TEST", ()),
        (
            "MODEL: {DISTILLATOR: {STUDENT: {SOLVER: {GAMMA: }}}}",
            "MODEL.DISTILLATOR.STUDENT.SOLVER.GAMMA",
            None,
        ),
    ],
)
def test_yaml_values(line: str, key: str, expected: Any, write: Any) -> None:
    assert flatten(load_config(write(line)))[key] == expected


def test_a_section_may_be_set_as_one_override(empty: Path) -> None:
    cfg = load_config(empty, ["SOLVER.CLIP_GRADIENTS", "{'ENABLED': True, 'CLIP_VALUE': 0.5}"])
    assert cfg.solver.clip_gradients.enabled
    assert cfg.solver.clip_gradients.clip_value == 0.5


def test_the_last_of_equal_overrides_wins(empty: Path) -> None:
    assert load_config(empty, ["SEED", "1", "SEED", "2"]).seed == 2


@pytest.mark.parametrize("alias", ["RETINANET", "FCOS", "ROI_HEADS"])
def test_the_class_count_has_one_place_and_four_names(alias: str, write: Any) -> None:
    path = write(f"MODEL: {{{alias}: {{NUM_CLASSES: 3}}}}")
    assert load_config(path).num_classes == 3
    assert load_config(path, ["NUM_CLASSES", "5"]).num_classes == 5
    assert load_config(path, ["NUM_CLASSES", "0"]).num_classes == 0
    assert load_config(write("NUM_CLASSES: 5"), [f"MODEL.{alias}.NUM_CLASSES", "4"]).num_classes == 4


def test_names_of_the_class_count_may_agree(write: Any) -> None:
    assert load_config(write("NUM_CLASSES: 3\nMODEL: {RETINANET: {NUM_CLASSES: 3}}")).num_classes == 3


def test_attributes_are_the_lower_case_keys() -> None:
    assert attribute_to_key("max_iter") == "MAX_ITER"
    assert attribute_to_key("lambda_") == "LAMBDA"
    assert Config().model.distillator.lambda_ == known_keys()["MODEL.DISTILLATOR.LAMBDA"].default == 1.0
    assert "MODEL.DISTILLATOR.TEACHER.SOLVER" in known_sections()


def test_every_setting_has_a_line_of_documentation_and_a_default_of_its_own_type() -> None:
    for name, key in known_keys().items():
        assert key.doc.endswith("."), name
        value = key.coerce(key.default, name)
        assert (value, type(value)) == (key.default, type(key.default)), name


def test_defaults_are_checked_and_a_tree_made_by_hand_can_be() -> None:
    check_config(Config())
    broken = replace(Config(), solver=replace(Config().solver, max_iter=0))
    with pytest.raises(ConfigError, match=r"^SOLVER\.MAX_ITER expects an integer of 1 or more, got 0$"):
        check_config(broken)


def test_dump_has_every_key_and_a_changed_value_changes_the_hash(write: Any) -> None:
    changed = with_values(Config(), {"SOLVER.BASE_LR": 1e-05, "MODEL.WEIGHTS": "it's: a #1", "SEED": 7})
    text = dump_config(changed)
    assert text.count("\n") == len(known_keys()) + len(known_sections())
    assert load_config(write(text)) == changed
    assert config_hash(changed) != config_hash(Config())
    assert config_hash(with_values(changed, {"SEED": 7})) == config_hash(changed)
    assert len(config_hash(changed)) == 64


STUDENT_LR, TEACHER_LR = (f"MODEL.DISTILLATOR.{side}.SOLVER.BASE_LR" for side in ("STUDENT", "TEACHER"))
SIDES = "MODEL: {DISTILLATOR: {STUDENT: {SOLVER: {BASE_LR: 0.01}}, TEACHER: {SOLVER: {BASE_LR: 0.02}}}}"
SIDES_AMP = SIDES.replace("BASE_LR: 0.01", "AMP: {ENABLED: no}").replace(
    "BASE_LR: 0.02", "AMP: {ENABLED: no}"
)


def test_an_override_hidden_by_both_sides_is_told(write: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = write(SIDES)
    load_config(path, ["SOLVER.BASE_LR", "0.5"])
    assert [record.message for record in caplog.records if "BASE_LR" in record.message] == [
        "command line: SOLVER.BASE_LR 0.5 has no effect because of "
        f"MODEL.DISTILLATOR.STUDENT.SOLVER.BASE_LR 0.01 ({path}:1) and "
        f"MODEL.DISTILLATOR.TEACHER.SOLVER.BASE_LR 0.02 ({path}:1); set these, or set them to None"
    ]
    assert caplog.records[0].levelno == logging.WARNING


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        (SIDES, ["SOLVER.GAMMA", "0.5"]),
        (SIDES, ["SOLVER.BASE_LR", "0.5", STUDENT_LR, "None"]),
        (SIDES, ["SOLVER.BASE_LR", "0.5", STUDENT_LR, "0.1", TEACHER_LR, "0.1"]),
        (f"SOLVER: {{BASE_LR: 0.5}}\n{SIDES}", []),
        ("MODEL: {DISTILLATOR: {STUDENT: {SOLVER: {BASE_LR: 0.01}}}}", ["SOLVER.BASE_LR", "0.5"]),
        (SIDES_AMP, ["SOLVER.AMP.ENABLED", "True"]),
    ],
)
def test_an_override_that_counts_is_not_warned_about(
    text: str, overrides: list[str], write: Any, caplog: pytest.LogCaptureFixture
) -> None:
    load_config(write(text), overrides)
    assert not [record for record in caplog.records if "has no effect" in record.message]


def test_an_override_hidden_from_the_plain_student_is_told(
    write: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = write("MODEL: {DISTILLATOR: {ENABLED: False, STUDENT: {SOLVER: {BASE_LR: 0.01}}}}")
    load_config(path, ["SOLVER.BASE_LR", "0.5"])
    assert [record.message for record in caplog.records] == [
        "command line: SOLVER.BASE_LR 0.5 has no effect because of "
        f"MODEL.DISTILLATOR.STUDENT.SOLVER.BASE_LR 0.01 ({path}:1); set these, or set them to None"
    ]


def test_a_key_without_effect_is_told_when_it_is_changed(
    write: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = write("MODEL:\n  DISTILLATOR:\n    PRE_NONDISTILL_ITERS: 0\n    SMOOTH: 0\n    USE_MTH_HEAD: 2\n")
    load_config(path)
    assert [record.message for record in caplog.records] == [
        f"{path}:5: MODEL.DISTILLATOR.USE_MTH_HEAD 2 has no effect (nor has it in the reference)"
    ]


def test_phases_beyond_the_end_are_told(empty: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_config(empty, ["SOLVER.MAX_ITER", "100"])
    assert [record.message for record in caplog.records] == [
        "no iteration distills: MODEL.DISTILLATOR.PRE_NONDISTILL_ITERS 40000 and POST_NONDISTILL_ITERS 0 "
        "leave none of SOLVER.MAX_ITER 100",
        "the backbone never trains: MODEL.DISTILLATOR.PRE_FREEZE_STUDENT_BACKBONE_ITERS 10000 is not below "
        "SOLVER.MAX_ITER 100",
    ]
    caplog.clear()
    load_config(empty, ["SOLVER.MAX_ITER", "100", "MODEL.DISTILLATOR.ENABLED", "False"])
    assert not caplog.records


def test_a_head_that_is_never_shared_has_no_phases(empty: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = ["MODEL.DISTILLATOR.HEAD.FIXED_ITERS", "9", "SOLVER.MAX_ITER", "90000"]
    load_config(empty, settings)
    assert not caplog.records
    load_config(empty, [*settings, "MODEL.DISTILLATOR.HEAD.MODE", "fixed"])
    assert [record.message for record in caplog.records] == [
        "MODEL.DISTILLATOR.HEAD.FIXED_ITERS and RAMP_ITERS have no effect while MODEL.DISTILLATOR.HEAD.MODE "
        "is fixed"
    ]


def test_a_share_of_the_images_is_of_lgds_teacher(empty: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = ["MODEL.DISTILLATOR.IMAGE_SHARE", "0.5", "SOLVER.MAX_ITER", "90000"]
    load_config(empty, [*settings, "MODEL.DISTILLATOR.METHOD", "LGD+PKD"])
    assert not caplog.records
    load_config(empty, [*settings, "MODEL.DISTILLATOR.METHOD", "PKD"])
    assert [record.message for record in caplog.records] == [
        "MODEL.DISTILLATOR.IMAGE_SHARE has no effect while MODEL.DISTILLATOR.METHOD is PKD"
    ]
    for share in ("0", "1.5"):
        with pytest.raises(ConfigError, match=r"IMAGE_SHARE"):
            load_config(empty, ["MODEL.DISTILLATOR.IMAGE_SHARE", share])


@pytest.mark.parametrize(
    ("key", "value", "methods"),
    [
        ("PKD.LAMBDA", "2", ["PKD", "LGD+PKD"]),
        ("CROSSKD.LAMBDA_BOX", "2", ["CrossKD"]),
        ("FGFI.LAMBDA", "2", ["FGFI"]),
    ],
)
def test_a_setting_of_another_method_is_told(
    key: str, value: str, methods: list[str], empty: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for method in ("LGD", "FGFI", "PKD", "CrossKD", "LGD+PKD"):
        caplog.clear()
        settings = [f"MODEL.DISTILLATOR.{key}", value, "MODEL.DISTILLATOR.METHOD", method]
        load_config(empty, [*settings, "SOLVER.MAX_ITER", "90000"])
        told = [record.message for record in caplog.records if key in record.message]
        doubt = f"{settings[0]} {value}.0 has no effect while MODEL.DISTILLATOR.METHOD is {method}"
        assert told == ([] if method in methods else [f"command line: {doubt}"])


@pytest.mark.parametrize("key", ["OUTPUT_DIR", "DATASETS.ROOT", "DATALOADER.CACHE_DIR"])
def test_folders_may_lie_in_the_home(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = tmp_path / "recipe.yaml"
    section, _, name = key.rpartition(".")
    recipe.write_text(f"{section}: {{{name}: ~/a b}}" if section else f"{name}: ~/a b")
    for cfg in (load_config(recipe), load_config("demo", [key, "~/a b"])):
        assert flatten(cfg)[key] == str(tmp_path / "a b")
    assert flatten(load_config("demo", [key, "x/~"]))[key] == "x/~"
    with pytest.raises(ConfigError, match=f"command line: {key} begins with ~nobody-here, whose home is not"):
        load_config("demo", [key, "~nobody-here/x"])


@pytest.mark.parametrize(("post", "told"), [("60000", False), ("60001", True)])
def test_distillation_reaches_to_the_iteration_at_the_end_less_the_last_ones(
    post: str, told: bool, empty: Path, caplog: pytest.LogCaptureFixture
) -> None:
    phases = ["SOLVER.MAX_ITER", "100000", "MODEL.DISTILLATOR.POST_NONDISTILL_ITERS", post]
    load_config(empty, phases)
    assert bool(caplog.records) is told


@pytest.mark.parametrize("text", ["\"''\"", "' x '", "\"'a'\"", "it's", "'", "x"])
def test_quoted_text_is_the_same_when_it_is_read_again(text, tmp_path):
    cfg = load_config("demo", ["MODEL.WEIGHTS", text])
    (tmp_path / "recipe.yaml").write_text(dump_config(cfg))
    assert load_config(tmp_path / "recipe.yaml") == cfg
