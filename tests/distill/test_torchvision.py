"""torchvision's detectors with a teacher beside them, in torchvision's own format."""

import copy
import io

import pytest
import torch
from torch import nn
from torchvision.models import detection, resnet18
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.keypoint_rcnn import KeypointRCNN, KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.tv_tensors import BoundingBoxes, Image, Mask

from lgd.distill.teacher import DynamicTeacher
from lgd.distill.torchvision import TorchvisionDetector, wrap
from lgd.ops.polygons import rasterize_on_grid
from tests.distill.torchvision_models import (
    CHANNELS,
    NUM_CLASSES,
    SIDES,
    SMALL,
    losses_of,
    make_backbone,
    make_data,
    make_model,
    rcnn_settings,
)

FULL = [
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
]
CONTENTS = [(2, 0, 3), (0, 0), (1,)]


@pytest.fixture(params=list(SMALL))
def name(request):
    return request.param


def own_part(losses):
    """The losses that are the student's alone."""
    return {key: loss for key, loss in losses.items() if not key.endswith(".tea") and key != "loss_distill"}


def check_the_losses_are_torchvisions(model, images, targets):
    """Returns all losses, after a look at gradients too."""
    plain = copy.deepcopy(model)
    expected = losses_of(plain, images, targets)
    distiller = wrap(model)
    losses = losses_of(distiller, images, targets)
    assert list(losses) == [*expected, *(f"{key}.tea" for key in expected), "loss_distill"]
    for key, loss in expected.items():
        assert abs(losses[key] - loss).item() <= 1e-6
    sum(own_part(losses).values()).backward(retain_graph=True)
    sum(expected.values()).backward()
    for ours, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (other.grad is None)
        assert ours.grad is None or torch.allclose(ours.grad, other.grad, rtol=1e-4, atol=1e-6)
    return losses


@pytest.mark.parametrize("num_objects", CONTENTS)
def test_the_students_losses_and_gradients_are_torchvisions_own(name, num_objects):
    check_the_losses_are_torchvisions(make_model(name), *make_data(name, num_objects))


@pytest.mark.slow
@pytest.mark.parametrize("full", FULL)
def test_of_the_full_models_too(full):
    torch.manual_seed(0)
    sides = {"min_size": 64, "max_size": 96}
    model = getattr(detection, full)(weights=None, weights_backbone=None, num_classes=4, **sides)
    losses = check_the_losses_are_torchvisions(model, *make_data(full, (1, 0)))
    assert all(loss.isfinite() for loss in losses.values())
    assert TorchvisionDetector(model).strides == (
        {"0": 4, "1": 8, "2": 16, "3": 32, "pool": 64}
        if "rcnn" in full
        else {"0": 8, "1": 16, "2": 32, "p6": 64, "p7": 128}
    )


@pytest.mark.parametrize("num_objects", CONTENTS)
def test_every_parameter_learns_from_every_batch(name, num_objects):
    distiller = wrap(make_model(name), use_masks=True)
    images, targets = make_data(name, num_objects)
    sum(losses_of(distiller, images, targets).values()).backward()
    trained = {name: p.grad for name, p in distiller.named_parameters() if p.requires_grad}
    assert [name for name, gradient in trained.items() if gradient is None] == []
    assert [name for name, gradient in trained.items() if not gradient.isfinite().all()] == []


def test_the_teacher_sees_a_share_of_the_images(name):
    """The same as of the first image alone, whose targets are its own; the student's losses are of both."""
    images, targets = make_data(name, (2, 1))
    whole, half = (wrap(make_model(name), use_masks=True, image_share=share) for share in (1.0, 0.5))
    half.load_state_dict(whole.state_dict())
    losses, expected = losses_of(half, images, targets), losses_of(whole, images, targets)
    alone = losses_of(whole, images[:1], targets[:1])
    for key in set(expected) - {"loss_distill"}:
        if not key.endswith(".tea"):
            torch.testing.assert_close(losses[key], expected[key])
    if images[0].shape == images[1].shape:  # the same canvas
        torch.testing.assert_close(losses["loss_distill"], alone["loss_distill"], rtol=1e-4, atol=1e-6)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    with pytest.raises(ValueError, match=r"image_share 0 is not in \(0, 1\]"):
        wrap(make_model(name), image_share=0)


def test_a_wrapped_model_is_untouched(name):
    model = make_model(name)
    model.backbone.body.eval()  # a mode of its own, as of who freezes batch norms
    modes = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    distiller = wrap(model)
    assert distiller.student is model
    assert [module.training for module in model.modules()] == modes
    assert {id(p) for p in model.parameters()} <= {id(p) for p in distiller.parameters()}
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def train(distiller, data, optimizer, steps):
    totals = []
    for step in steps:
        torch.manual_seed(step)
        losses = distiller(*data)
        optimizer.zero_grad()
        total = sum(losses.values())
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    return totals


def make_optimizer(distiller):
    return torch.optim.AdamW(distiller.parameters(), lr=2e-3)


def test_lgd_lowers_its_losses_and_the_student_goes_back_to_torchvision(name):
    distiller, data = wrap(make_model(name, min_size=64)), make_data(name, (2, 1))
    totals = train(distiller, data, make_optimizer(distiller), range(6))
    assert sum(totals[-3:]) < 0.8 * sum(totals[:3])
    saved = io.BytesIO()
    torch.save(distiller.student.state_dict(), saved)
    saved.seek(0)
    plain = make_model(name, min_size=64).eval()
    plain.load_state_dict(torch.load(saved, weights_only=True))
    distiller.eval()
    for model in (plain, distiller.student):
        getattr(model, "roi_heads", model).score_thresh = 0.002
    images, _ = data
    with torch.no_grad():
        expected, found = plain(images), distiller.student(images)
    assert sum(len(each["scores"]) for each in expected) > 5
    for ours, other in zip(found, expected, strict=True):
        assert list(ours) == list(other)
        assert all(torch.equal(ours[key], other[key]) for key in other)


def test_training_goes_on_bit_by_bit_from_a_state_dict(name):
    data = make_data(name)
    distiller = wrap(make_model(name))
    optimizer = make_optimizer(distiller)
    train(distiller, data, optimizer, range(1))
    saved = io.BytesIO()
    torch.save({"model": distiller.state_dict(), "optimizer": optimizer.state_dict()}, saved)
    expected = train(distiller, data, optimizer, range(1, 3))
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    torch.manual_seed(99)
    other = wrap(SMALL[name]())
    resumed = make_optimizer(other)
    other.load_state_dict(state["model"])
    resumed.load_state_dict(state["optimizer"])
    assert train(other, data, resumed, range(1, 3)) == expected
    found = other.state_dict()
    for key, value in distiller.state_dict().items():
        assert torch.equal(value, found[key]), key


def test_distillation_can_wait_and_the_teacher_can_leave_the_head():
    distiller, data = wrap(make_model("retinanet")), make_data("retinanet")
    student = dict(distiller.student.named_parameters())

    def touched(loss):
        distiller.zero_grad(set_to_none=True)
        loss.backward()
        return {
            key.partition(".")[0]
            for key, p in student.items()
            if p.grad is not None and p.grad.abs().max() > 0
        }

    assert touched(losses_of(distiller, *data)["loss_distill"]) == {"backbone"}
    assert touched(losses_of(distiller, *data, distill=False)["loss_distill"]) == set()
    assert touched(losses_of(distiller, *data)["classification.tea"]) == {"backbone", "head"}
    assert touched(losses_of(distiller, *data, head_share=0.0)["classification.tea"]) == {"backbone"}
    half = losses_of(distiller, *data, weight_factor=0.5)["loss_distill"]
    assert torch.allclose(2 * half, losses_of(distiller, *data)["loss_distill"])


@pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn"])
def test_the_statistics_of_the_head_are_the_students_alone(name):
    plain, data = make_model(name), make_data(name)
    distiller = wrap(copy.deepcopy(plain))
    losses_of(plain, *data)
    losses_of(distiller, *data)
    for (key, ours), other in zip(
        distiller.student.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, other), key
    moved = distiller.student.roi_heads.box_head[0][1]
    assert moved.num_batches_tracked == 1
    assert moved.track_running_stats


def test_losses_in_evaluation_mode_change_nothing(name):
    distiller, data = wrap(make_model(name)).eval(), make_data(name)
    before = copy.deepcopy(distiller.state_dict())
    with torch.no_grad():
        losses = losses_of(distiller, *data)
    assert all(loss.isfinite() for loss in losses.values())
    assert not any(module.training for module in distiller.modules())
    for key, value in distiller.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_the_teacher_reads_classes_from_0_and_boxes_of_the_resized_image(name):
    detector = TorchvisionDetector(make_model(name, min_size=128, max_size=128))
    images, targets = make_data(name)
    batch = detector.transform(images, targets, with_outlines=False)
    assert batch.targets.valid.tolist() == [[True, True, False], [False] * 3, [True] * 3]
    for i, (image, target) in enumerate(zip(images, targets, strict=True)):
        number = len(target["labels"])
        # The rectangles are brightest in the channel that is their class.
        for (x1, y1, x2, y2), label in zip(
            target["boxes"].long().tolist(), batch.targets.labels[i].tolist(), strict=False
        ):
            assert image[label, y1:y2, x1:x2].min() > 0.7
        scale = (batch.sizes[i].flip(0) / torch.tensor([image.shape[2], image.shape[1]])).repeat(2)
        assert torch.allclose(batch.targets.boxes[i, :number], target["boxes"] * scale, atol=1e-4)
        assert batch.original_sizes[i].tolist() == list(image.shape[1:])
    assert max(batch.sizes.flatten().tolist()) > 100


def test_the_teacher_reads_masks_to_the_pixel():
    detector = TorchvisionDetector(make_model("mask_rcnn"))
    images, targets = make_data("mask_rcnn")
    batch = detector.transform(images, targets, with_outlines=True)
    outlines, canvas = batch.targets.outlines, batch.images.shape[-2:]
    drawn = rasterize_on_grid(outlines.edges, outlines.parts, 1, batch.sizes, tuple(canvas), tuple(canvas))
    for masks, answer, (height, width) in zip(drawn, batch.answers, batch.sizes.tolist(), strict=True):
        number = len(answer["masks"])
        assert torch.equal(masks[:number, :height, :width], answer["masks"].bool())
        assert not masks[number:].any()
    assert drawn.any()


def test_many_classes_are_embedded():
    assert wrap(make_model("retinanet")).label_guided.teacher.category_format == "one_hot"
    model = detection.FCOS(make_backbone(), 300, anchor_generator=make_model("fcos").anchor_generator)
    assert wrap(model).label_guided.teacher.category_format == "embedding"


def test_a_teacher_of_ones_own():
    model = make_model("retinanet")
    teacher = DynamicTeacher(channels=32, num_classes=NUM_CLASSES, interact_pattern="labelGuided")
    assert wrap(model, teacher=teacher, weight=0.5).label_guided.teacher is teacher
    with pytest.raises(ValueError, match="is for 32 channels and 4 classes, and the model has 32 chan"):
        wrap(model, teacher=DynamicTeacher(channels=32, num_classes=NUM_CLASSES + 1))
    with pytest.raises(ValueError, match="use_masks is True and that of the teacher given is False"):
        wrap(model, teacher=teacher, use_masks=True)


def test_the_tensors_of_torchvisions_datasets(name):
    images, targets = make_data(name)
    size = images[0].shape[1:]
    labelled = [
        target
        | {
            "boxes": BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size),
            "masks": Mask(target["masks"]),
        }
        for target in targets
    ]
    expected = losses_of(wrap(make_model(name), use_masks=True), images, targets)
    found = losses_of(wrap(make_model(name), use_masks=True), [Image(image) for image in images], labelled)
    assert all(torch.equal(found[key], loss) for key, loss in expected.items())
    labelled[0]["boxes"] = BoundingBoxes(targets[0]["boxes"], format="XYWH", canvas_size=size)
    with pytest.raises(ValueError, match="boxes of image 0 are XYWH; convert them to XYXY"):
        wrap(make_model(name))(images, labelled)


def test_keypoints_and_whatever_else_is_in_the_targets_reach_the_model():
    torch.manual_seed(0)
    keypoints = {
        "keypoint_head": KeypointRCNNHeads(CHANNELS, (8,)),
        "keypoint_predictor": KeypointRCNNPredictor(8, 4),
    }
    model = KeypointRCNN(make_backbone(), **SIDES | rcnn_settings() | keypoints)
    images, targets = make_data("rcnn")
    for target in targets:
        corners = target["boxes"][:, [0, 1, 2, 1, 2, 3, 0, 3]].view(-1, 4, 2)
        target["keypoints"] = torch.cat([corners, torch.ones_like(corners[..., :1])], dim=-1)
    assert "loss_keypoint.tea" in check_the_losses_are_torchvisions(model, images, targets)


def with_target(**changes):
    images, targets = make_data("faster_rcnn", (1, 2))
    targets[1] |= changes
    return images, [targets[0], {key: value for key, value in targets[1].items() if value is not None}]


BOX = torch.tensor([[1.0, 2.0, 9.0, 9.0], [5.0, 5.0, 5.0, 9.0]])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"boxes": None}, 'targets of image 1 have no "boxes"; give boxes, labels, masks'),
        ({"labels": None}, 'targets of image 1 have no "labels"'),
        ({"masks": None}, 'targets of image 1 have no "masks"'),
        ({"boxes": torch.zeros(0)}, r"boxes of image 1 are \(0,\).* torch.zeros\(0, 4\) where there is no"),
        ({"boxes": BOX.long()}, "boxes of image 1 are .* of torch.int64; give floats"),
        ({"boxes": BOX}, r"image 1 has the box \[5.0, 5.0, 5.0, 9.0\]: .* x1 < x2"),
        ({"boxes": BOX.log()}, "image 1 has the box .*nan|image 1 has the box"),
        ({"labels": torch.tensor([1])}, r"labels of image 1 are \(1,\) .* each of its 2 boxes"),
        ({"labels": torch.tensor([1.0, 2.0])}, "of torch.float32; give one int64"),
        ({"labels": torch.tensor([1, 0])}, "image 1 has the label 0: .* are 1 to 3; 0 is the background"),
        ({"labels": torch.tensor([4, 1])}, "image 1 has the label 4: .* are 1 to 3"),
        ({"masks": torch.zeros(2, 5, 5)}, r"masks of image 1 are \(2, 5, 5\); give 2 of the image's"),
    ],
)
def test_targets_that_cannot_be_used(changes, says):
    distiller = wrap(make_model("mask_rcnn"))
    with pytest.raises(ValueError, match=says) as error:
        distiller(*with_target(**changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("label", "fits"), [(-1, False), (0, True), (2, True), (3, False)])
@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_one_stage_models_have_no_background_class(name, label, fits):
    images, targets = make_data(name, (1,))
    targets[0]["labels"] = torch.tensor([label])
    if fits:
        assert wrap(make_model(name))(images, targets)["classification"].isfinite()
    else:
        with pytest.raises(ValueError, match=f"has the label {label}: this model's labels are 0 to 2$"):
            wrap(make_model(name))(images, targets)


def test_images_that_cannot_be_used():
    distiller, (images, targets) = wrap(make_model("fcos")), make_data("fcos", (1,))
    for given, says in [
        ((images, []), "1 image and targets of 0"),
        (([], []), "one at least"),
        ((torch.zeros(0, 3, 50, 50), []), "one at least"),
        (([images[0][0]], targets), r"image 0 has the shape .* give \(3, height, width\)"),
        (([(255 * images[0]).byte()], targets), r"image 0 is of torch.uint8; .* floats in \[0, 1\]"),
    ]:
        with pytest.raises(ValueError, match=says):
            distiller(*given)


def test_images_in_bytes_range_are_refused_with_the_first_batch():
    distiller, (images, targets) = wrap(make_model("fcos")), make_data("fcos", (2, 1))
    of_bytes = [images[0], 255 * images[1]]
    with pytest.raises(
        ValueError, match=r"^image 1 has values up to 2.*; .* floats in \[0, 1\]: divide by 255$"
    ):
        distiller(of_bytes, targets)
    jittered = [4 * images[0] - 2, images[1]]
    assert distiller(jittered, targets)["loss_distill"].isfinite()
    assert distiller(of_bytes, targets)["loss_distill"] > 0, "later batches cost no wait for the device"


def test_a_teacher_of_masks_needs_masks():
    distiller, (images, targets) = wrap(make_model("fcos"), use_masks=True), make_data("fcos", (1,))
    assert distiller(images, targets)["loss_distill"].isfinite()
    masks = targets[0].pop("masks")
    with pytest.raises(ValueError, match='image 0 have no "masks"; give boxes, labels, masks'):
        distiller(images, targets)
    targets[0]["masks"] = masks[:, 1:]
    with pytest.raises(ValueError, match=r"masks of image 0 are .* pixels"):
        distiller(images, targets)


def test_models_that_cannot_be_wrapped():
    with pytest.raises(ValueError, match=r"resnet\.ResNet is none of torchvision's RetinaNet, FCOS"):
        wrap(resnet18())
    ssd = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    with pytest.raises(ValueError, match=r"ssd\.SSD is none of"):
        wrap(ssd)
    strange = make_model("faster_rcnn")
    strange.roi_heads.box_predictor = nn.Identity()
    with pytest.raises(ValueError, match="box_predictor, an Identity, has no linear cls_score"):
        wrap(strange)
    uneven = make_model("retinanet")
    assert isinstance(uneven.backbone, BackboneWithFPN)
    uneven.backbone.fpn = nn.Identity()
    with pytest.raises(ValueError, match=r"levels have \{'0': 8, '1': 12, '2': 16\} channels .* says 32"):
        wrap(uneven)
