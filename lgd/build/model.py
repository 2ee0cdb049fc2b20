"""The distiller with its parts, or the plain student, from the configuration."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial

import torch

from lgd.build.choice import choose
from lgd.build.dense import build_atss, build_fcos, build_gfl, build_poto
from lgd.build.imitation import build_imitation, read_teacher_config
from lgd.build.rcnn import build_rcnn
from lgd.build.retinanet import build_retinanet
from lgd.config.schema import Config
from lgd.config.values import ConfigError
from lgd.detectors.protocol import Detector
from lgd.distill.comparison import distillation_loss, divergence_loss
from lgd.distill.distiller import Adapter, LabelGuidedDistiller, PlainStudent
from lgd.distill.head import SlowHead
from lgd.distill.label_encoder import EMBEDDING_DIM, MOST_ONE_HOT, CategoryFormat, format_for
from lgd.distill.pkd import LabelGuidedImitation
from lgd.distill.reference_order import ReferenceOrderTeacher
from lgd.distill.teacher import DynamicTeacher
from lgd.engine.compile import compile_parts, require_compiler
from lgd.layers.conv import set_winograd

logger = logging.getLogger(__name__)

Model = LabelGuidedDistiller | PlainStudent

DETECTORS: Mapping[str, Callable[[Config], Detector]] = {
    "RetinaNet": build_retinanet,
    "FCOS": build_fcos,
    "ATSS": build_atss,
    "POTO": build_poto,
    "GFL": build_gfl,
    "GeneralizedRCNN": build_rcnn,
}

_LOSSES = {"squared": distillation_loss, "jensen_shannon": divergence_loss}


def build_model(cfg: Config) -> Model:
    """Build the distiller with its student, teacher and adapter, or the plain student.

    Raises:
        ConfigError: a part or an option that there is not, or sizes for which there is no memory.
    """
    try:
        model = _assemble(cfg)
    except (MemoryError, RuntimeError) as error:  # all that torch says of such sizes
        reason = str(error).partition("\n")[0] or "out of memory"
        raise ConfigError(f"the model of MODEL and NUM_CLASSES cannot be built: {reason}") from error
    set_winograd(model, cfg.train.winograd)
    return model


def place_model(cfg: Config, model: Model, device: torch.device) -> Model:
    """Bring the model to a device in the recipe's memory layout; set whether cuDNN tries algorithms out."""
    torch.backends.cudnn.benchmark = cfg.cudnn_benchmark
    model = model.to(device)
    return model.to(memory_format=torch.channels_last) if cfg.train.channels_last else model


def compiles(cfg: Config, device: torch.device) -> bool:
    """Whether training steps are compiled."""
    wanted = cfg.train.compile
    return device.type == "cuda" if wanted == "auto" else wanted


def compile_model(cfg: Config, model: Model, device: torch.device) -> None:
    """Let a model run compiled while it trains, if so configured; evaluation stays eager.

    The methods are replaced on the model's modules, so that parameters keep their names. Nothing is compiled
    before the first step, and each canvas when it comes first.

    Args:
        cfg: its TRAIN.COMPILE and TRAIN.CUDA_GRAPHS count.
        model: the distiller or plain student, where it will run.
        device: where that is.

    Raises:
        ConfigError: this machine cannot compile.
    """
    if not compiles(cfg, device):
        return
    require_compiler(device)
    compile_parts(model, options={"triton.cudagraphs": True} if cfg.train.cuda_graphs else None)


def _assemble(cfg: Config) -> Model:
    student, distillator = build_detector(cfg), cfg.model.distillator
    if not distillator.enabled:
        return PlainStudent(student)
    if distillator.method == "LGD":
        return build_label_guided_distiller(cfg, student)
    pretrained = build_detector(read_teacher_config(cfg))
    if distillator.method == "LGD+PKD":
        return build_label_guided_distiller(cfg, student, pretrained)
    return build_imitation(cfg, student, pretrained)


def build_detector(cfg: Config) -> Detector:
    """Build the configured detector alone."""
    return choose(DETECTORS, cfg.model.meta_architecture, "MODEL.META_ARCHITECTURE")(cfg)


def build_label_guided_distiller(
    cfg: Config, student: Detector, pretrained: Detector | None = None
) -> LabelGuidedDistiller:
    """Build LGD around a student, together with PKD where there is a pretrained detector."""
    distillator, teacher = cfg.model.distillator, cfg.model.distillator.teacher
    make_teacher = ReferenceOrderTeacher if teacher.reference_order else DynamicTeacher
    make: Callable[..., LabelGuidedDistiller] = LabelGuidedDistiller
    if pretrained is not None:
        make = partial(LabelGuidedImitation, pretrained=pretrained, imitation_weight=distillator.pkd.lambda_)
    try:
        return make(
            student=student,
            teacher=make_teacher(
                channels=student.channels,
                num_classes=cfg.num_classes,
                interact_pattern=teacher.interact_pattern,
                add_context_box=teacher.add_context_box,
                detach_appearance_embed=teacher.detach_appearance_embed,
                category_format=_choose_category_format(cfg),
                label_width=distillator.label_encoder.width,
                num_heads=teacher.nr_transformer_heads,
                use_masks=distillator.label_encoder.load_labelmap,
                checkpoint=cfg.train.checkpoint_teacher,
            ),
            adapter=Adapter(student.channels),
            weight=distillator.lambda_,
            loss=_LOSSES[distillator.loss],
            slow_head=SlowHead(distillator.head.decay) if distillator.head.mode == "averaged" else None,
            head_once=cfg.train.head_once,
            image_share=distillator.image_share,
        )
    except ValueError as error:
        raise ConfigError(f"MODEL.DISTILLATOR: {error}") from error


def _choose_category_format(cfg: Config) -> CategoryFormat:
    """How the teacher is told the classes; says so where `auto` leaves the paper's way."""
    wanted = cfg.model.distillator.label_encoder.category_format
    if wanted != "auto":
        return wanted
    chosen = format_for(cfg.num_classes)
    if chosen == "embedding":
        logger.info(
            "%d classes: the teacher is told each by %d learned numbers, since they are more than %d "
            "(MODEL.DISTILLATOR.LABEL_ENCODER.CATEGORY_FORMAT auto; one_hot is the paper's)",
            cfg.num_classes,
            EMBEDDING_DIM,
            MOST_ONE_HOT,
        )
    return chosen
