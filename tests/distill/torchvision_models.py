"""Small detectors of torchvision, and images and targets for them."""

import torch
from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

CHANNELS = 32
NUM_CLASSES = 3
"""Without the background."""
SIDES = {"min_size": (48, 64), "max_size": 96}
"""Of the images in training, one drawn for each; the last in evaluation."""


def make_backbone():
    """Levels of stride 4, 8, 16, and 32 by pooling."""
    stages = nn.Sequential()
    widths = {"stem": (3, 8), "fine": (8, 8), "middle": (8, 12), "coarse": (12, 16)}
    for name, (before, after) in widths.items():
        convolution = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
        stages.add_module(name, nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU()))
    return BackboneWithFPN(stages, {"fine": "0", "middle": "1", "coarse": "2"}, [8, 12, 16], CHANNELS)


def make_anchors(*sizes, ratios=(0.5, 1.0, 2.0)):
    return AnchorGenerator(tuple((size,) for size in sizes), (ratios,) * len(sizes))


def make_retinanet(**settings):
    anchors = make_anchors(8, 16, 32, 64)
    return RetinaNet(make_backbone(), NUM_CLASSES, anchor_generator=anchors, **SIDES | settings)


def make_fcos(**settings):
    anchors = make_anchors(4, 8, 16, 32, ratios=(1.0,))
    return FCOS(make_backbone(), NUM_CLASSES, anchor_generator=anchors, **SIDES | settings)


def rcnn_settings():
    return {
        "rpn_anchor_generator": make_anchors(8, 16, 32, 64),
        "rpn_pre_nms_top_n_train": 60,
        "rpn_batch_size_per_image": 32,
        "box_batch_size_per_image": 32,
        # As in torchvision's second version, with batch norms in the head.
        "box_head": FastRCNNConvFCHead((CHANNELS, 7, 7), [8], [24], norm_layer=nn.BatchNorm2d),
        "box_predictor": FastRCNNPredictor(24, 1 + NUM_CLASSES),
    }


def make_faster_rcnn(**settings):
    return FasterRCNN(make_backbone(), **SIDES | rcnn_settings() | settings)


def make_mask_rcnn(**settings):
    masks = {
        "mask_head": MaskRCNNHeads(CHANNELS, (8,), 1),
        "mask_predictor": MaskRCNNPredictor(8, 8, 1 + NUM_CLASSES),
    }
    return MaskRCNN(make_backbone(), **SIDES | rcnn_settings() | masks | settings)


SMALL = {
    "retinanet": make_retinanet,
    "fcos": make_fcos,
    "faster_rcnn": make_faster_rcnn,
    "mask_rcnn": make_mask_rcnn,
}


def make_model(name, **settings):
    torch.manual_seed(0)
    return SMALL[name](**settings)


def losses_of(model, *arguments, **keywords):
    """What a model computes with the random draws of one seed."""
    torch.manual_seed(7)
    return model(*arguments, **keywords)


def make_data(name, num_objects=(2, 0, 3), seed=0):
    """Images of noise with bright rectangles, whose colour is their class; the targets have masks."""
    generator = torch.Generator().manual_seed(seed)
    first = 1 if "rcnn" in name else 0
    images, targets = [], []
    for number in num_objects:
        height, width = torch.randint(50, 70, (2,), generator=generator).tolist()
        image = torch.rand(3, height, width, generator=generator) * 0.3
        corners = torch.randint(0, 24, (number, 2), generator=generator)
        boxes = torch.cat([corners, corners + torch.randint(10, 25, (number, 2), generator=generator)], 1)
        classes = torch.randint(0, NUM_CLASSES, (number,), generator=generator)
        masks = torch.zeros(number, height, width, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2), kind in zip(masks, boxes.tolist(), classes.tolist(), strict=True):
            image[kind, y1:y2, x1:x2] += 0.7
            mask[y1:y2, x1:x2] = 1
            mask[y1, x1] = 0
        images.append(image)
        targets.append({"boxes": boxes.float(), "labels": classes + first, "masks": masks})
    return images, targets
