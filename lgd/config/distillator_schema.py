"""The sections under MODEL.DISTILLATOR: student, teacher, adapter and the phases of LGD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from lgd.config.values import (
    UNUSED,
    Interval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    UnitFloat,
)

IMITATING = ("FGFI", "PKD", "CrossKD", "LGD+PKD")
"""Values of METHOD with a pretrained teacher, of TEACHER.WEIGHTS."""


@dataclass(frozen=True)
class SideAmpConfig:
    """MODEL.DISTILLATOR.{STUDENT,TEACHER}.SOLVER.AMP."""

    enabled: Annotated[bool, UNUSED] = False


@dataclass(frozen=True)
class SideSolverConfig:
    """MODEL.DISTILLATOR.{STUDENT,TEACHER}.SOLVER: None falls back to SOLVER (see `resolve_solver`).

    The reference's defaults here are SGD, BASE_LR 0.02, MOMENTUM 0.9 and WEIGHT_DECAY 0.0001, and all of its
    recipes set them. With such defaults SOLVER.BASE_LR alone would be without effect, hence None.
    """

    optimizer: Annotated[Literal["SGD", "ADAMW"] | None, "Optimizer."] = None
    base_lr: Annotated[PositiveFloat | None, "Learning rate after the warm-up."] = None
    momentum: Annotated[UnitFloat | None, "Momentum of SGD."] = None
    weight_decay: Annotated[NonNegativeFloat | None, "Weight decay, the same for every parameter."] = None
    lr_scheduler_name: Annotated[
        Literal["WarmupMultiStepLR", "WarmupCosineLR"] | None, "Learning rate over time."
    ] = None
    steps: Annotated[
        tuple[PositiveInt, ...] | None, "Iterations at which the rate is multiplied by GAMMA."
    ] = None
    gamma: Annotated[PositiveFloat | None, "Factor at each of STEPS."] = None
    warmup_factor: Annotated[UnitFloat | None, "The rate starts at this share of BASE_LR."] = None
    warmup_iters: Annotated[NonNegativeInt | None, "Iterations of the warm-up."] = None
    warmup_method: Annotated[
        Literal["linear", "constant"] | None, "Rise through the warm-up, or stay low."
    ] = None
    amp: SideAmpConfig = SideAmpConfig()


@dataclass(frozen=True)
class StudentConfig:
    """MODEL.DISTILLATOR.STUDENT."""

    meta_arch: Annotated[
        str | None, "The reference's name of the student; MODEL.META_ARCHITECTURE decides."
    ] = None
    solver: SideSolverConfig = SideSolverConfig()


@dataclass(frozen=True)
class TeacherConfig:
    """MODEL.DISTILLATOR.TEACHER."""

    meta_arch: Annotated[Literal["DynamicTeacher"] | None, "Kind of teacher; there is one."] = None
    interact_pattern: Annotated[
        Literal["stuGuided", "labelGuided", "student_fill", "teacher_fill"],
        "Attention from appearance to labels, from labels to appearance, or none: one of the two alone.",
    ] = "stuGuided"
    nr_transformer_heads: Annotated[PositiveInt, "Heads of the attention."] = 8
    detach_appearance_embed: Annotated[bool, "Keep the teacher's losses from the student's features."] = False
    reference_order: Annotated[
        bool,
        "Go image by image, layer for layer, as the reference does: the same to rounding, slower.",
    ] = False
    add_context_box: Annotated[bool, "Add the whole image to its objects."] = False
    config_file: Annotated[
        str, "Recipe of the pretrained teacher, a path; '' for one of the student's own settings."
    ] = ""
    weights: Annotated[str, "Trained detector that the student imitates, as MODEL.WEIGHTS."] = ""
    affine: Annotated[bool, UNUSED] = False
    solver: SideSolverConfig = SideSolverConfig()


@dataclass(frozen=True)
class FgfiConfig:
    """MODEL.DISTILLATOR.FGFI: fine-grained feature imitation, the teacher-based baseline."""

    lambda_: Annotated[NonNegativeFloat, "Weight of the imitation loss."] = 0.01
    iou_ratio: Annotated[
        UnitFloat, "A cell counts from this share of an object's best overlap with an anchor on."
    ] = 0.5


@dataclass(frozen=True)
class PkdConfig:
    """MODEL.DISTILLATOR.PKD: imitation by correlation, with a pretrained teacher."""

    lambda_: Annotated[NonNegativeFloat, "Weight of the imitation loss, a sum over the levels."] = 6.0


@dataclass(frozen=True)
class CrosskdConfig:
    """MODEL.DISTILLATOR.CROSSKD: the student's head continued by a pretrained teacher's."""

    layer: Annotated[
        NonNegativeInt | None,
        "The student's features after so many convolutions of its head's towers go on in the teacher's; None "
        "for one fewer than the teacher's NUM_CONVS.",
    ] = None
    lambda_class: Annotated[NonNegativeFloat, "Weight of the loss of the scores."] = 1.0
    lambda_box: Annotated[NonNegativeFloat, "Weight of the loss of the boxes."] = 1.0


@dataclass(frozen=True)
class AdapterConfig:
    """MODEL.DISTILLATOR.ADAPTER."""

    meta_arch: Annotated[Literal["SequentialConvs"], "Adapter of the student's features; there is one."] = (
        "SequentialConvs"
    )


@dataclass(frozen=True)
class LabelEncoderConfig:
    """MODEL.DISTILLATOR.LABEL_ENCODER."""

    load_labelmap: Annotated[bool, "Describe objects by their masks too, and pool inside the masks."] = False
    box_format: Annotated[Literal["x1y1x2y2"], "The four numbers of a box."] = "x1y1x2y2"
    category_format: Annotated[
        Literal["auto", "one_hot", "norm_classes", "embedding"],
        "One number a class, class / classes, or 64 learned numbers; auto: one_hot up to 200 classes, else "
        "embedding.",
    ] = "auto"
    width: Annotated[int, Interval(4, 2**16), "Of its widest layers; 1024 is the paper's."] = 1024


@dataclass(frozen=True)
class HeadConfig:
    """MODEL.DISTILLATOR.HEAD: how the teacher's losses meet the student's head, through which they go.

    "shared" is the paper's way: they train it as the student's losses do. "fixed": it stays as it is for
    them, and they train teacher and features alone. "averaged": a moving average of it stands in.
    """

    mode: Annotated[
        Literal["shared", "fixed", "averaged"],
        "The teacher's losses train the student's head; leave it as it is; go through its moving average.",
    ] = "shared"
    fixed_iters: Annotated[NonNegativeInt, "First iterations in which they leave a shared head as it is."] = 0
    ramp_iters: Annotated[
        NonNegativeInt, "Iterations after these until they train it wholly, by a share that rises."
    ] = 0
    decay: Annotated[UnitFloat, "Of the moving average, an iteration."] = 0.999


@dataclass(frozen=True)
class DistillatorConfig:
    """MODEL.DISTILLATOR: label-guided self-distillation."""

    enabled: Annotated[bool, "Train with LGD; False trains the plain detector."] = True
    method: Annotated[
        Literal["LGD", "FGFI", "PKD", "CrossKD", "LGD+PKD"],
        "Teacher made from the labels; a pretrained detector to imitate, in one of three ways; or both.",
    ] = "LGD"
    fgfi: FgfiConfig = FgfiConfig()
    pkd: PkdConfig = PkdConfig()
    crosskd: CrosskdConfig = CrosskdConfig()
    student: StudentConfig = StudentConfig()
    teacher: TeacherConfig = TeacherConfig()
    adapter: AdapterConfig = AdapterConfig()
    label_encoder: LabelEncoderConfig = LabelEncoderConfig()
    head: HeadConfig = HeadConfig()
    loss: Annotated[
        Literal["squared", "jensen_shannon"],
        "Squared difference of the features, or the root of their Jensen-Shannon divergence (SSSD).",
    ] = "squared"
    lambda_: Annotated[NonNegativeFloat, "Weight of the distillation loss."] = 1.0
    lambda_steps: Annotated[
        tuple[PositiveInt, ...] | None,
        "Iterations at which LAMBDA is multiplied by LAMBDA_GAMMA; None where the student's rate falls.",
    ] = None
    lambda_gamma: Annotated[PositiveFloat, "Factor at each of LAMBDA_STEPS; above 1 in SSSD."] = 1.0
    image_share: Annotated[
        PositiveShare, "Share of a micro-batch's images that LGD's teacher sees, rounded up; 1 in the paper."
    ] = 1.0
    pre_nondistill_iters: Annotated[NonNegativeInt, "First iterations that do not distill."] = 40_000
    post_nondistill_iters: Annotated[NonNegativeInt, "Last iterations that do not distill."] = 0
    pre_freeze_student_backbone_iters: Annotated[
        NonNegativeInt, "First iterations in which the student's backbone stays as it is."
    ] = 10_000
    eval_teacher: Annotated[bool, "Evaluate the teacher as well (it reads the labels: an upper bound)."] = (
        True
    )
    distill_off: Annotated[Literal[0], "The reference's name of the phase without distillation."] = 0
    distill_on: Annotated[Literal[1], "The reference's name of the phase with distillation."] = 1
    hidden_dim: Annotated[int, UNUSED] = 64
    smooth: Annotated[float, UNUSED] = 0.0
    tower_distill_coef: Annotated[float, UNUSED] = 1.0
    use_mth_head: Annotated[int, UNUSED] = 1
    detach_tea_when_distill: Annotated[bool, UNUSED] = True
    adain_before_distill: Annotated[bool, UNUSED] = False
