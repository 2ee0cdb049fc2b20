"""Small detectors and batches of random pixels for tests."""

import dataclasses
import math

import torch

from lgd.backbones.resnet import ResNet
from lgd.detectors.atss import ATSSAssigner
from lgd.detectors.fcos import FCOSAssigner
from lgd.detectors.gfl import GFL
from lgd.detectors.mask_head import MaskHead
from lgd.detectors.points import PointDetector
from lgd.detectors.poto import POTOAssigner
from lgd.detectors.rcnn import RCNN
from lgd.detectors.retinanet import RetinaNet
from lgd.detectors.roi_heads import BoxHead, BoxPredictor, RoIHeads
from lgd.detectors.rpn import RPN
from lgd.layers.fpn import FPN, TopBlockMaxPool, TopBlockP6P7
from lgd.structures import Batch, Outlines, Targets

SIZE_RANGES = ((-1, 16), (16, 32), (32, 64), (64, 128), (128, math.inf))
ANCHOR_SIZES = [[4.0 * 2**level, 6.0 * 2**level] for level in range(3, 8)]


def make_p3_to_p7(channels):
    torch.manual_seed(0)
    backbone = ResNet(depth=18, stem_out_channels=8, res2_out_channels=8)
    top_block = TopBlockP6P7(backbone.channels["res5"], channels, "res5")
    neck = FPN(
        in_channels=backbone.channels,
        in_strides=backbone.strides,
        out_channels=channels,
        top_block=top_block,
    )
    return backbone, neck


def make_retinanet(num_classes=3, channels=16, **kwargs):
    backbone, neck = make_p3_to_p7(channels)
    settings = {
        "anchor_sizes": ANCHOR_SIZES,
        "aspect_ratios": [[0.5, 1.0, 2.0]],
        "pixel_mean": [100.0, 110.0, 120.0],
        "pixel_std": [50.0, 55.0, 60.0],
        "num_convs": 1,
    }
    return RetinaNet(backbone=backbone, neck=neck, num_classes=num_classes, **{**settings, **kwargs})


def make_fcos(**kwargs):
    return make_point_detector(FCOSAssigner(1.5, SIZE_RANGES), **kwargs)


def make_atss(**kwargs):
    return make_point_detector(ATSSAssigner(anchor_scale=8, num_nearest=9), box_loss_weight=2.0, **kwargs)


def make_poto(**kwargs):
    settings = {"centerness": None, "box_loss_weight": 2.0}
    return make_point_detector(POTOAssigner(alpha=0.8, center_radius=1.5), **{**settings, **kwargs})


def make_gfl(**kwargs):
    return make_point_detector(ATSSAssigner(anchor_scale=8, num_nearest=9), make=GFL, **kwargs)


def make_point_detector(assigner, num_classes=3, channels=16, make=PointDetector, **kwargs):
    backbone, neck = make_p3_to_p7(channels)
    settings = {
        "assigner": assigner,
        "pixel_mean": [100.0, 110.0, 120.0],
        "pixel_std": [50.0, 55.0, 60.0],
        "num_convs": 1,
    }
    return make(backbone=backbone, neck=neck, num_classes=num_classes, **{**settings, **kwargs})


def make_faster_rcnn(num_classes=3, channels=16, *, rpn=None, roi_heads=None, mask_head=None):
    """`rpn` and `roi_heads` are settings that differ from the ones here."""
    torch.manual_seed(0)
    backbone = ResNet(
        depth=18, stem_out_channels=8, res2_out_channels=8, out_features=("res2", "res3", "res4", "res5")
    )
    neck = FPN(
        in_channels=backbone.channels,
        in_strides=backbone.strides,
        out_channels=channels,
        top_block=TopBlockMaxPool(),
    )
    rpn_settings = {
        "anchor_sizes": [[8.0], [16.0], [32.0], [64.0], [128.0]],
        "aspect_ratios": [[0.5, 1.0, 2.0]],
    }
    box_head = BoxHead(channels=channels, fc_channels=24, resolution=3)
    return RCNN(
        backbone=backbone,
        neck=neck,
        proposal_generator=RPN(channels=channels, strides=neck.strides, **rpn_settings | (rpn or {})),
        roi_heads=RoIHeads(
            num_classes=num_classes,
            strides={level: neck.strides[level] for level in ("p2", "p3", "p4", "p5")},
            box_head=box_head,
            box_predictor=BoxPredictor(in_channels=24, num_classes=num_classes),
            mask_head=mask_head,
            **{"batch_size_per_image": 64} | (roi_heads or {}),
        ),
        pixel_mean=[100.0, 110.0, 120.0],
        pixel_std=[50.0, 55.0, 60.0],
    )


def make_mask_rcnn(num_classes=3, channels=16, **kwargs):
    torch.manual_seed(1)
    mask_head = MaskHead(
        channels=channels, num_classes=num_classes, num_convs=1, conv_channels=8, resolution=4
    )
    return make_faster_rcnn(num_classes, channels, mask_head=mask_head, **kwargs)


def excite_head(detector):
    """Make a fresh head detect things: varied scores of some 0.1, boxes near their anchors."""
    if isinstance(detector, RCNN):
        for layer, std in (
            (detector.proposal_generator.rpn_head.objectness_logits, 0.3),
            (detector.roi_heads.box_predictor.cls_score, 0.3),
            (detector.roi_heads.box_predictor.bbox_pred, 0.1),
        ):
            torch.nn.init.normal_(layer.weight, std=std)
        torch.nn.init.kaiming_normal_(detector.proposal_generator.rpn_head.conv.weight)
        return
    for name, std in (("cls_score", 0.1), ("bbox_pred", 0.03)):
        torch.nn.init.normal_(getattr(detector.head, name).weight, std=std)
    torch.nn.init.constant_(detector.head.cls_score.bias, -2.0)
    for tower in (detector.head.cls_subnet, detector.head.bbox_subnet):
        torch.nn.init.kaiming_normal_(tower[0].weight)
    if isinstance(detector, PointDetector):
        torch.nn.init.constant_(detector.head.bbox_pred.bias, 1.0)


def make_batch(num_objects, num_classes=3, height=64, width=96, dtype=torch.float64, seed=0):
    """Images that fill part of the canvas, image b with num_objects[b] objects in scattered slots."""
    generator = torch.Generator().manual_seed(seed)
    num_images, num_slots = len(num_objects), max(1, *num_objects) + 1
    sizes = torch.tensor([[height - 7 * b, width - 5 * b] for b in range(num_images)])
    inside = (torch.arange(height)[:, None] < sizes[:, 0, None, None]) & (
        torch.arange(width) < sizes[:, 1, None, None]
    )
    images = torch.randint(0, 256, (num_images, 3, height, width), generator=generator)
    corners = torch.rand(num_images, num_slots, 2, generator=generator, dtype=dtype) * 40
    boxes = torch.cat(
        [corners, corners + 3 + 30 * torch.rand(corners.shape, generator=generator, dtype=dtype)], dim=-1
    )
    labels = torch.randint(0, num_classes, (num_images, num_slots), generator=generator)
    order = torch.rand(num_images, num_slots, generator=generator).argsort(dim=1)
    valid = order < torch.tensor(num_objects)[:, None]
    return Batch(
        images=(images * inside[:, None]).to(torch.uint8),
        sizes=sizes,
        original_sizes=2 * sizes,
        image_ids=torch.arange(num_images),
        targets=Targets(boxes * valid[..., None], labels * valid, valid),
    )


def with_masks(batch):
    """Give every object the mask of a diamond in its box, the odd slots a second, smaller part."""
    x1, y1, x2, y2 = batch.targets.boxes.unbind(-1)
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    corners = torch.stack([torch.stack(c, -1) for c in ((x, y1), (x2, y), (x, y2), (x1, y))], dim=-2)
    diamond = torch.cat([corners, corners.roll(-1, dims=-2)], dim=-1)
    center = torch.stack([x1, y1, x1, y1], dim=-1)[..., None, :]
    odd = (torch.arange(x.shape[1]) % 2 == 1)[:, None, None]
    second = torch.where(odd, center + (diamond - center) / 4, 0)
    edges = torch.cat([diamond, second], dim=-2)
    parts = (torch.arange(8) >= 4).long().expand(*edges.shape[:2], 8)
    outlines = Outlines(edges * batch.targets.valid[..., None, None], parts, 2)
    return dataclasses.replace(batch, targets=dataclasses.replace(batch.targets, outlines=outlines))


DETECTORS = {
    "retinanet": make_retinanet,
    "fcos": make_fcos,
    "atss": make_atss,
    "poto": make_poto,
    "gfl": make_gfl,
    "faster_rcnn": make_faster_rcnn,
    "mask_rcnn": make_mask_rcnn,
}
