"""The dynamic teacher written out: by image, object and pixel; one attention over all rows of the batch."""

import torch
import torch.nn.functional as F


def layer_norm_relu(x):
    return F.relu((x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt())


def group_norm(x):
    """Of one image, all channels together."""
    return (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()


def list_rows(targets, image, canvas, num_classes, category_format, context):
    """[(clamped box, descriptor, is the context)] of one image."""
    height, width = canvas
    rows = []
    for box, label, valid in zip(
        targets.boxes[image].tolist(),
        targets.labels[image].tolist(),
        targets.valid[image].tolist(),
        strict=True,
    ):
        if valid:
            one_hot = [float(k == label) for k in range(num_classes)]
            rows.append((box, one_hot if category_format == "one_hot" else [label / num_classes], False))
    nothing = [0.0] * (num_classes if category_format == "one_hot" else 1)
    if not rows:
        rows.append(([0.0, 0.0, 1.0, 1.0], nothing, context))
    elif context:
        rows.append(([0.0, 0.0, width, height], nothing, True))
    described = []
    for (x1, y1, x2, y2), category, is_context in rows:
        x1, x2 = (min(max(x, 0.0), width - 1.0) for x in (x1, x2))
        y1, y2 = (min(max(y, 0.0), height - 1.0) for y in (y1, y2))
        descriptor = [2 * v - 1 for v in (x1 / width, y1 / height, x2 / width, y2 / height, *category)]
        described.append(([x1, y1, x2, y2], torch.tensor(descriptor, dtype=torch.float64), is_context))
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


def teach_slowly(teacher, features, batch):
    canvas = tuple(batch.images.shape[-2:])
    num_images = len(batch.images)
    rows = [
        list_rows(
            batch.targets, b, canvas, teacher.num_classes, teacher.category_format, teacher.add_context_box
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
        masks = [[draw_mask(row[0], canvas, size) for row in image] for image in rows]
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
            for vector, mask, (_, _, is_context) in zip(vectors, masks[b], rows[b], strict=True):
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
