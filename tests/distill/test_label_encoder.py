import pytest
import torch

from lgd.distill.label_encoder import (
    MOST_ONE_HOT,
    LabelEncoder,
    SpatialTransformer,
    describe_labels,
    descriptor_width,
    format_for,
)
from lgd.structures import Outlines, Targets
from tests.distill.slow_teacher import embed_labels

TARGETS = Targets(
    boxes=torch.tensor(
        [[[10.0, 20.0, 50.0, 40.0], [0.0, 0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]
    ),
    labels=torch.tensor([[1, 0], [0, 0]]),
    valid=torch.tensor([[True, False], [False, False]]),
)


def describe(targets=TARGETS, **kwargs):
    settings = {
        "num_classes": 2,
        "category_format": "one_hot",
        "add_context_box": False,
        "dtype": torch.float64,
    }
    return describe_labels(targets, (80, 100), **{**settings, **kwargs})


def test_by_hand():
    rows = describe()
    assert rows.valid.tolist() == [[True, False], [True, False]]
    assert rows.boxes[:, 0].tolist() == [[10, 20, 50, 40], [0, 0, 1, 1]]
    expected = [[-0.8, -0.5, 0.0, 0.0, -1.0, 1.0], [-1.0, -1.0, -0.98, -0.975, -1.0, -1.0]]
    assert torch.allclose(rows.descriptors[:, 0], torch.tensor(expected, dtype=torch.float64))


def test_context_by_hand():
    rows = describe(add_context_box=True)
    assert rows.valid.tolist() == [[True, False, True], [False, False, True]]
    assert rows.boxes[:, 2].tolist() == [[0, 0, 99, 79], [0, 0, 1, 1]]
    expected = [[-1.0, -1.0, 0.98, 0.975, -1.0, -1.0], [-1.0, -1.0, -0.98, -0.975, -1.0, -1.0]]
    assert torch.allclose(rows.descriptors[:, 2], torch.tensor(expected, dtype=torch.float64))


def test_class_as_one_number():
    rows = describe(category_format="norm_classes", add_context_box=True)
    assert rows.descriptors.shape == (2, 3, 5)
    assert rows.descriptors[0, 0, 4] == 0.0  # 2 * 1 / 2 - 1
    assert rows.descriptors[0, 2, 4] == -1.0


def test_class_as_learned_numbers():
    embedding = torch.arange(6.0, dtype=torch.float64).view(2, 3)
    rows = describe(category_format="embedding", add_context_box=True, embedding=embedding)
    assert rows.descriptors.shape == (2, 3, 7)
    assert rows.descriptors[0, 0, 4:].tolist() == [5, 7, 9]  # 2 * 3 - 1, ...
    assert (rows.descriptors[0, 1:, 4:] == -1).all()  # the unused slot and the context
    assert (rows.descriptors[1, :, 4:] == -1).all()  # the image without objects


def test_few_classes_are_one_hot_many_embedded():
    formats = [format_for(num_classes) for num_classes in (1, 80, MOST_ONE_HOT, MOST_ONE_HOT + 1, 1203)]
    assert formats == ["one_hot"] * 3 + ["embedding"] * 2


@pytest.mark.parametrize(
    ("category_format", "width"), [("one_hot", 84), ("norm_classes", 5), ("embedding", 68)]
)
def test_width(category_format, width):
    assert descriptor_width(80, category_format) == width
    assert descriptor_width(80, category_format, use_masks=True) == width + 49


def half_masks():
    """The left half of each box of TARGETS' shape is its object's mask, in the unused slots too."""
    x1, y1, x2, y2 = torch.tensor([10.0, 20.0, 30.0, 40.0]).expand(2, 2, 4).unbind(-1)
    corners = [torch.stack(c, -1) for c in ((x1, y1), (x2, y1), (x2, y2), (x1, y2))]
    edges = torch.stack(
        [torch.cat([a, b], -1) for a, b in zip(corners, corners[1:] + corners[:1], strict=True)], 2
    )
    return Outlines(edges, torch.zeros(2, 2, 4, dtype=torch.int64), 1)


@pytest.mark.parametrize("add_context_box", [False, True])
def test_masks_by_hand(add_context_box):
    """3.5 of 7 columns, which COCO's rule rounds to 4; the context full; nothing in unused and dummy rows."""
    targets = Targets(TARGETS.boxes, TARGETS.labels, TARGETS.valid, half_masks())
    rows = describe(targets, use_masks=True, add_context_box=add_context_box)
    assert torch.equal(rows.descriptors[..., :6], describe(add_context_box=add_context_box).descriptors)
    masks = rows.descriptors[..., 6:].unflatten(-1, (7, 7))
    left = torch.tensor([1.0] * 4 + [-1.0] * 3, dtype=torch.float64)
    assert torch.equal(masks[0, 0], left.expand(7, 7))
    assert (masks[0, 1] == -1).all()
    assert (masks[1] == -1).all()
    if add_context_box:
        assert (masks[0, 2] == 1).all()


def test_grid_lies_over_the_unclamped_box():
    """A box that reaches outside of the canvas keeps its place; only the coordinates are clamped."""
    boxes = torch.tensor([[[-20.0, 20.0, 20.0, 60.0]]])
    edges = torch.tensor([[[[0.0, 0, 20, 0], [20, 0, 20, 80], [20, 80, 0, 80], [0, 80, 0, 0]]]])
    outlines = Outlines(edges, torch.zeros(1, 1, 4, dtype=torch.int64), 1)
    one = torch.ones(1, 1, dtype=torch.bool)
    rows = describe(Targets(boxes, one.long(), one, outlines), use_masks=True)
    assert rows.boxes.tolist() == [[[0, 20, 20, 60]]]
    assert rows.descriptors[0, 0, 6:13].tolist() == [-1.0] * 4 + [1.0] * 3


def test_boxes_are_clamped_to_the_last_pixel():
    boxes = torch.tensor([[[-5.0, -5.0, 100.0, 80.0]]])
    targets = Targets(boxes, torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool))
    assert describe(targets).boxes.tolist() == [[[0, 0, 99, 79]]]


def test_transformer_multiplies_a_row_by_its_matrix():
    torch.manual_seed(0)
    net = SpatialTransformer(3)
    torch.nn.init.zeros_(net.fc3.weight)
    net.fc3.bias.data = torch.arange(9.0)
    assert net(torch.tensor([[1.0, 10.0, 100.0]])).tolist() == [[630.0, 741.0, 852.0]]


@pytest.mark.parametrize("width", [{}, {"hidden_width": 8}], ids=str)
def test_encoder_like_one_row_at_a_time(width):
    torch.manual_seed(0)
    encoder = LabelEncoder(descriptor_width=6, embedding_width=12, **width).double()
    rows = describe(add_context_box=True)
    with torch.no_grad():
        embeddings = encoder(rows)
        for image in range(2):
            valid = rows.valid[image]
            slow = embed_labels(encoder, list(rows.descriptors[image][valid]))
            assert torch.allclose(embeddings[image][valid], torch.stack(slow), atol=1e-10)


def test_images_and_unused_rows_do_not_touch_each_other():
    torch.manual_seed(0)
    encoder = LabelEncoder(descriptor_width=6, embedding_width=12).double()
    rows = describe(add_context_box=True)
    changed = torch.where(rows.valid[..., None], rows.descriptors, 0.3)
    changed[1] = 0.7
    other = type(rows)(rows.boxes, changed, rows.valid)
    assert torch.equal(encoder(rows)[0][rows.valid[0]], encoder(other)[0][rows.valid[0]])


def test_stays_in_single_precision_under_autocast():
    torch.manual_seed(0)
    encoder = LabelEncoder(descriptor_width=6, embedding_width=12)
    rows = describe(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder(rows), encoder(rows).float())
        inside = encoder(rows)
    assert torch.equal(inside, encoder(rows))


def test_a_canvas_may_be_known_to_the_device_alone():
    by_numbers, by_tensor = (
        describe_labels(
            TARGETS,
            canvas,
            num_classes=4,
            category_format="one_hot",
            add_context_box=True,
            dtype=torch.float32,
        )
        for canvas in ((13, 17), torch.tensor([13, 17]))
    )
    assert torch.equal(by_numbers.boxes, by_tensor.boxes)
    assert torch.allclose(by_numbers.descriptors, by_tensor.descriptors)
    assert torch.equal(by_numbers.valid, by_tensor.valid)
