"""The dynamic teacher written out: by image, object and pixel; one attention over all rows of the batch."""

import torch
import torch.nn.functional as F
from pycocotools import mask as mask_api


def layer_norm_relu(x):
    return F.relu((x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt())


def group_norm(x):
    """Of one image, all channels together."""
    return (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()


def list_polygons(outlines, image, slot):
    """The parts of an object, x and y of their corners in turn."""
    edges, parts = outlines.edges[image, slot], outlines.parts[image, slot]
    polygons = [edges[(parts == part) & edges.any(dim=1), :2] for part in range(outlines.num_parts)]
    return [corners.flatten().tolist() for corners in polygons if len(corners)]


def draw_polygons(polygons, height, width):
    rle = mask_api.merge(mask_api.frPyObjects(polygons, height, width))
    return torch.from_numpy(mask_api.decode(rle).astype("float64"))


def describe_mask(polygons, box):
    """The 49 cells over the box."""
    x1, y1, x2, y2 = box
    x_scale, y_scale = 7 / max(x2 - x1, 0.1), 7 / max(y2 - y1, 0.1)
    moved = [
        [(v - x1) * x_scale if k % 2 == 0 else (v - y1) * y_scale for k, v in enumerate(polygon)]
        for polygon in polygons
    ]
    return draw_polygons(moved, 7, 7).flatten().tolist()


def list_rows(targets, image, canvas, num_classes, category_format, context, use_masks=False, embedding=None):
    """[(clamped box, descriptor, is the context, polygons or None)] of one image."""
    height, width = canvas
    rows = []
    for slot, (box, label, valid) in enumerate(
        zip(
            targets.boxes[image].tolist(),
            targets.labels[image].tolist(),
            targets.valid[image].tolist(),
            strict=True,
        )
    ):
        if valid:
            one_hot = [float(k == label) for k in range(num_classes)]
            embedded = None if embedding is None else embedding[label].tolist()
            category = {"one_hot": one_hot, "embedding": embedded}.get(category_format, [label / num_classes])
            polygons = list_polygons(targets.outlines, image, slot) if use_masks else None
            rows.append((box, category, describe_mask(polygons, box) if use_masks else [], False, polygons))
    nothing = [0.0] * {"one_hot": num_classes, "embedding": 64}.get(category_format, 1)
    if not rows:
        rows.append(([0.0, 0.0, 1.0, 1.0], nothing, [0.0] * 49 * use_masks, context, None))
    elif context:
        rows.append(([0.0, 0.0, width, height], nothing, [1.0] * 49 * use_masks, True, "whole"))
    described = []
    for (x1, y1, x2, y2), category, mask, is_context, polygons in rows:
        x1, x2 = (min(max(x, 0.0), width - 1.0) for x in (x1, x2))
        y1, y2 = (min(max(y, 0.0), height - 1.0) for y in (y1, y2))
        descriptor = [2 * v - 1 for v in (x1 / width, y1 / height, x2 / width, y2 / height, *category, *mask)]
        described.append(
            ([x1, y1, x2, y2], torch.tensor(descriptor, dtype=torch.float64), is_context, polygons)
        )
    return described


def transform(net, x):
    hidden = x
    for layer in (net.conv1, net.conv2, net.conv3, net.fc1, net.fc2):
        hidden = layer_norm_relu(layer(hidden))
    matrix = net.fc3(hidden).reshape(len(x), len(x))
    return sum(x[i] * matrix[i] for i in range(len(x)))


def embed_labels(encoder, descriptors):
    """Of one image: list of (k,) -> list of (C,)."""
    local, deep = [], []
    for descriptor in descriptors:
        x = transform(
            encoder.stn_feat, layer_norm_relu(encoder.conv1(transform(encoder.stn_desc, descriptor)))
        )
        local.append(x)
        deep.append(layer_norm_relu(encoder.conv3(layer_norm_relu(encoder.conv2(x)))))
    shared = torch.stack(deep).max(dim=0).values
    return [layer_norm_relu(encoder.conv4(torch.cat([x, shared]))) for x in local]


def draw_mask(box, canvas, size):
    (x1, y1, x2, y2), (height, width), (h, w) = box, canvas, size
    x1, x2, y1, y2 = x1 * (w / width), x2 * (w / width), y1 * (h / height), y2 * (h / height)
    mask = torch.zeros(h, w, dtype=torch.float64)
    if x2 > x1 and y2 > y1:
        for i in range(h):
            for j in range(w):
                inside_y = abs((y1 + y2) / 2 - i) / (y2 - y1) <= 0.5
                inside_x = abs((x1 + x2) / 2 - j) / (x2 - x1) <= 0.5
                mask[i, j] = float(inside_y and inside_x)
    return mask


def draw_outline(polygons, image_size, canvas, size):
    """Of an object ("whole": of the context; None: of nothing): drawn, padded, resized by nearest."""
    height, width = image_size
    padded = torch.zeros(canvas, dtype=torch.float64)
    if polygons == "whole":
        padded[:height, :width] = 1
    elif polygons is not None:
        padded[:height, :width] = draw_polygons(polygons, height, width)
    mask = torch.zeros(size, dtype=torch.float64)
    for i in range(size[0]):
        for j in range(size[1]):
            mask[i, j] = padded[i * canvas[0] // size[0], j * canvas[1] // size[1]]
    return mask


def teach_slowly(teacher, features, batch):
    canvas = tuple(batch.images.shape[-2:])
    num_images = len(batch.images)
    rows = [
        list_rows(
            batch.targets,
            b,
            canvas,
            teacher.num_classes,
            teacher.category_format,
            teacher.add_context_box,
            teacher.use_masks,
            None if teacher.category_embedding is None else teacher.category_embedding.weight,
        )
        for b in range(num_images)
    ]
    owner = torch.tensor([b for b in range(num_images) for _ in rows[b]])
    labels = None
    if teacher.interact_pattern != "student_fill":
        embedded = [embed_labels(teacher.label_encoder, [r[1] for r in image]) for image in rows]
        labels = layer_norm_relu(
            teacher.label_projection(torch.stack([e for image in embedded for e in image]))
        )
    taught = {}
    for level, feature in features.items():
        size = tuple(feature.shape[-2:])
        masks = [
            [
                draw_outline(row[3], batch.sizes[b].tolist(), canvas, size)
                if teacher.use_masks
                else draw_mask(row[0], canvas, size)
                for row in image
            ]
            for b, image in enumerate(rows)
        ]
        related = labels
        if teacher.interact_pattern != "teacher_fill":
            pooled = []
            for b in range(num_images):
                x = F.relu(group_norm(teacher.student_projection(feature[b : b + 1])[0]))
                pooled += [(x * mask).sum(dim=(1, 2)) / max(1.0, mask.sum().item()) for mask in masks[b]]
            related = torch.stack(pooled)
        if teacher.interact_pattern.endswith("Guided"):
            query, key = (related, labels) if teacher.interact_pattern == "stuGuided" else (labels, related)
            others = owner[:, None] != owner[None, :]
            related, _ = teacher.attention(query[None], key[None], key[None], attn_mask=others)
            related = related[0]
        images = []
        for b in range(num_images):
            vectors = related[owner == b]
            painted = torch.zeros(feature.shape[1:], dtype=torch.float64)
            context = 0
            for vector, mask, (_, _, is_context, _) in zip(vectors, masks[b], rows[b], strict=True):
                if is_context:
                    context = teacher.context_projection(vector)[:, None, None]
                else:
                    painted = painted + teacher.instance_projection(vector)[:, None, None] * mask
            x = F.relu(teacher.instance_conv(painted[None])[0] + context)
            for index in (0, 3, 6):
                x = group_norm(teacher.refinement[index](x[None])[0])
                x = F.relu(x) if index < 6 else x
            images.append(x)
        taught[level] = torch.stack(images)
    return taught
