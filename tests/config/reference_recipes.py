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
{backbone}
{detector}
  DISTILLATOR:
{labels}
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
    PRE_NONDISTILL_ITERS: {pre}
    POST_NONDISTILL_ITERS: {post}
    PRE_FREEZE_STUDENT_BACKBONE_ITERS: {freeze}
    LAMBDA: 1.0
    EVAL_TEACHER: True
SOLVER:
  STEPS: {steps}
  MAX_ITER: {max_iter}
{input}
OUTPUT_DIR: "outputs/{name}/"
"""

_SCHEDULES = {
    "1x": {"steps": "(60000, 80000)", "max_iter": "90000"},
    "2x": {"steps": "(120000, 160000)", "max_iter": "180000"},
    "3x": {"steps": "(210000, 250000)", "max_iter": "270000"},
}

_MSRA = '  WEIGHTS: "detectron2://ImageNetPretrained/MSRA/{name}.pkl"\n  RESNETS:\n    DEPTH: {depth}'
_DEFORMABLE = "\n    DEFORM_ON_PER_STAGE: [False, True, True, True]\n    DEFORM_MODULATED: True"
_R101 = _MSRA.format(name="R-101", depth=101)
_SWIN = """  WEIGHTS: "pretrained_backbones/swin_tiny_patch4_window7_224_converted.pth"
  RESNETS:
    DEPTH: 50
  BACKBONE:
    NAME: "{name}"
    FREEZE_AT: -1
  SWINT:
    OUT_FEATURES: {stages}
  FPN:
    IN_FEATURES: {stages}
    TOP_LEVELS: 2"""

_BACKBONES = {
    "R_50": _MSRA.format(name="R-50", depth=50),
    "R_101": _R101,
    "R_101_dcnv2": _R101 + _DEFORMABLE,
    "X_101_dcnv2": """  WEIGHTS: "detectron2://ImageNetPretrained/FAIR/X-101-32x8d.pkl"
  PIXEL_STD: [57.375, 57.120, 58.395]
  RESNETS:
    STRIDE_IN_1X1: False # this is a C2 model
    NUM_GROUPS: 32
    WIDTH_PER_GROUP: 8
    DEPTH: 101"""
    + _DEFORMABLE,
    "retinanet_Swin_Tiny": _SWIN.format(
        name="build_retinanet_swint_fpn_backbone", stages='["stage3", "stage4", "stage5"]'
    ),
    "mask_rcnn_Swin_Tiny": _SWIN.format(
        name="build_swint_fpn_backbone", stages='["stage2", "stage3", "stage4", "stage5"]'
    ),
}

_ONE_STAGE = {"base": "Base-RetinaNet.yaml", "base_lr": "0.01", "detector": "  MASK_ON: False", "labels": ""}
_TWO_STAGE = _ONE_STAGE | {"base": "Base-RCNN-FPN.yaml", "base_lr": "0.02", "student": "RCNNCT"}
_DETECTORS = {
    "retinanet": _ONE_STAGE | {"student": "RetinaNetCT"},
    "fcos": _ONE_STAGE | {"detector": '  MASK_ON: False\n  META_ARCHITECTURE: "FCOS"', "student": "FCOSCT"},
    "faster_rcnn": _TWO_STAGE,
    "mask_rcnn": _TWO_STAGE
    | {"detector": "  MASK_ON: True", "labels": "    LABEL_ENCODER:\n      LOAD_LABELMAP: True"},
}
_FOLDERS = {
    "retinanet": "RetinaNet",
    "fcos": "FCOS",
    "faster_rcnn": "FasterRCNN",
    "mask_rcnn": "MaskRCNN",
}
_SGD = {"optimizer": "SGD", "weight_decay": "1e-4"}
_ADAMW = {"optimizer": "ADAMW", "base_lr": "1e-4", "weight_decay": "5e-2"}


def _recipe(
    detector: str,
    backbone: str,
    schedule: str,
    ending: str,
    *,
    context: str = "YES",
    detach: str = "NO",
    pre: int = 30_000,
    post: int = 0,
    freeze: int = 20_000,
) -> tuple[str, str]:
    """A recipe's path below configs/Distillation, without the suffix, and its YAML text."""
    name = (
        f"{_FOLDERS[detector]}/{detector}_{backbone}_{schedule}_stuGuided_addCtxBox={context}"
        f"_detachAppearanceEmbed={detach}_{ending}"
    )
    fields = _DETECTORS[detector] | _SCHEDULES[schedule[:2]]
    plain = _SOLVER.format(**(fields | _SGD))
    swin = _SOLVER.format(**(fields | _ADAMW))
    is_swin = backbone == "Swin_Tiny"
    text = _RECIPE.format(
        **fields,
        name=name,
        backbone=_BACKBONES[f"{detector}_{backbone}" if is_swin else backbone],
        student_solver=swin if is_swin else plain,
        teacher_solver=swin if is_swin and detector == "retinanet" else plain,
        input="INPUT:\n  MIN_SIZE_TRAIN: (800,)" if schedule.endswith("SS") else "",
        context=context,
        detach=detach,
        pre=pre,
        post=post,
        freeze=freeze,
    )
    return name, text


_PRE = "preNondistillIters=30k_preFreezeStudentBackboneIters=20k"
_FCOS_PRE = "preNondistilIters=30k_preFreezeStudentBackboneIters=20k"
_FCOS_POST = "preNondistilIters=30k_postNondistillIters=50k_preFreezeStudentBackboneIters=20k"
_POST = "preNondistillIters=30k_postNondistillIters=50k_preFreezeStudentBackboneIters=20k"
_RETINANET_POST = "preNondistillIters=30k_postNonDistillIters=50k_preFreezeStudentBackboneIters=20k"

_RELEASED = {
    "retinanet/r50_2x_ms": _recipe("retinanet", "R_50", "2xMS", _PRE),
    "retinanet/r101_2x_ms": _recipe("retinanet", "R_101", "2xMS", _PRE),
    "retinanet/r101_dcn_2x_ms": _recipe("retinanet", "R_101_dcnv2", "2xMS", _PRE),
    "retinanet/x101_dcn_2x_ms": _recipe("retinanet", "X_101_dcnv2", "2xMS", _RETINANET_POST, post=50_000),
    "retinanet/swin_t_3x_ms": _recipe("retinanet", "Swin_Tiny", "3xMS", _PRE),
    "fcos/r50_2x_ms": _recipe("fcos", "R_50", "2xMS", _FCOS_PRE, context="NO"),
    "fcos/r101_2x_ms": _recipe("fcos", "R_101", "2xMS", _FCOS_PRE),
    "fcos/r101_dcn_2x_ms": _recipe("fcos", "R_101_dcnv2", "2xMS", _FCOS_POST, post=50_000),
    "fcos/x101_dcn_2x_ms": _recipe("fcos", "X_101_dcnv2", "2xMS", _FCOS_POST, post=50_000),
    "faster_rcnn/r50_2x_ms": _recipe("faster_rcnn", "R_50", "2xMS", _PRE, context="NO", detach="YES"),
    "faster_rcnn/r101_2x_ms": _recipe("faster_rcnn", "R_101", "2xMS", _PRE, context="NO", detach="YES"),
    "faster_rcnn/r101_dcn_2x_ms": _recipe(
        "faster_rcnn", "R_101_dcnv2", "2xMS", _PRE, context="NO", detach="YES"
    ),
    "faster_rcnn/x101_dcn_2x_ms": _recipe(
        "faster_rcnn", "X_101_dcnv2", "2xMS", _POST, context="NO", detach="YES", post=50_000
    ),
    "mask_rcnn/swin_t_3x_ms": _recipe("mask_rcnn", "Swin_Tiny", "3xMS", _PRE, context="NO", detach="YES"),
}
_EARLIER = {
    "retinanet/r50_1x_ms": _recipe(
        "retinanet", "R_50", "1xMS", "preNondistillIters=20k", detach="YES", pre=20_000, freeze=10_000
    ),
    "retinanet/r50_1x_ss": _recipe(
        "retinanet", "R_50", "1xSS", "preNondistillIters=20k", detach="YES", pre=20_000, freeze=10_000
    ),
    "retinanet/r50_2x_ss": _recipe(
        "retinanet",
        "R_50",
        "2xSS",
        "preNondistillIters=30k_preFreezeStudentBackboneIters=70k",
        freeze=70_000,
    ),
}

REFERENCE_RECIPES = dict([*_RELEASED.values(), *_EARLIER.values()])
"""YAML text by its path below configs/Distillation, without the suffix."""

RELEASED = {name: f"{ours}_lgd.yaml" for ours, (name, _) in _RELEASED.items()}
"""The 14 released recipes: the reference's path to ours below configs/."""

EARLIER = {name: f"{ours}_lgd.yaml" for ours, (name, _) in _EARLIER.items()}
"""Those of its history with the settings of one of ours."""
