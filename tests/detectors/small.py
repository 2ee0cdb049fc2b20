"""A small RetinaNet and batches of random pixels for tests."""

import torch

from lgd.backbones.resnet import ResNet
from lgd.detectors.retinanet import RetinaNet
from lgd.layers.fpn import FPN, TopBlockP6P7
from lgd.structures import Batch, Targets

ANCHOR_SIZES = [[4.0 * 2**level, 6.0 * 2**level] for level in range(3, 8)]


def make_retinanet(num_classes=3, channels=16, **kwargs):
    torch.manual_seed(0)
    backbone = ResNet(depth=18, stem_out_channels=8, res2_out_channels=8)
    top_block = TopBlockP6P7(backbone.channels["res5"], channels, "res5")
    neck = FPN(
        in_channels=backbone.channels,
        in_strides=backbone.strides,
        out_channels=channels,
        top_block=top_block,
    )
    settings = {
        "anchor_sizes": ANCHOR_SIZES,
        "aspect_ratios": [[0.5, 1.0, 2.0]],
        "pixel_mean": [100.0, 110.0, 120.0],
        "pixel_std": [50.0, 55.0, 60.0],
        "num_convs": 1,
    }
    return RetinaNet(backbone=backbone, neck=neck, num_classes=num_classes, **{**settings, **kwargs})


def excite_head(detector):
    """Make a fresh head detect things: varied scores of some 0.1, boxes near their anchors."""
    for name, std in (("cls_score", 0.1), ("bbox_pred", 0.03)):
        torch.nn.init.normal_(getattr(detector.head, name).weight, std=std)
    torch.nn.init.constant_(detector.head.cls_score.bias, -2.0)
    for tower in (detector.head.cls_subnet, detector.head.bbox_subnet):
        torch.nn.init.kaiming_normal_(tower[0].weight)


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
