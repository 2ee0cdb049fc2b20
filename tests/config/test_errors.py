"""What a user can get wrong: each is one line that says where, what, and the way out."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from lgd.config import read
from lgd.config.load import ConfigError, load_config

_KINDS = "color_jitter, vertical_flip, quarter_turn, large_scale_jitter, copy_paste, mosaic, cut_out"
IN_FILE = {
    # augmentations
    "INPUT:\n  AUGMENTATIONS: [{NAME: mosaics}]": (
        f":2: INPUT.AUGMENTATIONS has an entry with NAME 'mosaics'; did you mean mosaic?; known are {_KINDS}"
    ),
    "INPUT: {AUGMENTATIONS: [{PROBABILITY: 1}]}": (
        f":1: INPUT.AUGMENTATIONS has an entry with no NAME; known are {_KINDS}"
    ),
    "INPUT: {AUGMENTATIONS: [mosaic]}": (
        ":1: INPUT.AUGMENTATIONS has the entry 'mosaic'; write {NAME: mosaic, PROBABILITY: 0.5}"
    ),
    "INPUT: {AUGMENTATIONS: {NAME: mosaic}}": (
        ":1: INPUT.AUGMENTATIONS expects a list (each a map (NAME: ..., KEY: value)), got {'NAME': 'mosaic'}"
    ),
    "INPUT: {AUGMENTATIONS: [{NAME: mosaic, probability: 1}]}": (
        ":1: INPUT.AUGMENTATIONS mosaic has no 'probability'; did you mean PROBABILITY?; its keys are "
        "PROBABILITY, SCALE, CENTER, MIN_VISIBLE"
    ),
    "INPUT: {AUGMENTATIONS: [{NAME: mosaic, PROBABILITY: 1.5}]}": (
        ":1: INPUT.AUGMENTATIONS mosaic PROBABILITY expects a number in [0, 1], got '1.5'"
    ),
    "INPUT: {AUGMENTATIONS: [{NAME: mosaic, SCALE: [2, 1]}]}": (
        ":1: INPUT.AUGMENTATIONS mosaic SCALE (2.0, 1.0) must be (least, most)"
    ),
    "INPUT: {AUGMENTATIONS: [{NAME: color_jitter, HUE: [0, 2]}]}": (
        ":1: INPUT.AUGMENTATIONS color_jitter HUE expects a list (2 of them, each a number in [-0.5, 0.5]), "
        "got ['0', '2']"
    ),
    "INPUT: {AUGMENTATIONS: [{NAME: mosaic, PROBABILITY: 1, PROBABILITY: 0}]}": (
        ":1: INPUT.AUGMENTATIONS has a key twice, or one that is no name"
    ),
    # keys
    "SOLVER:\n  MAX_ITTER: 5": ":2: SOLVER.MAX_ITTER is not a setting; did you mean SOLVER.MAX_ITER?",
    "MODLE:\n  WEIGHTS: x": ":1: MODLE is not a setting; did you mean MODEL?",
    "MODEL: {WEIGTHS: x}": ":1: MODEL.WEIGTHS is not a setting; did you mean MODEL.WEIGHTS?",
    "MODEL_WEIGHTS: x": ":1: MODEL_WEIGHTS is not a setting; did you mean MODEL.WEIGHTS?",
    "SOLVER: {EVAL_PERIOD: 5}": ":1: SOLVER.EVAL_PERIOD is not a setting; did you mean TEST.EVAL_PERIOD?",
    "solver: {max_iter: 5}": ":1: solver is not a setting; did you mean SOLVER?",
    "MODEL: {RETINANET: {NUM_CLASES: 3}}": (
        ":1: MODEL.RETINANET.NUM_CLASES is not a setting; did you mean NUM_CLASSES?"
    ),
    "QQQQ: 1": ":1: QQQQ is not a setting",
    "MODEL: {_BASE_: x.yaml}": ":1: MODEL._BASE_ is not a setting",
    "SEED: 1\nSOLVER:\n  GAMMA: 0.1\nSEED: 2": ":4: SEED is given twice",
    "SOLVER: {GAMMA: 0.1}\nSOLVER: {GAMMA: 0.2}": ":2: SOLVER is given twice",
    # values
    "SOLVER:\n  MAX_ITER: many": ":2: SOLVER.MAX_ITER expects an integer of 1 or more, got 'many'",
    "SEED: 99999999999999999999": (
        ":1: SEED expects an integer in [-1, 9223372036854775807], got 99999999999999999999"
    ),
    "SOLVER: {MAX_ITER: 0}": ":1: SOLVER.MAX_ITER expects an integer of 1 or more, got 0",
    "SOLVER: {MAX_ITER: 1.5}": ":1: SOLVER.MAX_ITER expects an integer of 1 or more, got 1.5",
    "SOLVER: {MAX_ITER: True}": ":1: SOLVER.MAX_ITER expects an integer of 1 or more, got True",
    "SOLVER: {MAX_ITER: [5, 6]}": ":1: SOLVER.MAX_ITER expects an integer of 1 or more, got [5, 6]",
    "SOLVER: {MAX_ITER: }": ":1: SOLVER.MAX_ITER expects an integer of 1 or more, got None",
    "SOLVER: {MAX_ITER: .inf}": ":1: SOLVER.MAX_ITER expects an integer of 1 or more, got inf",
    "SOLVER: {IMS_PER_BATCH: -2}": ":1: SOLVER.IMS_PER_BATCH expects an integer of 1 or more, got -2",
    "SOLVER: {BASE_LR: 0}": ":1: SOLVER.BASE_LR expects a number above 0, got 0",
    "SOLVER: {BASE_LR: .nan}": ":1: SOLVER.BASE_LR expects a number above 0, got nan",
    "SOLVER: {BASE_LR: .inf}": ":1: SOLVER.BASE_LR expects a number above 0, got inf",
    "SOLVER: {MOMENTUM: 1.5}": ":1: SOLVER.MOMENTUM expects a number in [0, 1], got 1.5",
    "SOLVER: {STEPS: [5, many]}": (
        ":1: SOLVER.STEPS expects a list (each an integer of 1 or more), got [5, 'many']"
    ),
    "SOLVER: {OPTIMIZER: ADAM}": ":1: SOLVER.OPTIMIZER expects one of 'SGD', 'ADAMW', got 'ADAM'",
    "SOLVER: {LR_SCHEDULER_NAME: Step}": (
        ":1: SOLVER.LR_SCHEDULER_NAME expects one of 'WarmupMultiStepLR', 'WarmupCosineLR', got 'Step'"
    ),
    "SOLVER: {CLIP_GRADIENTS: {CLIP_TYPE: full}}": (
        ":1: SOLVER.CLIP_GRADIENTS.CLIP_TYPE expects one of 'value', 'norm', got 'full'"
    ),
    "SOLVER: {CLIP_GRADIENTS: {ENABLED: 1}}": (
        ":1: SOLVER.CLIP_GRADIENTS.ENABLED expects true or false, got 1"
    ),
    "DATALOADER: {ON_BAD_IMAGE: ignore}": (
        ":1: DATALOADER.ON_BAD_IMAGE expects one of 'fail', 'skip', got 'ignore'"
    ),
    "MODEL: {DISTILLATOR: {TEACHER: {INTERACT_PATTERN: both}}}": (
        ":1: MODEL.DISTILLATOR.TEACHER.INTERACT_PATTERN expects one of 'stuGuided', 'labelGuided', "
        "'student_fill', 'teacher_fill', got 'both'"
    ),
    "MODEL: {DISTILLATOR: {TEACHER: {SOLVER: {OPTIMIZER: LION}}}}": (
        ":1: MODEL.DISTILLATOR.TEACHER.SOLVER.OPTIMIZER expects one of 'SGD', 'ADAMW' or None, got 'LION'"
    ),
    "MODEL: {DISTILLATOR: {DISTILL_ON: 0}}": ":1: MODEL.DISTILLATOR.DISTILL_ON expects 1, got 0",
    "MODEL: {META_ARCHITECTURE: Retina}": (
        ":1: MODEL.META_ARCHITECTURE expects one of 'RetinaNet', 'FCOS', 'ATSS', 'POTO', 'GFL', "
        "'GeneralizedRCNN', got 'Retina'"
    ),
    "MODEL: {WEIGHTS: 5}": ":1: MODEL.WEIGHTS expects text, got 5",
    "MODEL: {PIXEL_MEAN: [1, 2]}": (
        ":1: MODEL.PIXEL_MEAN expects a list (3 of them, each a number), got [1, 2]"
    ),
    "MODEL: {ANCHOR_GENERATOR: {SIZES: [32, 64]}}": (
        ":1: MODEL.ANCHOR_GENERATOR.SIZES expects a list (each a list (each a number above 0)), got [32, 64]"
    ),
    "TRAIN: {FUSED_OPTIMIZER: maybe}": (
        ":1: TRAIN.FUSED_OPTIMIZER expects 'auto' or true or false, got 'maybe'"
    ),
    "NUM_CLASSES: -1": ":1: NUM_CLASSES expects an integer of 0 or more, got -1",
    "MODEL: {RETINANET: {NUM_CLASSES: x}}": (
        ":1: MODEL.RETINANET.NUM_CLASSES expects an integer of 0 or more, got 'x'"
    ),
    "NUM_CLASSES: 3\nMODEL: {RETINANET: {NUM_CLASSES: 4}}": (
        ":2: MODEL.RETINANET.NUM_CLASSES 4 contradicts NUM_CLASSES 3 ({path}:1); both set NUM_CLASSES, "
        "so give one of them"
    ),
    # shape of the file
    "SOLVER: 5": ":1: SOLVER expects a section (KEY: value lines), got '5'",
    "SOLVER: [5]": ":1: SOLVER expects a section (KEY: value lines), got a list",
    "SOLVER: {MAX_ITER: {A: 1}}": ":1: SOLVER.MAX_ITER expects an integer of 1 or more, got {'A': 1}",
    "- 1\n- 2": ": the file expects a section (KEY: value lines), got a list",
    "SOLVER:\n  GAMMA: [0.1\nSEED: 1\n": ":3: not valid YAML: expected ',' or ']', but got ':'",
    "SOLVER:\n\tGAMMA: 0.1": ":2: not valid YAML: found character '\\t' that cannot start any token",
    "SEED: 1\n---\nSEED: 2": ":2: not valid YAML: but found another document",
    "SEED: \x01": ": not valid YAML: unacceptable character #x0001: special characters are not allowed",
    "MODEL:\n  WEIGHTS: 2024-99-99": ":2: MODEL.WEIGHTS cannot be read: month must be in 1..12",
    "[SEED]: 1": ":1: a list or a section where the name of a setting belongs",
    'SEED: "\\Uffffffff"': ": not valid YAML: ",
    # beyond reason
    "SOLVER:\n  STEPS: " + "[" * 100 + "]" * 100: ":2: nested more than 30 deep",
    "[" * 5000: ": nested more than 30 deep",
    "SOLVER: {STEPS: &a [*a]}": ":1: an alias puts this into itself",
    "SEED: [&a0 [1], "
    + ", ".join(f"&a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 9))
    + "]": ":1: aliases make more than 100000 values of this",
    "# " + "x" * 2**17: ": cannot be read: larger than the 131072 bytes that one like it may have",
    "SEED: 0x" + "f" * 5000: (
        ":1: SEED expects an integer in [-1, 9223372036854775807], got an integer of 20000 bits"
    ),
    "MODEL: {WEIGHTS: [" + "x" * 5000 + "]}": ":1: MODEL.WEIGHTS expects text, got ['xxxx",
    "K" * 1000 + ": 1": ":1: 'KKK",
    "SEED: !!int ''": ":1: SEED cannot be read: not what its tag says",
    "MODEL: {MASK_ON: !!bool perhaps}": ":1: MODEL.MASK_ON cannot be read: not what its tag says",
    'MODEL: {WEIGHTS: "a\\0b"}': ":1: MODEL.WEIGHTS expects text, got 'a\\x00b'",
    'OUTPUT_DIR: "\\ud800"': ":1: OUTPUT_DIR expects a folder, got '\\ud800'",
    "_BASE_: [" + "demo, " * 51 + "]": ":1: _BASE_ names 51 files; at most 50 are read",
    # tags
    "SOLVER: !!python/dict {GAMMA: 0.5}": ":1: SOLVER has the tag !!python/dict, refused",
    "!!python/name:os.system SEED: 1": ":1 has the tag !!python/name:os.system, refused",
    'MODEL:\n  ANCHOR_GENERATOR:\n    SIZES: !!python/object/apply:eval ["[[x] for x in [32, 64]]"]': (
        ":3: MODEL.ANCHOR_GENERATOR.SIZES has the tag !!python/object/apply:eval, refused because it can run "
        "code; write the value itself (numbers, text, a list; configs/Base-RetinaNet.yaml has the anchor "
        "sizes as numbers)"
    ),
    "SOLVER:\n  STEPS:\n    - !!python/int 5": ":2: SOLVER.STEPS has the tag !!python/int, refused",
    "SEED: !include x": ":1: SEED has the tag !include, refused",
    # bases
    "_BASE_: nowhere.yaml": ":1: _BASE_ names nowhere.yaml: {folder}/nowhere.yaml: no such file or recipe",
    "_BASE_: [nowhere.yaml]": ":1: _BASE_ names nowhere.yaml: {folder}/nowhere.yaml: no such file or recipe",
    "_BASE_: [5]": ":1: _BASE_ expects the path of a YAML file or a list of them, got [5]",
    "_BASE_: recipe.yaml": ":1: _BASE_ leads in a ring: recipe.yaml -> recipe.yaml",
}

ON_COMMAND_LINE = {
    "SOLVER.MAX_ITER": "SOLVER.MAX_ITER has no value; settings are KEY VALUE pairs",
    "SEED 1 SOLVER.MAX_ITER": "SOLVER.MAX_ITER has no value; settings are KEY VALUE pairs",
    "SOLVER.MAX_ITER=5": "write SOLVER.MAX_ITER 5 instead of SOLVER.MAX_ITER=5",
    "--resume": "--resume stands among KEY VALUE pairs; options come before them",
    "SEED 1 --eval-only": "--eval-only stands among KEY VALUE pairs; options come before them",
    "model.weights x": "model.weights is not a setting; did you mean MODEL.WEIGHTS?",
    "SOLVER.LR 1": "SOLVER.LR is not a setting; did you mean SOLVER.BASE_LR?",
    "SOLVER.EPOCHS 12": "SOLVER.EPOCHS is not a setting",
    "MODEL.KEYPOINT_ON True": "MODEL.KEYPOINT_ON is not a setting",
    "MODEL.BACKBONE.DEPTH 50": "MODEL.BACKBONE.DEPTH is not a setting; did you mean MODEL.RESNETS.DEPTH?",
    "SOLVER.MAX_ITER ten": "SOLVER.MAX_ITER expects an integer of 1 or more, got 'ten'",
    "SOLVER.STEPS [5,": "SOLVER.STEPS expects a list (each an integer of 1 or more), got '[5,'",
    "MODEL.MASK_ON 2": "MODEL.MASK_ON expects true or false, got '2'",
    "SOLVER 5": "SOLVER expects a section (KEY: value lines), got '5'",
    "SOLVER {GAMMA:[}": "not valid YAML: expected the node content, but found '}'",
    "SOLVER.AMP {'ENABLE':True}": "SOLVER.AMP.ENABLE is not a setting; did you mean SOLVER.AMP.ENABLED?",
    "NUM_CLASSES 3 MODEL.FCOS.NUM_CLASSES 4": (
        "MODEL.FCOS.NUM_CLASSES 4 contradicts NUM_CLASSES 3 (command line); both set NUM_CLASSES, so give "
        "one of them"
    ),
}

TOGETHER = {
    "OUTPUT_DIR ''": "OUTPUT_DIR is empty; name the folder to write to (. for the one that you are in)",
    "SOLVER.GAMMA 1e200 SOLVER.STEPS (1,2)": (
        "SOLVER.GAMMA 1e+200 at each of 2 STEPS is more than a number can be"
    ),
    "MODEL.RETINANET.IOU_LABELS (0,1)": (
        "MODEL.RETINANET.IOU_THRESHOLDS (0.4, 0.5) must rise, and MODEL.RETINANET.IOU_LABELS (0, 1) must "
        "have one entry more"
    ),
    "MODEL.RPN.IOU_THRESHOLDS (0.7,0.3)": (
        "MODEL.RPN.IOU_THRESHOLDS (0.7, 0.3) must rise, and MODEL.RPN.IOU_LABELS (0, -1, 1) must have one "
        "entry more"
    ),
    "MODEL.SWINT.DEPTHS (2,2)": (
        "MODEL.SWINT.DEPTHS (2, 2) and MODEL.SWINT.NUM_HEADS (3, 6, 12, 24) must have one entry for each "
        "stage"
    ),
    "MODEL.FPN.OUT_CHANNELS 60": (
        "MODEL.FPN.OUT_CHANNELS 60 must be a multiple of MODEL.DISTILLATOR.TEACHER.NR_TRANSFORMER_HEADS 8"
    ),
    "MODEL.DISTILLATOR.LAMBDA_GAMMA 2 SOLVER.LR_SCHEDULER_NAME WarmupCosineLR": (
        "MODEL.DISTILLATOR.LAMBDA_GAMMA 2.0 acts nowhere: WarmupCosineLR has no STEPS; "
        "set MODEL.DISTILLATOR.LAMBDA_STEPS"
    ),
    "MODEL.DISTILLATOR.LAMBDA_GAMMA 1e200 MODEL.DISTILLATOR.LAMBDA_STEPS (1,2)": (
        "MODEL.DISTILLATOR.LAMBDA_GAMMA 1e+200 becomes more than a number can be"
    ),
    "SOLVER.STEPS (5,4)": "SOLVER.STEPS (5, 4) must rise",
    "MODEL.DISTILLATOR.TEACHER.SOLVER.STEPS (5,4)": (
        "MODEL.DISTILLATOR.TEACHER.SOLVER.STEPS (5, 4) must rise"
    ),
    "TRAIN.ACCUMULATE_STEPS 3": "SOLVER.IMS_PER_BATCH 16 must be a multiple of TRAIN.ACCUMULATE_STEPS 3",
    "TRAIN.EMA.ENABLED True TRAIN.EMA.DECAY 1": (
        "TRAIN.EMA.DECAY 1 would leave the average as it begins for ever; set one below, such as 0.9998"
    ),
    "TEST.PATIENCE 3": (
        "TEST.PATIENCE 3 counts evaluations during the training, of which TEST.EVAL_PERIOD 0 makes none; "
        "set it"
    ),
    "INPUT.MIN_SIZE_TRAIN ()": "INPUT.MIN_SIZE_TRAIN is empty; give at least one length in pixels",
    "INPUT.AUGMENTATIONS [{'NAME':'mosaic'}] DATALOADER.DECODE_ON_GPU True": (
        "INPUT.AUGMENTATIONS needs the pixels in the loader, and DATALOADER.DECODE_ON_GPU leaves them to the "
        "device; set one of them back"
    ),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING range": (
        "INPUT.MIN_SIZE_TRAIN (800,) must be the shortest and the longest length, since "
        "INPUT.MIN_SIZE_TRAIN_SAMPLING is range"
    ),
    "INPUT.CROP.SIZE (384,600)": (
        "INPUT.CROP.SIZE (384.0, 600.0) must be at most 1, since INPUT.CROP.TYPE is relative_range"
    ),
    "INPUT.CROP.TYPE absolute": (
        "INPUT.CROP.SIZE (0.9, 0.9) must be whole pixels, since INPUT.CROP.TYPE is absolute"
    ),
    "INPUT.CROP.TYPE absolute_range INPUT.CROP.SIZE (600,384)": (
        "INPUT.CROP.SIZE (600.0, 384.0) must be (least, most), since INPUT.CROP.TYPE is absolute_range"
    ),
    "DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler": (
        "DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler repeats nothing while "
        "DATALOADER.REPEAT_THRESHOLD is 0; set it to the share of images below which a class is rare"
    ),
}


@pytest.mark.parametrize(("text", "message"), IN_FILE.items())
def test_errors_in_a_file(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    expected = str(path) + message.replace("{path}", str(path)).replace("{folder}", str(tmp_path))
    with pytest.raises(ConfigError, match="^" + re.escape(expected)) as error:
        load_config(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
    assert error.value.__cause__ is None


@pytest.mark.parametrize(("words", "message"), ON_COMMAND_LINE.items())
def test_errors_on_the_command_line(words: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("")
    with pytest.raises(ConfigError) as error:
        load_config(path, words.split())
    assert str(error.value) == f"command line: {message}"


@pytest.mark.parametrize(("words", "message"), TOGETHER.items())
def test_settings_that_do_not_go_together(words: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("")
    with pytest.raises(ConfigError) as error:
        load_config(path, words.split())
    assert str(error.value) == message


def test_channels_need_not_suit_a_teacher_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("MODEL: {FPN: {OUT_CHANNELS: 60}, DISTILLATOR: {ENABLED: False}}")
    assert load_config(path).model.fpn.out_channels == 60


def test_an_error_in_a_base_names_the_base(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("SEED: x")
    path = tmp_path / "recipe.yaml"
    path.write_text("_BASE_: base.yaml\nSEED: 5")
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path}/base.yaml:1: SEED expects")):
        load_config(path)


def test_a_longer_ring_of_bases_is_shown(tmp_path: Path) -> None:
    for name, base in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"_BASE_: {base}.yaml")
    with pytest.raises(
        ConfigError, match=re.escape("c.yaml:1: _BASE_ leads in a ring: a.yaml -> b.yaml -> c.yaml -> a.yaml")
    ):
        load_config(tmp_path / "a.yaml")


def test_the_same_base_twice_is_no_ring(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("SEED: 5")
    (tmp_path / "link.yaml").symlink_to(tmp_path / "base.yaml")
    (tmp_path / "a.yaml").write_text("_BASE_: link.yaml")
    assert load_config(tmp_path / "a.yaml").seed == 5


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path}/none.yaml: no such file")):
        load_config(tmp_path / "none.yaml")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path}: a folder, not a recipe")):
        load_config(tmp_path)


def test_a_binary_file(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"\x80\x02}q\xff")
    with pytest.raises(ConfigError, match=re.escape("model.pth: not a YAML file (not text in UTF-8)")):
        load_config(tmp_path / "model.pth")


def test_no_tag_runs_code(tmp_path: Path) -> None:
    path, witness = tmp_path / "recipe.yaml", tmp_path / "witness"
    path.write_text(f"SEED: !!python/object/apply:os.mkdir ['{witness}']")
    with pytest.raises(ConfigError, match="refused because it can run code"):
        load_config(path)
    assert not witness.exists()


def test_a_file_without_an_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^/dev/zero: cannot be read: larger than"):
        load_config("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(read, "_PATIENCE", 0.05)
    with pytest.raises(ConfigError, match=r"pipe: cannot be read: not written to its end in 0\.05 s"):
        load_config(tmp_path / "pipe")


def test_bases_that_grow(tmp_path: Path) -> None:
    for level in range(30):
        (tmp_path / f"{level}.yaml").write_text(f"_BASE_: [{level + 1}.yaml, {level + 1}.yaml]")
    (tmp_path / "30.yaml").write_text("SEED: 5")
    assert load_config(tmp_path / "0.yaml").seed == 5
    for level in range(30, 60):
        (tmp_path / f"{level}.yaml").write_text(f"_BASE_: {level + 1}.yaml")
    with pytest.raises(ConfigError, match=r"50\.yaml: the 50th _BASE_ above another"):
        load_config(tmp_path / "0.yaml")


@pytest.mark.parametrize("name", ["~no_such_user/x", "~\x1b/x", "~\ud800/x", "x" * 5000, "x/" * 5000, "a\0b"])
def test_names_of_recipes_that_cannot_be(name: str) -> None:
    with pytest.raises(ConfigError, match="no such file or recipe"):
        load_config(name)
