import pytest
import torch

from lgd.build.model import build_detector
from lgd.config.load import load_config
from lgd.config.values import ConfigError
from tests.detectors.small import make_batch, with_masks
from tests.training import REPOSITORY, SMALL

SIZES = "[[8], [16], [32], [64], [128]]"


def build(**changes):
    """A small detector; `changes` have __ for dots."""
    settings = {
        **SMALL,
        "NUM_CLASSES": 3,
        "MODEL.WEIGHTS": "''",
        "MODEL.ANCHOR_GENERATOR.SIZES": SIZES,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 8,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    pairs = [str(x) for pair in settings.items() for x in pair]
    torch.manual_seed(0)
    return build_detector(load_config(REPOSITORY / "configs/Base-RCNN-FPN.yaml", pairs))


def test_defaults_are_the_references():
    detector = build()
    rpn, heads = detector.proposal_generator, detector.roi_heads
    assert list(detector.strides) == list(rpn.strides) == ["p2", "p3", "p4", "p5", "p6"]
    assert list(heads.strides) == ["p2", "p3", "p4", "p5"]
    assert heads.mask_head is None
    assert (rpn.iou_thresholds, rpn.batch_size_per_image, rpn.positive_fraction) == ((0.3, 0.7), 256, 0.5)
    assert (rpn.pre_nms_topk_train, rpn.pre_nms_topk_test) == (2000, 1000)
    assert (rpn.post_nms_topk_train, rpn.post_nms_topk_test, rpn.nms_thresh) == (1000, 1000, 0.7)
    assert (heads.iou_thresholds, heads.batch_size_per_image) == ((0.5, 0.5), 512)
    assert (heads.positive_fraction, heads.append_objects) == (0.25, True)
    assert (heads.score_thresh_test, heads.nms_thresh_test, heads.detections_per_image) == (0.05, 0.5, 100)
    assert heads.box_reg_weights == (10, 10, 5, 5)
    assert (heads.box_head.resolution, heads.box_head.sampling_ratio) == (7, 0)


NUMBERS = {
    "MODEL__RPN__BOUNDARY_THRESH": ("proposal_generator.boundary_thresh", 4),
    "MODEL__RPN__BATCH_SIZE_PER_IMAGE": ("proposal_generator.batch_size_per_image", 64),
    "MODEL__RPN__POSITIVE_FRACTION": ("proposal_generator.positive_fraction", 0.25),
    "MODEL__RPN__BBOX_REG_LOSS_WEIGHT": ("proposal_generator.box_reg_loss_weight", 2.5),
    "MODEL__RPN__BBOX_REG_WEIGHTS": ("proposal_generator.box_reg_weights", (1, 2, 3, 4)),
    "MODEL__RPN__SMOOTH_L1_BETA": ("proposal_generator.smooth_l1_beta", 0.5),
    "MODEL__RPN__LOSS_WEIGHT": ("proposal_generator.loss_weight", 0.5),
    "MODEL__RPN__PRE_NMS_TOPK_TRAIN": ("proposal_generator.pre_nms_topk_train", 50),
    "MODEL__RPN__PRE_NMS_TOPK_TEST": ("proposal_generator.pre_nms_topk_test", 40),
    "MODEL__RPN__POST_NMS_TOPK_TRAIN": ("proposal_generator.post_nms_topk_train", 30),
    "MODEL__RPN__POST_NMS_TOPK_TEST": ("proposal_generator.post_nms_topk_test", 20),
    "MODEL__RPN__NMS_THRESH": ("proposal_generator.nms_thresh", 0.8),
    "MODEL__RPN__REFERENCE_ORDER": ("proposal_generator.reference_order", True),
    "MODEL__PROPOSAL_GENERATOR__MIN_SIZE": ("proposal_generator.min_size", 3),
    "MODEL__ANCHOR_GENERATOR__OFFSET": ("proposal_generator.anchor_offset", 0.5),
    "MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE": ("roi_heads.batch_size_per_image", 64),
    "MODEL__ROI_HEADS__POSITIVE_FRACTION": ("roi_heads.positive_fraction", 0.5),
    "MODEL__ROI_HEADS__SCORE_THRESH_TEST": ("roi_heads.score_thresh_test", 0.1),
    "MODEL__ROI_HEADS__NMS_THRESH_TEST": ("roi_heads.nms_thresh_test", 0.6),
    "MODEL__ROI_HEADS__PROPOSAL_APPEND_GT": ("roi_heads.append_objects", False),
    "MODEL__ROI_BOX_HEAD__BBOX_REG_LOSS_WEIGHT": ("roi_heads.box_reg_loss_weight", 2.5),
    "MODEL__ROI_BOX_HEAD__BBOX_REG_WEIGHTS": ("roi_heads.box_reg_weights", (1, 2, 3, 4)),
    "MODEL__ROI_BOX_HEAD__SMOOTH_L1_BETA": ("roi_heads.smooth_l1_beta", 0.5),
    "MODEL__ROI_BOX_HEAD__POOLER_RESOLUTION": ("roi_heads.box_head.resolution", 5),
    "MODEL__ROI_BOX_HEAD__POOLER_SAMPLING_RATIO": ("roi_heads.box_head.sampling_ratio", 2),
    "MODEL__ROI_MASK_HEAD__POOLER_RESOLUTION": ("roi_heads.mask_head.resolution", 5),
    "MODEL__ROI_MASK_HEAD__POOLER_SAMPLING_RATIO": ("roi_heads.mask_head.sampling_ratio", 2),
    "TEST__DETECTIONS_PER_IMAGE": ("roi_heads.detections_per_image", 7),
}


def test_numbers_arrive_where_they_belong():
    values = {key: list(x) if isinstance(x, tuple) else x for key, (_, x) in NUMBERS.items()}
    detector = build(MODEL__MASK_ON=True, **values)
    for place, value in NUMBERS.values():
        found = detector
        for name in place.split("."):
            found = getattr(found, name)
        assert found == value, place


def test_shapes_of_the_heads():
    detector = build(
        MODEL__MASK_ON=True,
        MODEL__ROI_BOX_HEAD__NUM_CONV=2,
        MODEL__ROI_BOX_HEAD__CONV_DIM=8,
        MODEL__ROI_BOX_HEAD__NUM_FC=1,
        MODEL__ROI_BOX_HEAD__NORM="GN",
        MODEL__ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG=True,
        MODEL__ROI_MASK_HEAD__NUM_CONV=1,
        MODEL__ROI_MASK_HEAD__NORM="GN",
        MODEL__ROI_MASK_HEAD__CLS_AGNOSTIC_MASK=True,
    )
    shapes = {name: tuple(p.shape) for name, p in detector.roi_heads.named_parameters()}
    assert shapes["box_head.conv2.weight"] == (8, 8, 3, 3)
    assert shapes["box_head.conv2.norm.weight"] == (8,)
    assert shapes["box_head.fc1.weight"] == (8, 8 * 49)
    assert shapes["box_predictor.cls_score.weight"] == (4, 8)
    assert shapes["box_predictor.bbox_pred.weight"] == (4, 8)
    assert shapes["mask_head.mask_fcn1.norm.weight"] == (8,)
    assert shapes["mask_head.predictor.weight"] == (1, 8, 1, 1)
    assert "mask_head.mask_fcn2.weight" not in shapes
    assert "box_head.fc2.weight" not in shapes
    batch = with_masks(make_batch([2, 1], dtype=torch.float32))
    losses, _ = detector.compute_losses(detector.extract_features(batch), batch)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)
    assert detector.eval().detect(detector.extract_features(batch), batch)[0].masks.shape[1:] == (28, 28)


def test_thresholds_and_levels():
    detector = build(
        MODEL__RPN__IOU_THRESHOLDS="[0.4]",
        MODEL__RPN__IOU_LABELS="[0, 1]",
        MODEL__ROI_HEADS__IOU_THRESHOLDS="[0.1, 0.6]",
        MODEL__ROI_HEADS__IOU_LABELS="[0, -1, 1]",
        MODEL__ROI_HEADS__IN_FEATURES="['p3', 'p4']",
    )
    assert detector.proposal_generator.iou_thresholds == (0.4, 0.4)
    assert detector.roi_heads.iou_thresholds == (0.1, 0.6)
    assert detector.roi_heads.strides == {"p3": 8, "p4": 16}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"MODEL__RPN__IN_FEATURES": "['p2', 'p7']"},
            r"MODEL\.RPN\.IN_FEATURES \('p2', 'p7'\) must be",
        ),
        (
            {"MODEL__ROI_HEADS__IN_FEATURES": "[]"},
            r"MODEL\.ROI_HEADS\.IN_FEATURES \(\) must be",
        ),
        (
            {
                "MODEL__RPN__IN_FEATURES": "['p2', 'p3', 'p4', 'p5']",
                "MODEL__ANCHOR_GENERATOR__SIZES": "[[8]]",
            },
            r"no head reads \['p6'\] of the neck",
        ),
        ({"MODEL__ROI_HEADS__IN_FEATURES": "['p2', 'p4']"}, "levels whose strides double"),
        ({"MODEL__ANCHOR_GENERATOR__SIZES": "[[8], [16]]"}, "anchor_sizes has 2 rows for 5 levels"),
        (
            {"MODEL__RPN__IOU_LABELS": "[0, 1, 1]"},
            r"MODEL\.RPN\.IOU_LABELS must be \(0, 1\) or \(0, -1, 1\), not \(0, 1, 1\)",
        ),
        ({"MODEL__ROI_HEADS__IOU_LABELS": "[-1, 1]"}, r"MODEL\.ROI_HEADS\.IOU_LABELS must be"),
        (
            {
                "MODEL__MASK_ON": True,
                "MODEL__ROI_MASK_HEAD__NORM": "GN",
                "MODEL__ROI_MASK_HEAD__CONV_DIM": 65,
            },
            "GN of 65 channels",
        ),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        build(**changes)
