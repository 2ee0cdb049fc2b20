"""The sections under MODEL: backbone, neck and detectors (LGD itself is in `distillator_schema.py`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from lgd.config.distillator_schema import DistillatorConfig
from lgd.config.values import (
    UNUSED,
    BlockCount,
    Interval,
    LayerCount,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    UnitFloat,
)

Names = tuple[str, ...]
Four = tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat]
Norm = Literal["", "FrozenBN", "BN", "SyncBN", "GN"]
Label = Annotated[int, Interval(-1, 1)]
Threshold = tuple[UnitFloat, ...]


@dataclass(frozen=True)
class BackboneConfig:
    """MODEL.BACKBONE: which backbone and neck."""

    name: Annotated[
        str,
        "Backbone: resnet, swint, resnet18, efficientnet_lite0, timm://NAME, ... with its detector's FPN "
        "(p3..p7, two-stage p2..p6); or build_retinanet_X_fpn_backbone and build_X_fpn_backbone.",
    ] = "build_retinanet_resnet_fpn_backbone"
    norm: Annotated[Norm, "Normalisation of backbones without a section of their own."] = "FrozenBN"
    freeze_at: Annotated[
        int, Interval(-1, 5), "Stages that never train: 2 is all up to stride 4, such as stem and res2."
    ] = 2
    reference_order: Annotated[
        bool,
        "Frozen norms after their convolutions, and Swin's attention in steps, as in the reference: the same "
        "to rounding, slower.",
    ] = False


@dataclass(frozen=True)
class ResnetsConfig:
    """MODEL.RESNETS: the backbone `resnet`, of any depth and width."""

    depth: Annotated[Literal[18, 34, 50, 101], "Layers."] = 50
    out_features: Annotated[Names, "Stages handed to the FPN."] = ("res3", "res4", "res5")
    num_groups: Annotated[PositiveInt, "Groups of the 3x3 convolutions (32 in X-101-32x8d)."] = 1
    width_per_group: Annotated[PositiveInt, "Channels of a group in res2 (8 in X-101-32x8d)."] = 64
    norm: Annotated[Norm, "Normalisation."] = "FrozenBN"
    stride_in_1x1: Annotated[bool, "Stride in the first 1x1 (the MSRA weights) or in the 3x3."] = True
    res5_dilation: Annotated[Literal[1, 2], "Dilation of res5, which then keeps res4's stride."] = 1
    res2_out_channels: Annotated[PositiveInt, "Channels of res2; each later stage has twice as many."] = 256
    stem_out_channels: Annotated[PositiveInt, "Channels of the stem."] = 64
    deform_on_per_stage: Annotated[tuple[bool, bool, bool, bool], "Deformable 3x3 in res2, .., res5."] = (
        False,
        False,
        False,
        False,
    )
    deform_modulated: Annotated[bool, "Deformable convolution v2 (with a mask) instead of v1."] = False
    deform_num_groups: Annotated[PositiveInt, "Groups of the deformable offsets."] = 1


@dataclass(frozen=True)
class SwintConfig:
    """MODEL.SWINT: Swin transformer."""

    embed_dim: Annotated[PositiveInt, "Channels after the patch embedding."] = 96
    out_features: Annotated[Names, "Stages handed to the FPN."] = ("stage2", "stage3", "stage4", "stage5")
    depths: Annotated[tuple[BlockCount, ...], "Blocks of each stage."] = (2, 2, 6, 2)
    num_heads: Annotated[tuple[PositiveInt, ...], "Attention heads of each stage."] = (3, 6, 12, 24)
    window_size: Annotated[PositiveInt, "Side of the attention window, in patches."] = 7
    mlp_ratio: Annotated[PositiveFloat, "Width of the MLP over the width of the block."] = 4.0
    drop_path_rate: Annotated[UnitFloat, "Stochastic depth of the last block, rising linearly from 0."] = 0.2
    ape: Annotated[bool, "Add an absolute position embedding."] = False


@dataclass(frozen=True)
class FpnConfig:
    """MODEL.FPN."""

    in_features: Annotated[Names, "Stages that the FPN reads."] = ("res3", "res4", "res5")
    out_channels: Annotated[PositiveInt, "Channels of every level."] = 256
    norm: Annotated[Norm, "Normalisation."] = ""
    fuse_type: Annotated[Literal["sum", "avg"], "How a level and the one above it are joined."] = "sum"
    top_levels: Annotated[LayerCount, "Levels that a RetinaNet FPN adds on top; over ResNets always 2."] = 2


@dataclass(frozen=True)
class ProposalGeneratorConfig:
    """MODEL.PROPOSAL_GENERATOR."""

    name: Annotated[Literal["RPN"], "Proposal generator of the two-stage detectors."] = "RPN"
    min_size: Annotated[NonNegativeInt, "Shortest side of a proposal, pixels."] = 0


@dataclass(frozen=True)
class AnchorGeneratorConfig:
    """MODEL.ANCHOR_GENERATOR."""

    name: Annotated[Literal["DefaultAnchorGenerator"], "Anchor generator."] = "DefaultAnchorGenerator"
    sizes: Annotated[
        tuple[tuple[PositiveFloat, ...], ...], "Square roots of the anchors' areas, a list per level, pixels."
    ] = tuple(tuple(side * 2 ** (octave / 3) for octave in range(3)) for side in (32, 64, 128, 256, 512))
    aspect_ratios: Annotated[
        tuple[tuple[PositiveFloat, ...], ...], "Height over width, a list per level, or one list for all."
    ] = ((0.5, 1.0, 2.0),)
    offset: Annotated[UnitFloat, "Where in its cell an anchor's centre lies, in strides."] = 0.0


@dataclass(frozen=True)
class ShiftGeneratorConfig:
    """MODEL.SHIFT_GENERATOR: the locations of FCOS, ATSS, POTO and GFL."""

    num_shifts: Annotated[PositiveInt, "Locations of a cell."] = 1
    offset: Annotated[UnitFloat, "Where in its cell a location lies, in strides."] = 0.5


@dataclass(frozen=True)
class RetinanetConfig:
    """MODEL.RETINANET."""

    in_features: Annotated[Names, "Levels that the head reads."] = ("p3", "p4", "p5", "p6", "p7")
    num_convs: Annotated[LayerCount, "Convolutions of each branch before its output."] = 4
    iou_thresholds: Annotated[Threshold, "IoU values that part the labels of IOU_LABELS."] = (0.4, 0.5)
    iou_labels: Annotated[tuple[Label, ...], "0 background, -1 ignored, 1 object."] = (0, -1, 1)
    prior_prob: Annotated[UnitFloat, "Score of every class at the start."] = 0.01
    score_thresh_test: Annotated[UnitFloat, "Scores up to this are dropped."] = 0.05
    topk_candidates_test: Annotated[PositiveInt, "Candidates of each level before NMS."] = 1000
    nms_thresh_test: Annotated[UnitFloat, "IoU above which the weaker of two boxes of a class goes."] = 0.5
    bbox_reg_weights: Annotated[Four, "Factors on (dx, dy, dw, dh)."] = (1.0, 1.0, 1.0, 1.0)
    focal_loss_gamma: Annotated[NonNegativeFloat, "Gamma of the focal loss."] = 2.0
    focal_loss_alpha: Annotated[UnitFloat, "Alpha of the focal loss."] = 0.25
    smooth_l1_loss_beta: Annotated[NonNegativeFloat, "Where the box loss turns from square to linear."] = 0.1
    reference_normalizer: Annotated[
        bool,
        "As the reference: advance the loss normaliser in every call, on each rank; float32 focal loss; "
        "candidates of equal score in the order of torch's sorting.",
    ] = False


@dataclass(frozen=True)
class FcosConfig:
    """MODEL.FCOS: FCOS, and the head of ATSS, POTO and GFL."""

    in_features: Annotated[Names, "Levels that the head reads."] = ("p3", "p4", "p5", "p6", "p7")
    num_convs: Annotated[LayerCount, "Convolutions of each branch before its output."] = 4
    fpn_strides: Annotated[tuple[PositiveInt, ...], "Stride of each level, pixels."] = (8, 16, 32, 64, 128)
    prior_prob: Annotated[UnitFloat, "Score of every class at the start."] = 0.01
    centerness_on_reg: Annotated[bool, "Centerness on the box branch, else on the class branch."] = True
    norm_reg_targets: Annotated[
        bool, "Predict distances in strides, rectified, instead of their logarithm."
    ] = True
    score_thresh_test: Annotated[UnitFloat, "Scores up to this are dropped."] = 0.05
    topk_candidates_test: Annotated[PositiveInt, "Candidates of each level before NMS."] = 1000
    nms_thresh_test: Annotated[UnitFloat, "IoU above which the weaker of two boxes of a class goes."] = 0.6
    bbox_reg_weights: Annotated[Four, "Factors on (left, top, right, bottom)."] = (1.0, 1.0, 1.0, 1.0)
    focal_loss_gamma: Annotated[NonNegativeFloat, "Gamma of the focal loss."] = 2.0
    focal_loss_alpha: Annotated[UnitFloat, "Alpha of the focal loss."] = 0.25
    iou_loss_type: Annotated[Literal["giou"], "Box loss."] = "giou"
    center_sampling_radius: Annotated[
        NonNegativeFloat, "Half side of the centre box, in strides; 0: whole box."
    ] = 1.5
    object_sizes_of_interest: Annotated[
        tuple[tuple[float, float], ...], "Range of the largest distance that each level answers for, pixels."
    ] = ((-1.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 512.0), (512.0, math.inf))
    norm_sync: Annotated[bool, "Average the number of objects over the ranks."] = True
    reg_weight: Annotated[NonNegativeFloat, "Factor on the box loss of ATSS."] = 2.0
    reference_order: Annotated[
        bool, "As the reference: leave the order of detections of equal score to torch's sort."
    ] = False


@dataclass(frozen=True)
class AtssConfig:
    """MODEL.ATSS: who answers for an object, in ATSS and GFL."""

    anchor_scale: Annotated[PositiveFloat, "Side of the anchor, in strides."] = 8.0
    topk: Annotated[PositiveInt, "Candidates of each level and object."] = 9


@dataclass(frozen=True)
class PotoConfig:
    """MODEL.POTO."""

    alpha: Annotated[UnitFloat, "Weight of the IoU against the score in the quality of a match."] = 0.8
    center_sampling_radius: Annotated[NonNegativeFloat, "Half side of the centre box, in strides."] = 1.5
    reg_weight: Annotated[NonNegativeFloat, "Factor on the box loss."] = 2.0


@dataclass(frozen=True)
class GflConfig:
    """MODEL.GFL."""

    reg_max: Annotated[PositiveInt, "Longest distance to a side that can be told, in strides."] = 16
    beta: Annotated[NonNegativeFloat, "Focusing exponent of the loss of the scores."] = 2.0
    box_weight: Annotated[NonNegativeFloat, "Factor on the loss of the boxes."] = 2.0
    side_weight: Annotated[NonNegativeFloat, "Factor on the loss of their sides' distributions."] = 0.25


@dataclass(frozen=True)
class RpnConfig:
    """MODEL.RPN."""

    head_name: Annotated[Literal["StandardRPNHead"], "Head."] = "StandardRPNHead"
    in_features: Annotated[Names, "Levels that the head reads."] = ("p2", "p3", "p4", "p5", "p6")
    boundary_thresh: Annotated[
        Annotated[int, Interval(-1)], "Drop anchors this far outside; -1 keeps all."
    ] = -1
    iou_thresholds: Annotated[Threshold, "IoU values that part the labels of IOU_LABELS."] = (0.3, 0.7)
    iou_labels: Annotated[tuple[Label, ...], "0 background, -1 ignored, 1 object."] = (0, -1, 1)
    batch_size_per_image: Annotated[PositiveInt, "Anchors sampled from an image."] = 256
    positive_fraction: Annotated[UnitFloat, "Largest share of objects among them."] = 0.5
    bbox_reg_loss_weight: Annotated[NonNegativeFloat, "Factor on the box loss."] = 1.0
    bbox_reg_weights: Annotated[Four, "Factors on (dx, dy, dw, dh)."] = (1.0, 1.0, 1.0, 1.0)
    smooth_l1_beta: Annotated[NonNegativeFloat, "Where the box loss turns from square to linear."] = 0.0
    loss_weight: Annotated[NonNegativeFloat, "Factor on both losses."] = 1.0
    pre_nms_topk_train: Annotated[PositiveInt, "Proposals of each level before NMS, in training."] = 12_000
    pre_nms_topk_test: Annotated[PositiveInt, "Proposals of each level before NMS, in testing."] = 6000
    post_nms_topk_train: Annotated[PositiveInt, "Proposals of an image after NMS, in training."] = 2000
    post_nms_topk_test: Annotated[PositiveInt, "Proposals of an image after NMS, in testing."] = 1000
    nms_thresh: Annotated[UnitFloat, "IoU above which the weaker of two proposals goes."] = 0.7
    reference_order: Annotated[
        bool,
        "As the reference: suppress image by image; equal scores in the order of torch's sorting; pool "
        "regions sample by sample.",
    ] = False


@dataclass(frozen=True)
class RoiHeadsConfig:
    """MODEL.ROI_HEADS."""

    name: Annotated[Literal["StandardROIHeads"], "Heads."] = "StandardROIHeads"
    in_features: Annotated[Names, "Levels that the regions are pooled from."] = ("p2", "p3", "p4", "p5")
    iou_thresholds: Annotated[Threshold, "IoU values that part the labels of IOU_LABELS."] = (0.5,)
    iou_labels: Annotated[tuple[Label, ...], "0 background, 1 object."] = (0, 1)
    batch_size_per_image: Annotated[PositiveInt, "Regions sampled from an image."] = 512
    positive_fraction: Annotated[UnitFloat, "Largest share of objects among them."] = 0.25
    score_thresh_test: Annotated[UnitFloat, "Scores up to this are dropped."] = 0.05
    nms_thresh_test: Annotated[UnitFloat, "IoU above which the weaker of two boxes of a class goes."] = 0.5
    proposal_append_gt: Annotated[bool, "Add the objects themselves to the proposals in training."] = True


@dataclass(frozen=True)
class RoiBoxHeadConfig:
    """MODEL.ROI_BOX_HEAD."""

    name: Annotated[Literal["FastRCNNConvFCHead"], "Head."] = "FastRCNNConvFCHead"
    bbox_reg_loss_weight: Annotated[NonNegativeFloat, "Factor on the box loss."] = 1.0
    bbox_reg_weights: Annotated[Four, "Factors on (dx, dy, dw, dh)."] = (10.0, 10.0, 5.0, 5.0)
    smooth_l1_beta: Annotated[NonNegativeFloat, "Where the box loss turns from square to linear."] = 0.0
    pooler_type: Annotated[Literal["ROIAlignV2"], "Region pooling."] = "ROIAlignV2"
    pooler_resolution: Annotated[PositiveInt, "Side of the pooled map."] = 7
    pooler_sampling_ratio: Annotated[
        NonNegativeInt, "Samples of a bin along a side; 0 adapts to the region."
    ] = 0
    num_conv: Annotated[LayerCount, "Convolutions."] = 0
    conv_dim: Annotated[PositiveInt, "Their channels."] = 256
    num_fc: Annotated[LayerCount, "Fully connected layers."] = 2
    fc_dim: Annotated[PositiveInt, "Their width."] = 1024
    norm: Annotated[Norm, "Normalisation of the convolutions."] = ""
    cls_agnostic_bbox_reg: Annotated[bool, "One box for all classes instead of one for each."] = False


@dataclass(frozen=True)
class RoiMaskHeadConfig:
    """MODEL.ROI_MASK_HEAD."""

    name: Annotated[Literal["MaskRCNNConvUpsampleHead"], "Head."] = "MaskRCNNConvUpsampleHead"
    pooler_type: Annotated[Literal["ROIAlignV2"], "Region pooling."] = "ROIAlignV2"
    pooler_resolution: Annotated[PositiveInt, "Side of the pooled map; masks have twice this."] = 14
    pooler_sampling_ratio: Annotated[
        NonNegativeInt, "Samples of a bin along a side; 0 adapts to the region."
    ] = 0
    num_conv: Annotated[LayerCount, "Convolutions before the upsampling."] = 4
    conv_dim: Annotated[PositiveInt, "Their channels."] = 256
    norm: Annotated[Norm, "Normalisation of the convolutions."] = ""
    cls_agnostic_mask: Annotated[bool, "One mask for all classes instead of one for each."] = False


@dataclass(frozen=True)
class ModelConfig:
    """MODEL."""

    meta_architecture: Annotated[
        Literal["RetinaNet", "FCOS", "ATSS", "POTO", "GFL", "GeneralizedRCNN"], "Detector."
    ] = "RetinaNet"
    weights: Annotated[
        str,
        "Weights to start from or to evaluate: a file, https://, detectron2://, torchvision://, timm:// or "
        "pip://; '' for none.",
    ] = ""
    weights_ignore_classes: Annotated[
        bool, "Start the layers that depend on NUM_CLASSES anew where WEIGHTS were trained on another number."
    ] = False
    device: Annotated[Literal["auto", "cuda", "cpu"], "Where to run; auto: CUDA where there is one."] = "auto"
    mask_on: Annotated[bool, "Predict instance masks (GeneralizedRCNN)."] = False
    pixel_mean: Annotated[
        tuple[float, float, float], "Subtracted from each channel, in INPUT.FORMAT's order."
    ] = (
        103.53,
        116.28,
        123.675,
    )
    pixel_std: Annotated[
        tuple[PositiveFloat, PositiveFloat, PositiveFloat], "Each channel is divided by this."
    ] = (
        1.0,
        1.0,
        1.0,
    )
    nms_type: Annotated[Literal["normal"] | None, "NMS of FCOS, ATSS, POTO and GFL; None for none."] = (
        "normal"
    )
    backbone: BackboneConfig = BackboneConfig()
    resnets: ResnetsConfig = ResnetsConfig()
    swint: SwintConfig = SwintConfig()
    fpn: FpnConfig = FpnConfig()
    anchor_generator: AnchorGeneratorConfig = AnchorGeneratorConfig()
    shift_generator: ShiftGeneratorConfig = ShiftGeneratorConfig()
    retinanet: RetinanetConfig = RetinanetConfig()
    fcos: FcosConfig = FcosConfig()
    atss: AtssConfig = AtssConfig()
    poto: PotoConfig = PotoConfig()
    gfl: GflConfig = GflConfig()
    proposal_generator: ProposalGeneratorConfig = ProposalGeneratorConfig()
    rpn: RpnConfig = RpnConfig()
    roi_heads: RoiHeadsConfig = RoiHeadsConfig()
    roi_box_head: RoiBoxHeadConfig = RoiBoxHeadConfig()
    roi_mask_head: RoiMaskHeadConfig = RoiMaskHeadConfig()
    distillator: DistillatorConfig = field(default_factory=DistillatorConfig)
    reciprocal_fpn_strides: Annotated[tuple[float, ...], UNUSED] = (
        0.125,
        0.0625,
        0.03125,
        0.015625,
        0.0078125,
    )
    load_boxmap: Annotated[bool, UNUSED] = False
    load_box_mask: Annotated[bool, UNUSED] = False
    stronger_augs: Annotated[bool, UNUSED] = False
