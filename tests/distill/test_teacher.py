import dataclasses
from typing import get_args

import pytest
import torch

from lgd.distill.label_encoder import EMBEDDING_DIM, CategoryFormat, describe_labels
from lgd.distill.teacher import DynamicTeacher, inside_masks, inside_outlines, taps_pay
from tests.detectors.small import make_batch, with_masks
from tests.distill.slow_teacher import draw_mask, teach_slowly

PATTERNS = ["stuGuided", "labelGuided", "student_fill", "teacher_fill"]


def make_teacher(**kwargs):
    torch.manual_seed(0)
    settings = {"channels": 8, "num_classes": 3, "num_heads": 2}
    return DynamicTeacher(**{**settings, **kwargs}).double()


def make_features(num_images, channels=8, requires_grad=False):
    generator = torch.Generator().manual_seed(1)
    return {
        level: torch.randn(
            num_images, channels, *size, generator=generator, dtype=torch.float64
        ).requires_grad_(requires_grad)
        for level, size in {"p3": (8, 12), "p4": (4, 6), "p5": (2, 3), "p6": (1, 2), "p7": (1, 1)}.items()
    }


def masks_of(box, size, canvas=(64, 96)):
    boxes = torch.tensor([[box]], dtype=torch.float64)
    return inside_masks(boxes, torch.ones(1, 1, dtype=torch.bool), canvas, size)[0, 0]


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("num_objects", [1, 3, 4, 9])
def test_maps_are_drawn_as_painted_and_convolved(num_objects, context):
    """32 channels: up to 3 objects go through the kernel's taps, more are painted first: no difference."""
    teacher = make_teacher(channels=32, add_context_box=context)
    embeddings = torch.randn(2, num_objects + context, 32, dtype=torch.float64, requires_grad=True)
    masks = (torch.rand(2, num_objects + context, 35) < 0.4).double()
    vectors = teacher.instance_projection(embeddings[:, :num_objects])
    assert taps_pay(vectors, teacher.instance_conv) is (num_objects <= 3)
    painted = torch.einsum("bsc,bsp->bcp", vectors, masks[:, :num_objects]).view(2, 32, 5, 7)
    expected = teacher.instance_conv(painted)
    if context:
        expected = expected + teacher.context_projection(embeddings[:, -1])[:, :, None, None]
    expected = teacher.refinement(expected.relu())
    found = teacher._render(embeddings, masks, (5, 7))
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    inputs = [embeddings, *teacher.instance_conv.parameters(), *teacher.refinement.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_mask_by_hand():
    """Columns 1 to 3 and rows 0 to 1: borders belong to the box."""
    mask = masks_of([8.0, 0.0, 24.0, 8.0], (8, 12))
    expected = torch.zeros(8, 12, dtype=torch.bool)
    expected[0:2, 1:4] = True
    assert torch.equal(mask, expected)


def test_context_covers_every_level():
    for size in [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]:
        assert masks_of([0.0, 0.0, 95.0, 63.0], size).all()


def test_boxes_between_cells_or_without_extent_hold_nothing():
    assert not masks_of([9.0, 9.0, 14.0, 14.0], (8, 12)).any()
    assert not masks_of([8.0, 0.0, 8.0, 40.0], (8, 12)).any()


def test_unused_rows_have_no_mask():
    boxes = torch.tensor([[[0.0, 0.0, 50.0, 50.0]]])
    assert not inside_masks(boxes, torch.zeros(1, 1, dtype=torch.bool), (64, 96), (8, 12)).any()


@pytest.mark.parametrize("size", [(8, 12), (4, 6), (1, 2)])
def test_masks_like_one_pixel_at_a_time(size):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(1, 40, 2, generator=generator, dtype=torch.float64) * 50
    boxes = torch.cat(
        [corners, corners + torch.rand(corners.shape, generator=generator) * 45], dim=-1
    ).round()
    masks = inside_masks(boxes, torch.ones(1, 40, dtype=torch.bool), (64, 96), size)[0]
    for box, mask in zip(boxes[0].tolist(), masks, strict=True):
        assert torch.equal(mask.double(), draw_mask(box, (64, 96), size))


@pytest.mark.parametrize("category_format", get_args(CategoryFormat))
@pytest.mark.parametrize("add_context_box", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_like_one_object_at_a_time(pattern, add_context_box, category_format):
    teacher = make_teacher(
        interact_pattern=pattern, add_context_box=add_context_box, category_format=category_format
    )
    batch, features = make_batch([2, 0, 4]), make_features(3)
    with torch.no_grad():
        ours, slow = teacher(features, batch), teach_slowly(teacher, features, batch)
    assert list(ours) == list(features)
    for level in features:
        assert torch.allclose(ours[level], slow[level], atol=1e-9), level


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("category_format", get_args(CategoryFormat))
@pytest.mark.parametrize("add_context_box", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_with_masks_like_one_object_at_a_time(pattern, add_context_box, category_format):
    teacher = make_teacher(
        interact_pattern=pattern,
        add_context_box=add_context_box,
        category_format=category_format,
        use_masks=True,
    )
    batch, features = with_masks(make_batch([2, 0, 4])), make_features(3)
    with torch.no_grad():
        ours, slow = teacher(features, batch), teach_slowly(teacher, features, batch)
    for level in features:
        assert torch.allclose(ours[level], slow[level], atol=1e-9), level


def test_masks_matter():
    batch, features = with_masks(make_batch([2, 3])), make_features(2)
    teacher = make_teacher(use_masks=True)
    smaller = dataclasses.replace(batch.targets.outlines, edges=batch.targets.outlines.edges * 0.9)
    other = dataclasses.replace(batch, targets=dataclasses.replace(batch.targets, outlines=smaller))
    assert not torch.allclose(teacher(features, batch)["p3"], teacher(features, other)["p3"])


def test_inside_outlines_by_hand():
    """Of the sampled pixels a diamond from 0 to 16 covers two; the context covers the image's area."""
    batch = make_batch([1, 0])
    valid = torch.tensor([[True, False], [False, False]])
    boxes = torch.tensor([0.0, 0.0, 16.0, 16.0]).expand(2, 2, 4)
    batch = with_masks(
        dataclasses.replace(batch, targets=dataclasses.replace(batch.targets, boxes=boxes, valid=valid))
    )
    batch = dataclasses.replace(batch, sizes=torch.tensor([[33, 96], [64, 96]]))
    objects, context = inside_outlines(batch, (8, 12), add_context_box=True).split([2, 1], dim=1)
    assert objects[0, 0].nonzero().tolist() == [[0, 1], [1, 1]]
    assert not objects[0, 1].any()
    assert not objects[1].any()
    assert context[0, 0].all(dim=1).tolist() == [True] * 5 + [False] * 3
    assert not context[1].any()
    assert torch.equal(inside_outlines(batch, (8, 12), add_context_box=False), objects)


@pytest.mark.parametrize("num_objects", [[2, 3], [0, 1], [0, 0]])
@pytest.mark.parametrize("add_context_box", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("use_masks", [False, True])
def test_every_parameter_gets_a_gradient(pattern, add_context_box, num_objects, use_masks):
    teacher = make_teacher(interact_pattern=pattern, add_context_box=add_context_box, use_masks=use_masks)
    taught = teacher(make_features(2), with_masks(make_batch(num_objects)))
    sum((x**3).sum() for x in taught.values()).backward()
    assert [name for name, p in teacher.named_parameters() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in teacher.parameters())


@pytest.mark.parametrize("pattern", ["stuGuided", "labelGuided", "teacher_fill"])
@pytest.mark.parametrize("num_objects", [[2, 3], [0, 2], [0, 0]])
def test_embedded_classes_learn_where_they_occur(pattern, num_objects):
    teacher = make_teacher(interact_pattern=pattern, category_format="embedding", num_classes=300)
    batch = make_batch(num_objects)
    taught = teacher(make_features(2), batch)
    sum((x**3).sum() for x in taught.values()).backward()
    learns = teacher.category_embedding.weight.grad.any(dim=1).nonzero().flatten()
    assert learns.tolist() == batch.targets.labels[batch.targets.valid].unique().tolist()


@pytest.mark.parametrize("num_objects", [[2, 0, 4], [0, 0], [1]])
@pytest.mark.parametrize("settings", [{}, {"add_context_box": True}, {"use_masks": True}])
def test_embedded_by_the_unit_matrix_classes_are_one_hot(num_objects, settings):
    """The two forms are one: the same features and gradients, to the bit."""
    teachers = [
        make_teacher(num_classes=EMBEDDING_DIM, category_format=category_format, **settings)
        for category_format in ("one_hot", "embedding")
    ]
    unit = torch.eye(EMBEDDING_DIM, dtype=torch.float64)
    state = {**teachers[0].state_dict(), "category_embedding.weight": unit}
    teachers[1].load_state_dict(state)
    batch, found = with_masks(make_batch(num_objects)), []
    for teacher in teachers:
        taught = teacher(make_features(len(num_objects)), batch)
        sum((x**3).sum() for x in taught.values()).backward()
        gradients = {name: p.grad for name, p in teacher.named_parameters()}
        gradients.pop("category_embedding.weight", None)
        found.append({**taught, **gradients})
    one_hot, embedded = found
    assert one_hot.keys() == embedded.keys()
    assert all(torch.equal(x, embedded[name]) for name, x in one_hot.items())


def test_embedded_classes_cost_little():
    """The paper's form has 372 million weights for as many classes."""
    teacher = make_teacher(num_classes=1203, category_format="embedding")
    names = [name for name, _ in teacher.named_parameters() if name.startswith("category_embedding")]
    assert names == ["category_embedding.weight"]
    assert teacher.category_embedding.weight.shape == (1203, EMBEDDING_DIM)
    assert sum(p.numel() for p in teacher.label_encoder.parameters()) < 4_000_000


@pytest.mark.parametrize("detach", [False, True])
def test_detach_appearance_embed(detach):
    features = make_features(1, requires_grad=True)
    taught = make_teacher(detach_appearance_embed=detach)(features, make_batch([2]))
    sum((x**3).sum() for x in taught.values()).backward()
    assert (features["p3"].grad is None) == detach


def test_only_the_parameters_a_pattern_uses():
    parts = {
        pattern: {name.split(".")[0] for name, _ in make_teacher(interact_pattern=pattern).named_parameters()}
        for pattern in PATTERNS
    }
    always = {"instance_projection", "instance_conv", "refinement"}
    labels, appearance = {"label_encoder", "label_projection"}, {"student_projection"}
    assert parts["stuGuided"] == parts["labelGuided"] == always | labels | appearance | {"attention"}
    assert parts["student_fill"] == always | appearance
    assert parts["teacher_fill"] == always | labels
    with_context = {name.split(".")[0] for name, _ in make_teacher(add_context_box=True).named_parameters()}
    assert with_context == parts["stuGuided"] | {"context_projection"}
    fill = make_teacher(interact_pattern="student_fill", category_format="embedding")
    assert {name.split(".")[0] for name, _ in fill.named_parameters()} == parts["student_fill"]


def test_state_names():
    names = set(make_teacher(add_context_box=True).state_dict())
    assert {
        "label_encoder.stn_desc.conv1.weight",
        "label_encoder.stn_feat.fc3.bias",
        "label_encoder.conv4.weight",
        "attention.in_proj_weight",
        "attention.in_proj_bias",
        "attention.out_proj.weight",
        "attention.out_proj.bias",
        "refinement.0.weight",
        "refinement.3.weight",
        "refinement.6.bias",
        "context_projection.weight",
    } <= names


def test_images_are_taught_alone():
    """The slots of the batch's fullest image don't show in the others' features."""
    teacher, features = make_teacher(add_context_box=True), make_features(2)
    batch = make_batch([1, 6])
    targets = batch.targets
    first = dataclasses.replace(
        batch,
        images=batch.images[:1],
        targets=dataclasses.replace(
            targets, boxes=targets.boxes[:1], labels=targets.labels[:1], valid=targets.valid[:1]
        ),
    )
    together = teacher(features, batch)
    alone = teacher({level: x[:1] for level, x in features.items()}, first)
    for level in features:
        assert torch.allclose(together[level][:1], alone[level], atol=1e-10)


def test_half_precision_autocast():
    teacher, batch = make_teacher(add_context_box=True).float(), make_batch([2, 1], dtype=torch.float32)
    features = {level: x.float() for level, x in make_features(2).items() if level != "p7"}
    exact = teacher(features, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = teacher(features, batch)
    for level in features:
        assert (rounded[level] - exact[level]).abs().mean() < 0.05


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"interact_pattern": "stuguided"},
            r"unknown interaction pattern 'stuguided'; choose one of \('stuG",
        ),
        ({"channels": 12, "num_heads": 8}, "8 attention heads don't divide 12 channels"),
        ({"category_format": "onehot"}, r"unknown category format 'onehot'; choose one of \('one_hot'"),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_teacher(**kwargs)


def test_masks_that_are_not_there():
    with pytest.raises(
        ValueError, match=r"no outlines; load them \(with_masks=True\), or build the teacher without"
    ):
        make_teacher(use_masks=True)(make_features(1), make_batch([2]))


def test_no_host_sync_with_masks():
    """Tensors without data: asking one for a value raises."""
    batch = with_masks(make_batch([2, 1])).to("meta")
    assert inside_outlines(batch, (8, 12), add_context_box=True).shape == (2, 4, 8, 12)
    rows = describe_labels(
        batch.targets,
        (64, 96),
        num_classes=3,
        category_format="one_hot",
        add_context_box=True,
        dtype=torch.float32,
        use_masks=True,
    )
    assert rows.descriptors.shape == (2, 4, 56)


def test_heads_matter_only_where_there_is_attention():
    assert make_teacher(channels=12, num_heads=8, interact_pattern="teacher_fill").interact_pattern


@pytest.mark.parametrize("use_masks", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_checkpointing_changes_no_bit_and_keeps_no_map_of_its_own(pattern, use_masks):
    batch = with_masks(make_batch([2, 1]))
    found = []
    for checkpoint in (False, True):
        teacher = make_teacher(
            interact_pattern=pattern, add_context_box=True, use_masks=use_masks, checkpoint=checkpoint
        )
        features = make_features(2, requires_grad=True)
        others = {tensor.data_ptr() for tensor in (*teacher.parameters(), *features.values())}
        maps = []

        def keep(tensor, maps=maps, others=others):
            if tensor.ndim == 4 and tensor.shape[:2] == (2, 8) and tensor.data_ptr() not in others:
                maps.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            taught = teacher(features, batch)
        sum(x.pow(3).sum() for x in taught.values()).backward()
        gradients = [p.grad for p in teacher.parameters()] + [x.grad for x in features.values()]
        found.append((list(taught.values()), gradients, len(maps)))
    (plain, gradients, num_maps), (again, other_gradients, num_checkpointed) = found
    assert all(map(torch.equal, plain, again))
    for one, other in zip(gradients, other_gradients, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    assert num_maps > 0
    assert num_checkpointed == 0
