import math

import pytest
import torch

from lgd.build.model import build_detector
from lgd.config.load import load_config
from lgd.config.values import ConfigError
from lgd.detectors.atss import ATSSAssigner
from lgd.detectors.fcos import FCOSAssigner
from lgd.detectors.poto import POTOAssigner
from tests.detectors.small import make_batch
from tests.training import REPOSITORY, SMALL


def build(name, **changes):
    """A small detector; `changes` have __ for dots."""
    settings = {
        **SMALL,
        "NUM_CLASSES": 3,
        "MODEL.META_ARCHITECTURE": name,
        "MODEL.FCOS.NUM_CONVS": 1,
        "MODEL.FPN.NORM": "''",
    }
    settings |= {key.replace("__", "."): value for key, value in changes.items()}
    pairs = [str(x) for pair in settings.items() for x in pair]
    torch.manual_seed(0)
    return build_detector(load_config(REPOSITORY / "configs/demo.yaml", pairs))


@pytest.mark.parametrize(
    ("name", "assigner", "centerness", "weight"),
    [
        (
            "FCOS",
            FCOSAssigner(1.5, ((-1, 64), (64, 128), (128, 256), (256, 512), (512, math.inf))),
            "box",
            1,
        ),
        ("ATSS", ATSSAssigner(8, 9), "box", 2),
        ("POTO", POTOAssigner(0.8, 1.5), None, 2),
    ],
)
def test_defaults_are_the_references(name, assigner, centerness, weight):
    detector = build(name)
    assert detector.assigner == assigner
    assert detector.head.centerness_tower == centerness
    assert detector.head.distances_in_strides
    assert detector.box_loss_weight == weight
    assert detector.location_offset == 0.5
    assert detector.sync_normalizers
    assert (detector.score_thresh_test, detector.topk_candidates_test) == (0.05, 1000)
    assert (detector.nms_thresh_test, detector.detections_per_image) == (0.6, 100)
    assert (detector.focal_loss_alpha, detector.focal_loss_gamma) == (0.25, 2)
    assert torch.allclose(detector.head.cls_score.bias.sigmoid(), torch.tensor(0.01))


@pytest.mark.parametrize(
    ("key", "value", "attribute", "expected"),
    [
        ("MODEL.FCOS.CENTERNESS_ON_REG", "False", "head.centerness_tower", "class"),
        ("MODEL.FCOS.NORM_REG_TARGETS", "False", "head.distances_in_strides", False),
        ("MODEL.FCOS.NORM_SYNC", "False", "sync_normalizers", False),
        ("MODEL.FCOS.CENTER_SAMPLING_RADIUS", 0, "assigner.center_radius", 0),
        ("MODEL.FCOS.BBOX_REG_WEIGHTS", "(2, 2, 3, 3)", "box_reg_weights", (2, 2, 3, 3)),
        ("MODEL.FCOS.FOCAL_LOSS_ALPHA", 0.3, "focal_loss_alpha", 0.3),
        ("MODEL.FCOS.FOCAL_LOSS_GAMMA", 1.5, "focal_loss_gamma", 1.5),
        ("MODEL.FCOS.SCORE_THRESH_TEST", 0.1, "score_thresh_test", 0.1),
        ("MODEL.FCOS.TOPK_CANDIDATES_TEST", 50, "topk_candidates_test", 50),
        ("MODEL.FCOS.NMS_THRESH_TEST", 0.5, "nms_thresh_test", 0.5),
        ("MODEL.NMS_TYPE", "None", "nms_thresh_test", None),
        ("MODEL.SHIFT_GENERATOR.OFFSET", 0.25, "location_offset", 0.25),
        ("TEST.DETECTIONS_PER_IMAGE", 7, "detections_per_image", 7),
    ],
)
def test_each_key_reaches_the_detector(key, value, attribute, expected):
    detector = build("FCOS", **{key: value})
    for name in attribute.split("."):
        detector = getattr(detector, name)
    assert detector == expected


@pytest.mark.parametrize("value", ["False", "True"])
@pytest.mark.parametrize("key", ["MODEL.FCOS.CENTERNESS_ON_REG", "MODEL.FCOS.NORM_REG_TARGETS"])
def test_the_heads_variants_train(key, value):
    detector, batch = build("FCOS", **{key: value}), make_batch([2, 0], dtype=torch.float32)
    losses, _ = detector.compute_losses(detector.extract_features(batch), batch)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)


def test_defaults_and_keys_of_gfl():
    gfl = build("GFL")
    assert (gfl.assigner, gfl.head.centerness_tower) == (ATSSAssigner(8, 9), None)
    assert (gfl.head.num_bins, gfl.beta, gfl.box_loss_weight, gfl.side_loss_weight) == (17, 2, 2, 0.25)
    other = build(
        "GFL",
        MODEL__ATSS__TOPK=5,
        MODEL__GFL__REG_MAX=7,
        MODEL__GFL__BETA=1.5,
        MODEL__GFL__BOX_WEIGHT=1.3,
        MODEL__GFL__SIDE_WEIGHT=0.4,
        MODEL__FCOS__NMS_THRESH_TEST=0.5,
    )
    assert (other.assigner, other.head.num_bins, other.nms_thresh_test) == (ATSSAssigner(8, 5), 8, 0.5)
    assert (other.beta, other.box_loss_weight, other.side_loss_weight) == (1.5, 1.3, 0.4)
    with pytest.raises(ConfigError, match=r"MODEL.FCOS.FOCAL_LOSS_ALPHA does nothing in GFL"):
        build("GFL", MODEL__FCOS__FOCAL_LOSS_ALPHA=0.3)


def test_keys_of_atss_and_poto():
    atss = build("ATSS", MODEL__ATSS__TOPK=5, MODEL__ATSS__ANCHOR_SCALE=6, MODEL__FCOS__REG_WEIGHT=1.3)
    assert (atss.assigner, atss.box_loss_weight) == (ATSSAssigner(6, 5), 1.3)
    poto = build(
        "POTO",
        MODEL__POTO__ALPHA=0.7,
        MODEL__POTO__CENTER_SAMPLING_RADIUS=0,
        MODEL__POTO__REG_WEIGHT=1.3,
        MODEL__FCOS__NUM_CONVS=0,
        MODEL__FCOS__PRIOR_PROB=0.2,
    )
    assert (poto.assigner, poto.box_loss_weight) == (POTOAssigner(0.7, 0), 1.3)
    assert len(poto.head.cls_subnet) == 0
    assert torch.allclose(poto.head.cls_score.bias.sigmoid(), torch.tensor(0.2))


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        (
            "FCOS",
            "MODEL.FCOS.OBJECT_SIZES_OF_INTEREST",
            "((-1, 64), (64, 128))",
            "MODEL.FCOS.OBJECT_SIZES_OF_INTEREST has 2 ranges for 5 levels; give one for each",
        ),
        (
            "FCOS",
            "MODEL.FCOS.OBJECT_SIZES_OF_INTEREST",
            "((-1, 64), (64, 128), (128, 256), (512, 256), (512, 1000))",
            "MODEL.FCOS.OBJECT_SIZES_OF_INTEREST: the range of sizes (512.0, 256.0) is empty",
        ),
        ("FCOS", "MODEL.FCOS.REG_WEIGHT", 1, "MODEL.FCOS.REG_WEIGHT does nothing in FCOS; leave it"),
        (
            "ATSS",
            "MODEL.FCOS.CENTER_SAMPLING_RADIUS",
            2,
            "MODEL.FCOS.CENTER_SAMPLING_RADIUS does nothing in ATSS",
        ),
        (
            "POTO",
            "MODEL.FCOS.CENTERNESS_ON_REG",
            "False",
            "MODEL.FCOS.CENTERNESS_ON_REG does nothing in POTO",
        ),
        (
            "ATSS",
            "MODEL.FCOS.IN_FEATURES",
            "('p3', 'p4')",
            "MODEL.FCOS.IN_FEATURES ('p3', 'p4') are not those of the neck, ('p3', 'p4', 'p5', 'p6', 'p7')",
        ),
        (
            "POTO",
            "MODEL.FCOS.FPN_STRIDES",
            "(8, 16, 32, 64, 100)",
            "MODEL.FCOS.FPN_STRIDES (8, 16, 32, 64, 100) are not those of the neck, (8, 16, 32, 64, 128)",
        ),
        ("FCOS", "MODEL.SHIFT_GENERATOR.NUM_SHIFTS", 2, "MODEL.SHIFT_GENERATOR.NUM_SHIFTS must be 1, not 2"),
        (
            "FCOS",
            "MODEL.FPN.OUT_CHANNELS",
            136,
            "MODEL.FCOS: GN of 136 channels does not divide into 32 groups",
        ),
    ],
)
def test_errors(name, key, value, message):
    with pytest.raises(ConfigError) as caught:
        build(name, **{key: value})
    assert message in str(caught.value)
