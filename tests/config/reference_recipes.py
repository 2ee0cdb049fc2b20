"""Recipes as the reference writes them: its keys, and its spellings of numbers, tuples and booleans."""

from __future__ import annotations

_SOLVER = """
        OPTIMIZER: "{optimizer}"
        BASE_LR: {base_lr}
        MOMENTUM: 0.9
        WEIGHT_DECAY: {weight_decay}
        LR_SCHEDULER_NAME: "WarmupMultiStepLR"
        STEPS: {steps}
        GAMMA: 0.1
        WARMUP_FACTOR: 1e-3
        WARMUP_ITERS: 1e03
        WARMUP_METHOD: "linear"
"""

_RECIPE = """_BASE_: "../../{base}"
MODEL:
  WEIGHTS: "{weights}"
{model}
  DISTILLATOR:
    TEACHER:
      META_ARCH: 'DynamicTeacher'
      SOLVER:{teacher_solver}
      INTERACT_PATTERN: 'stuGuided'
      DETACH_APPEARANCE_EMBED: {detach}
      ADD_CONTEXT_BOX: {context}
    STUDENT:
      META_ARCH: '{student}'
      SOLVER:{student_solver}
    ADAPTER:
      META_ARCH: 'SequentialConvs'
    PRE_NONDISTILL_ITERS: 30000
    POST_NONDISTILL_ITERS: {post}
    PRE_FREEZE_STUDENT_BACKBONE_ITERS: {freeze}
    LAMBDA: 1.0
    EVAL_TEACHER: True
{labels}
SOLVER:
  STEPS: {steps}
  MAX_ITER: {max_iter}
{input}
OUTPUT_DIR: "outputs/{name}/"
"""

_SGD = {"optimizer": "SGD", "weight_decay": "1e-4"}
_ADAMW = {"optimizer": "ADAMW", "base_lr": "1e-4", "weight_decay": "5e-2"}
_TWO = {"steps": "(120000, 160000)"}
_THREE = {"steps": "(210000, 250000)"}
_BASE = {"model": "  MASK_ON: False", "labels": "", "input": "", "post": "0", "freeze": "20000"}

_RETINANET = _BASE | {
    "base": "Base-RetinaNet.yaml",
    "weights": "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
    "model": "  MASK_ON: False\n  RESNETS:\n    DEPTH: 50",
    "student": "RetinaNetCT",
    "student_solver": _SOLVER.format(**_SGD, **_TWO, base_lr="0.01"),
    "teacher_solver": _SOLVER.format(**_SGD, **_TWO, base_lr="0.01"),
    "detach": "NO",
    "context": "YES",
    "steps": "(120000, 160000)",
    "max_iter": "180000",
}

_FIELDS = {
    "RetinaNet/retinanet_R_50_2xMS_stuGuided_addCtxBox=YES_detachAppearanceEmbed=NO": _RETINANET,
    "RetinaNet/retinanet_R_50_2xSS_stuGuided_addCtxBox=YES_detachAppearanceEmbed=NO": _RETINANET
    | {"freeze": "70000", "input": "INPUT:\n  MIN_SIZE_TRAIN: (800,)"},
    "FCOS/fcos_X_101_dcnv2_2xMS_stuGuided_addCtxBox=YES_postNondistillIters=50k": _RETINANET
    | {
        "weights": "detectron2://ImageNetPretrained/FAIR/X-101-32x8d.pkl",
        "model": """  PIXEL_STD: [57.375, 57.120, 58.395]
  MASK_ON: False
  META_ARCHITECTURE: "FCOS"
  RESNETS:
    STRIDE_IN_1X1: False # this is a C2 model
    NUM_GROUPS: 32
    WIDTH_PER_GROUP: 8
    DEPTH: 101
    DEFORM_ON_PER_STAGE: [False, True, True, True]
    DEFORM_MODULATED: True""",
        "student": "FCOSCT",
        "post": "50000",
    },
    "MaskRCNN/mask_rcnn_Swin_Tiny_3xMS_stuGuided_addCtxBox=NO_detachAppearanceEmbed=YES": _BASE
    | {
        "base": "Base-RCNN-FPN.yaml",
        "weights": "pretrained_backbones/swin_tiny_patch4_window7_224_converted.pth",
        "model": """  MASK_ON: True
  RESNETS:
    DEPTH: 50
  BACKBONE:
    NAME: "build_swint_fpn_backbone"
    FREEZE_AT: -1
  SWINT:
    OUT_FEATURES: ["stage2", "stage3", "stage4", "stage5"]
  FPN:
    IN_FEATURES: ["stage2", "stage3", "stage4", "stage5"]
    TOP_LEVELS: 2""",
        "student": "RCNNCT",
        "student_solver": _SOLVER.format(**_ADAMW, **_THREE),
        "teacher_solver": _SOLVER.format(**_SGD, **_THREE, base_lr="0.02"),
        "detach": "YES",
        "context": "NO",
        "labels": "    LABEL_ENCODER:\n      LOAD_LABELMAP: True",
        "steps": "(210000, 250000)",
        "max_iter": "270000",
    },
}

REFERENCE_RECIPES = {name: _RECIPE.format(name=name, **values) for name, values in _FIELDS.items()}
"""YAML text by its path below configs/Distillation, without the suffix."""
