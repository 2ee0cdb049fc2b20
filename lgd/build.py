"""From the configuration to objects: the only module besides `train.py` that sees both."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import nn

from lgd.backbones.resnet import ResNet
from lgd.config.schema import Config
from lgd.config.solver import resolve_solver
from lgd.config.values import ConfigError
from lgd.data.index import AnnotationIndex
from lgd.data.loader import test_loader, train_loader
from lgd.detectors.retinanet import RetinaNet
from lgd.distill.distiller import Adapter, LabelGuidedDistiller, PlainStudent
from lgd.distill.schedule import DistillSchedule
from lgd.distill.teacher import DynamicTeacher
from lgd.distributed import get_rank, get_world_size
from lgd.engine.loop import LoopOptions, Side
from lgd.engine.optim import LRSchedule, build_optimizer
from lgd.layers.fpn import FPN, TopBlockP6P7
from lgd.structures import Batch
from lgd.weights.load import load_weights

logger = logging.getLogger(__name__)

Part = TypeVar("Part")

Model = LabelGuidedDistiller | PlainStudent


def build_model(cfg: Config) -> Model:
    """Build the distiller with its student, teacher and adapter, or the plain student.

    Raises:
        ConfigError: a part or an option that there is not.
    """
    student = _choose(DETECTORS, cfg.model.meta_architecture, "MODEL.META_ARCHITECTURE")(cfg)
    distillator = cfg.model.distillator
    if not distillator.enabled:
        return PlainStudent(student)
    if distillator.label_encoder.load_labelmap:
        raise ConfigError("MODEL.DISTILLATOR.LABEL_ENCODER.LOAD_LABELMAP True needs a detector with masks")
    teacher = distillator.teacher
    try:
        return LabelGuidedDistiller(
            student=student,
            teacher=DynamicTeacher(
                channels=student.channels,
                num_classes=cfg.num_classes,
                interact_pattern=teacher.interact_pattern,
                add_context_box=teacher.add_context_box,
                detach_appearance_embed=teacher.detach_appearance_embed,
                category_format=distillator.label_encoder.category_format,
                num_heads=teacher.nr_transformer_heads,
            ),
            adapter=Adapter(student.channels),
            weight=distillator.lambda_,
        )
    except ValueError as error:
        raise ConfigError(f"MODEL.DISTILLATOR: {error}") from error


def build_retinanet(cfg: Config) -> RetinaNet:
    """Build RetinaNet on the configured backbone."""
    options = cfg.model.retinanet
    if options.iou_labels != (0, -1, 1):
        raise ConfigError(f"MODEL.RETINANET.IOU_LABELS must be (0, -1, 1), not {options.iou_labels}")
    backbone, neck = _choose(BACKBONES, cfg.model.backbone.name, "MODEL.BACKBONE.NAME")(cfg)
    if tuple(options.in_features) != tuple(neck.strides):
        raise ConfigError(
            f"MODEL.RETINANET.IN_FEATURES {options.in_features} are not the levels of the neck, "
            f"{tuple(neck.strides)}"
        )
    try:
        return RetinaNet(
            backbone=backbone,
            neck=neck,
            num_classes=cfg.num_classes,
            anchor_sizes=cfg.model.anchor_generator.sizes,
            aspect_ratios=cfg.model.anchor_generator.aspect_ratios,
            pixel_mean=cfg.model.pixel_mean,
            pixel_std=cfg.model.pixel_std,
            num_convs=options.num_convs,
            prior_prob=options.prior_prob,
            iou_thresholds=(options.iou_thresholds[0], options.iou_thresholds[1]),
            focal_loss_alpha=options.focal_loss_alpha,
            focal_loss_gamma=options.focal_loss_gamma,
            smooth_l1_beta=options.smooth_l1_loss_beta,
            box_reg_weights=options.bbox_reg_weights,
            score_thresh_test=options.score_thresh_test,
            topk_candidates_test=options.topk_candidates_test,
            nms_thresh_test=options.nms_thresh_test,
            detections_per_image=cfg.test.detections_per_image,
            reference_normalizer=options.reference_normalizer,
        )
    except ValueError as error:
        raise ConfigError(f"MODEL.RETINANET or MODEL.ANCHOR_GENERATOR: {error}") from error


def build_retinanet_resnet_fpn(cfg: Config) -> tuple[ResNet, FPN]:
    """Build a ResNet with an FPN whose P6 and P7 come from the ResNet's last map."""
    options, fpn = cfg.model.resnets, cfg.model.fpn
    _refuse_unsupported(cfg)
    try:
        backbone = ResNet(
            depth=options.depth,
            out_features=options.out_features,
            norm=options.norm,
            stride_in_1x1=options.stride_in_1x1,
            num_groups=options.num_groups,
            width_per_group=options.width_per_group,
            stem_out_channels=options.stem_out_channels,
            res2_out_channels=options.res2_out_channels,
            freeze_at=max(cfg.model.backbone.freeze_at, 0),
        )
        missing = set(fpn.in_features) - set(backbone.channels)
        if missing:
            raise ConfigError(
                f"MODEL.FPN.IN_FEATURES {sorted(missing)} are not in MODEL.RESNETS.OUT_FEATURES"
            )
        last = fpn.in_features[-1]
        neck = FPN(
            in_channels={name: backbone.channels[name] for name in fpn.in_features},
            in_strides={name: backbone.strides[name] for name in fpn.in_features},
            out_channels=fpn.out_channels,
            norm=fpn.norm,
            top_block=TopBlockP6P7(backbone.channels[last], fpn.out_channels, last),
        )
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"MODEL.RESNETS or MODEL.FPN: {error}") from error
    return backbone, neck


DETECTORS: Mapping[str, Callable[[Config], RetinaNet]] = {"RetinaNet": build_retinanet}
BACKBONES: Mapping[str, Callable[[Config], tuple[ResNet, FPN]]] = {
    "build_retinanet_resnet_fpn_backbone": build_retinanet_resnet_fpn,
}


def build_sides(cfg: Config, model: Model, device: torch.device) -> list[Side]:
    """Build the optimizer and schedule of the student (with the adapter) and of the teacher."""
    parameters: dict[str, list[nn.Parameter]] = {"student": [], "teacher": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameters["teacher" if name.startswith("teacher.") else "student"].append(parameter)
    fused = cfg.train.fused_optimizer
    return [
        _build_side(cfg, name, side, device.type == "cuda" if fused == "auto" else fused)
        for name, side in parameters.items()
        if side
    ]


def _build_side(cfg: Config, name: str, parameters: list[nn.Parameter], fused: bool) -> Side:
    solver = resolve_solver(cfg, "teacher" if name == "teacher" else "student")
    optimizer = build_optimizer(
        parameters,
        kind=solver.optimizer,
        lr=solver.base_lr,
        momentum=solver.momentum,
        weight_decay=solver.weight_decay,
        fused=fused,
    )
    schedule = LRSchedule(
        base_lr=solver.base_lr,
        kind=solver.lr_scheduler_name,
        steps=solver.steps,
        gamma=solver.gamma,
        warmup_factor=solver.warmup_factor,
        warmup_iters=solver.warmup_iters,
        warmup_method=solver.warmup_method,
        max_iter=cfg.solver.max_iter,
    )
    return Side(name, optimizer, schedule)


def build_schedule(cfg: Config) -> DistillSchedule:
    """Build the phases of LGD; a plain student has none."""
    distillator = cfg.model.distillator
    if not distillator.enabled:
        return DistillSchedule(
            pre_nondistill=0, post_nondistill=0, pre_freeze=0, max_iter=cfg.solver.max_iter
        )
    return DistillSchedule(
        pre_nondistill=distillator.pre_nondistill_iters,
        post_nondistill=distillator.post_nondistill_iters,
        pre_freeze=distillator.pre_freeze_student_backbone_iters,
        max_iter=cfg.solver.max_iter,
    )


def build_loop_options(cfg: Config) -> LoopOptions:
    """Build the numbers of the training loop."""
    clip = cfg.solver.clip_gradients
    return LoopOptions(
        max_iter=cfg.solver.max_iter,
        images_per_step=cfg.solver.ims_per_batch,
        log_period=cfg.log_period,
        eval_period=cfg.test.eval_period,
        checkpoint_period=cfg.solver.checkpoint_period,
        accumulate_steps=cfg.train.accumulate_steps,
        clip_kind=clip.clip_type if clip.enabled else "none",
        clip_limit=clip.clip_value,
        clip_norm_type=clip.norm_type,
        mixed_precision=cfg.solver.amp.enabled,
        seed=cfg.seed,
    )


def micro_batch_size(cfg: Config) -> int:
    """Images of one forward pass on one rank.

    Raises:
        ConfigError: the batch does not divide.
    """
    shares = get_world_size() * cfg.train.accumulate_steps
    if cfg.solver.ims_per_batch % shares:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH {cfg.solver.ims_per_batch} does not divide into {get_world_size()} ranks "
            f"x TRAIN.ACCUMULATE_STEPS {cfg.train.accumulate_steps}; choose a multiple of {shares}"
        )
    return cfg.solver.ims_per_batch // shares


def build_train_loader(
    cfg: Config, index: AnnotationIndex, *, first_step: int, pin_memory: bool
) -> Iterable[Batch]:
    """Open this rank's endless training batches, from those of `first_step` on."""
    options = cfg.input
    return train_loader(
        index,
        image_format=options.format,
        batch_size=micro_batch_size(cfg),
        num_accumulation_steps=cfg.train.accumulate_steps,
        world_size=get_world_size(),
        rank=get_rank(),
        seed=cfg.seed,
        start=first_step * cfg.train.accumulate_steps,
        min_sizes=options.min_size_train,
        min_size_sampling=options.min_size_train_sampling,
        max_size=options.max_size_train,
        flip_prob=0.5 if options.random_flip == "horizontal" else 0.0,
        num_workers=cfg.dataloader.num_workers,
        on_bad_image=cfg.dataloader.on_bad_image,
        filter_empty=cfg.dataloader.filter_empty_annotations,
        aspect_ratio_grouping=cfg.dataloader.aspect_ratio_grouping,
        pin_memory=pin_memory,
    )


def build_test_loader(cfg: Config, index: AnnotationIndex, *, pin_memory: bool) -> Iterable[Batch]:
    """Open this rank's share of a test set."""
    return test_loader(
        index,
        image_format=cfg.input.format,
        batch_size=cfg.test.ims_per_batch,
        world_size=get_world_size(),
        rank=get_rank(),
        min_size=cfg.input.min_size_test,
        max_size=cfg.input.max_size_test,
        num_workers=cfg.dataloader.num_workers,
        on_bad_image=cfg.dataloader.on_bad_image,
        pin_memory=pin_memory,
    )


def load_initial_weights(cfg: Config, model: Model) -> None:
    """Fill the model from MODEL.WEIGHTS, if any; says what was loaded and what was not."""
    if not cfg.model.weights:
        return
    report = load_weights(
        model,
        cfg.model.weights,
        stride_in_1x1=cfg.model.resnets.stride_in_1x1,
        pixel_mean=cfg.model.pixel_mean,
        pixel_std=cfg.model.pixel_std,
        image_format=cfg.input.format,
    )
    logger.info("%s", report.summary())


def _choose(parts: Mapping[str, Callable[[Config], Part]], name: str, key: str) -> Callable[[Config], Part]:
    if name not in parts:
        raise ConfigError(f"{key} {name!r} is not available yet; there is {', '.join(sorted(parts))}")
    return parts[name]


def _refuse_unsupported(cfg: Config) -> None:
    """Name the options of the reference's schema that the ResNet or the FPN does not have."""
    unsupported = {
        "MODEL.RESNETS.DEFORM_ON_PER_STAGE": any(cfg.model.resnets.deform_on_per_stage),
        "MODEL.RESNETS.RES5_DILATION": cfg.model.resnets.res5_dilation != 1,
        "MODEL.FPN.FUSE_TYPE": cfg.model.fpn.fuse_type != "sum",
        "MODEL.ANCHOR_GENERATOR.OFFSET": cfg.model.anchor_generator.offset != 0.0,
        "INPUT.CROP.ENABLED": cfg.input.crop.enabled,
        "DATALOADER.SAMPLER_TRAIN": cfg.dataloader.sampler_train != "TrainingSampler",
    }
    for key, used in unsupported.items():
        if used:
            raise ConfigError(f"{key} is set to something that is not available yet; leave it at its default")
