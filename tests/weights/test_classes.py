"""Classes in another order: every layer that depends on it, held against what it computes."""

import pytest
import torch

from lgd.detectors.mask_head import MaskHead
from lgd.detectors.point_head import PointHead
from lgd.detectors.retinanet import RetinaNetHead
from lgd.detectors.roi_heads import BoxPredictor
from lgd.distill.label_encoder import (
    CategoryEmbedding,
    LabelEncoder,
    LabelRows,
    describe_labels,
    descriptor_width,
)
from lgd.structures import Targets
from lgd.weights.classes import Classes, depends_on_classes, order_classes
from lgd.weights.load import load_weights
from lgd.weights.report import WeightsError
from tests.weights.modules import module_of
from tests.weights.test_load import INPUT, STATE, save

NAMES = ("cat", "dog", "cow", "hen", "pig")
WANTED = ("pig", "cat", "hen", "cow", "dog")
ORDER = [NAMES.index(name) for name in WANTED]
K = len(NAMES)


def classes(*names, ids=None):
    return Classes(names, ids or tuple(range(1, len(names) + 1)))


class Teacher(torch.nn.Module):
    def __init__(self, category_format):
        super().__init__()
        self.category_format = category_format


def model_with(category_format="one_hot"):
    model = torch.nn.Module()
    model.teacher = Teacher(category_format)
    return model


def reordered(module, prefix):
    """A copy of a module's weights in the wanted order."""
    state = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    ordered = order_classes(state, classes(*NAMES), classes(*WANTED), model_with())
    return {name.removeprefix(prefix): tensor for name, tensor in ordered.items()}


def assert_close(found, expected):
    """Equal, but for the order in which a matrix product adds up."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def shake(module):
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return module.eval()


def outputs(module, prefix, compute):
    """What a module gives, before and after its classes are put in order."""
    before = compute(shake(module))
    module.load_state_dict(reordered(module, prefix))
    return before, compute(module)


def test_the_dense_heads():
    x = torch.randn(2, 8, 4, 4)
    head = RetinaNetHead(channels=8, num_classes=K, num_anchors=3, num_convs=1, prior_prob=0.1)
    (logits, deltas), (logits2, deltas2) = outputs(head, "student.head.", lambda head: head(x))
    assert torch.equal(logits2, logits[..., ORDER])
    assert torch.equal(deltas2, deltas)
    head = PointHead(
        channels=32, num_classes=K, strides={"p3": 8}, num_convs=1, prior_prob=0.1, centerness="box",
        distances_in_strides=True,
    )  # fmt: skip
    x = {"p3": torch.randn(2, 32, 4, 4)}
    (one,), (other,) = outputs(head, "student.head.", lambda head: head(x))
    assert torch.equal(other.logits, one.logits[..., ORDER])
    assert torch.equal(other.distances, one.distances)


@pytest.mark.parametrize("agnostic", [False, True])
def test_the_heads_of_regions(agnostic):
    x = torch.randn(7, 16)
    predictor = BoxPredictor(in_channels=16, num_classes=K, class_agnostic=agnostic)
    (logits, deltas), (logits2, deltas2) = outputs(
        predictor, "student.roi_heads.box_predictor.", lambda predictor: predictor(x)
    )
    assert_close(logits2, logits[:, [*ORDER, K]])  # the background stays last
    assert_close(deltas2, deltas if agnostic else deltas[:, ORDER])
    x, labels = torch.randn(5, 8, 3, 3), torch.arange(K)
    head = MaskHead(channels=8, num_classes=1 if agnostic else K, num_convs=1, conv_channels=8, resolution=3)
    masks, masks2 = outputs(head, "student.roi_heads.mask_head.", lambda head: head(x, labels))
    if agnostic:
        assert_close(masks2, masks)
    else:
        turned = torch.argsort(torch.tensor(ORDER))
        assert_close(head(x, turned), masks)


class DescribingEncoder(torch.nn.Module):
    """What a teacher of embedded classes makes of labels."""

    def __init__(self):
        super().__init__()
        self.category_embedding = CategoryEmbedding(K)
        width = descriptor_width(K, "embedding")
        self.label_encoder = LabelEncoder(descriptor_width=width, embedding_width=16)

    def forward(self, labels):
        ones = torch.ones(1, len(labels), dtype=torch.bool)
        rows = describe_labels(
            Targets(torch.zeros(1, len(labels), 4), labels[None], ones),
            (64, 64),
            num_classes=K,
            category_format="embedding",
            add_context_box=True,
            dtype=torch.float32,
            embedding=self.category_embedding.weight,
        )
        return self.label_encoder(rows)[0]


def test_embedded_classes():
    """They alone depend on the order; the layers that read them, as wide as those of more classes, do not."""
    encoder, labels = DescribingEncoder(), torch.arange(K)
    before, after = outputs(encoder, "teacher.", lambda encoder: encoder(labels))
    assert not torch.allclose(after, before)
    turned = encoder(torch.argsort(torch.tensor(ORDER)))
    assert_close(turned, before)


@pytest.mark.parametrize("use_masks", [False, True])
def test_the_label_encoder(use_masks):
    width = descriptor_width(K, "one_hot", use_masks)
    encoder = LabelEncoder(descriptor_width=width, embedding_width=16).double()
    descriptors = torch.randn(2, 4, width, dtype=torch.float64)
    turned = descriptors.clone()
    turned[..., 4 : 4 + K] = descriptors[..., 4:][..., ORDER]

    def encode(encoder, descriptors):
        rows = LabelRows(torch.zeros(2, 4, 4), descriptors, torch.ones(2, 4, dtype=torch.bool))
        return encoder.double()(rows)

    before = encode(shake(encoder), descriptors)
    encoder.load_state_dict(reordered(encoder, "teacher.label_encoder."))
    torch.testing.assert_close(encode(encoder, turned), before, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(encode(encoder, descriptors), before)


def test_what_depends_on_classes():
    def depends(name, *shape, **others):
        return depends_on_classes(name, {name: torch.ones(shape), **others})

    assert depends("student.head.cls_score.bias", 1)
    assert depends("student.roi_heads.box_predictor.bbox_pred.weight", 20, 3)
    assert not depends("student.roi_heads.box_predictor.bbox_pred.weight", 4, 3)
    assert not depends("student.roi_heads.mask_head.predictor.bias", 1)
    assert not depends("student.head.bbox_pred.weight", 20, 3)
    assert depends("teacher.label_encoder.stn_desc.fc3.weight", 81, 3)
    embedding = {"teacher.category_embedding.weight": torch.ones(5, 64)}
    assert not depends("teacher.label_encoder.stn_desc.fc3.weight", 81, 3, **embedding)
    assert depends("teacher.category_embedding.weight", 5, 64)


def test_classes_by_name_and_of_one_name_by_id():
    assert classes("a", "b").places_in(classes("b", "a")) == [1, 0]
    assert classes("a", "b").places_in(classes("a", "b", ids=(7, 9))) == [0, 1]
    assert classes("a", "b").places_in(classes("a", "c")) is None
    assert classes("a", "b").places_in(classes("a", "b", "c")) is None
    twice = classes("a", "b", "b", ids=(1, 2, 3))
    assert twice.places_in(classes("b", "a", "b", ids=(3, 1, 2))) == [1, 2, 0]
    assert twice.places_in(classes("b", "a", "b", ids=(4, 5, 6))) is None


def test_a_teacher_that_knows_classes_by_their_place_cannot_change_it():
    state = {
        "teacher.label_encoder.conv1.weight": torch.zeros(64, 5),
        "student.head.cls_score.bias": torch.ones(K),
    }
    with pytest.raises(WeightsError, match="norm_classes knows them by their place; keep the order, or do"):
        order_classes(state, classes(*NAMES), classes(*WANTED), model_with("norm_classes"))
    same = order_classes(state, classes(*NAMES), classes(*NAMES), model_with("norm_classes"))
    assert same == state
    del state["teacher.label_encoder.conv1.weight"]  # a student alone starts a fresh teacher
    order_classes(state, classes(*NAMES), classes(*WANTED), model_with("norm_classes"))


def test_a_file_that_names_its_classes(tmp_path):
    content = {"format": "lgd", "model": STATE, "classes": {"names": ["a", "b"], "category_ids": [1, 2]}}
    path = save(tmp_path, content)
    width = len(STATE["student.head.cls_score.bias"]) // 2
    model = module_of(STATE)
    state = {name: t for name, t in STATE.items() if "label_encoder" not in name}
    path = save(tmp_path, content | {"model": state})
    model = module_of(state)
    load_weights(model, path, **INPUT, classes=classes("b", "a"))
    expected = state["student.head.cls_score.bias"].view(width, 2).flip(1).flatten()
    assert torch.equal(model.state_dict()["student.head.cls_score.bias"], expected)
    with pytest.raises(WeightsError) as error:
        load_weights(module_of(state), path, **INPUT, classes=classes("a", "c", "d"))
    assert str(error.value).startswith(
        f"{path}: trained on other classes (a, b) than the data has (a, c, d); "
    )
    model = module_of(state)
    report = load_weights(model, path, **INPUT, classes=classes("a", "c"), ignore_classes=True)
    assert report.dropped == ("student.head.cls_score.bias",)
    assert (model.state_dict()["student.head.cls_score.bias"] == 0).all()
    load_weights(module_of(state), path, **INPUT)  # who does not know the data takes them as they are


@pytest.mark.parametrize(
    "said", [7, [], {"names": "ab", "category_ids": [1, 2]}, {"names": ["a"], "category_ids": []}]
)
def test_a_file_that_says_nonsense_of_its_classes(tmp_path, said):
    path = save(tmp_path, {"format": "lgd", "model": STATE, "classes": said})
    with pytest.raises(WeightsError, match=r"model\.pth: what the file says of its classes is no list"):
        load_weights(module_of(STATE), path, **INPUT, classes=classes("a", "b"))


def test_layers_of_a_shape_that_none_has_are_left_as_they_are():
    shapes = {"student.head.cls_score.bias": (), "teacher.label_encoder.conv1.weight": (4,),
              "teacher.label_encoder.stn_desc.fc3.weight": (80, 2)}  # fmt: skip
    state = {name: torch.ones(shape) for name, shape in shapes.items()}
    assert order_classes(state, classes(*NAMES), classes(*WANTED), model_with()).keys() == state.keys()
