"""Objects and locations for tests of assigners."""

import torch

from lgd.detectors.point_head import PointPredictions
from lgd.detectors.points import PointLevel
from lgd.ops.locations import grid_locations
from lgd.structures import Targets

STRIDES = (8, 16, 32, 64, 128)


def make_levels(height=160, width=224):
    return [
        PointLevel(
            grid_locations(
                -(-height // stride),
                -(-width // stride),
                stride,
                offset=0.5,
                dtype=torch.float64,
                device="cpu",
            ),
            stride,
        )
        for stride in STRIDES
    ]


def make_targets(num_objects, *, seed=0, num_classes=5, whole_pixels=False, scale=1.0):
    """Boxes of all sizes in `scale` times 160 x 224 pixels, in scattered slots; `whole_pixels` for ties."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(num_objects), max(1, *num_objects) + 2)
    centers = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * torch.tensor([224.0, 160.0])
    sizes = 4 * 50 ** torch.rand(*shape, 2, generator=generator, dtype=torch.float64)
    boxes = torch.cat([centers - sizes / 2, centers + sizes / 2], dim=-1)
    boxes = (boxes / 4).round() * 4 if whole_pixels else boxes * scale
    valid = torch.rand(shape, generator=generator).argsort(dim=1) < torch.tensor(num_objects)[:, None]
    labels = torch.randint(0, num_classes, shape, generator=generator)
    return Targets(boxes, labels * valid, valid)


def make_predictions(levels, num_images, *, seed=0, num_classes=5):
    generator = torch.Generator().manual_seed(seed)
    shape = (num_images, sum(len(level.locations) for level in levels))
    return PointPredictions(
        logits=torch.randn(*shape, num_classes, generator=generator, dtype=torch.float64),
        distances=torch.rand(*shape, 4, generator=generator, dtype=torch.float64) * 60,
        centerness=None,
    )


def locations_and_strides(levels):
    """[((x, y), stride)] of all levels."""
    return [(tuple(xy), level.stride) for level in levels for xy in level.locations.tolist()]


def objects_of(targets, image):
    """[(slot, box)] of one image."""
    valid = targets.valid[image].nonzero().squeeze(1).tolist()
    return [(slot, targets.boxes[image, slot].tolist()) for slot in valid]


def overlap(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
    return width * height / (areas - width * height) if width * height > 0 else 0.0


def in_center(xy, box, radius):
    """Whether a location is strictly inside the box and, for a radius above 0, its centre box."""
    cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    radius = radius or float("inf")
    x1, x2 = max(box[0], cx - radius), min(box[2], cx + radius)
    y1, y2 = max(box[1], cy - radius), min(box[3], cy + radius)
    return x1 < xy[0] < x2 and y1 < xy[1] < y2
