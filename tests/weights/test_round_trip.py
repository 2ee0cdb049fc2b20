"""Every detector written in every format and read again gives the same outputs to the bit."""

import copy
import json

import pytest
import safetensors
import torch

from lgd import cli
from lgd.build import build_model
from lgd.build.model import DETECTORS
from lgd.build.weights import fill_model
from lgd.config.keys import flatten
from lgd.config.load import config_hash, load_config
from lgd.structures import Batch, Targets
from lgd.weights import convert, read_checkpoint_file
from tests.detectors.small import with_masks
from tests.forked import ForkedProgram
from tests.training import REPOSITORY

RECIPES = {
    "retinanet/r50_2x_ms_lgd.yaml": "RetinaNet",
    "retinanet/r101_dcn_2x_ms_lgd.yaml": "RetinaNet",
    "retinanet/swin_t_3x_ms_lgd.yaml": "RetinaNet",
    "fcos/r50_2x_ms_lgd.yaml": "FCOS",
    "atss/r50_1x_ss_lgd.yaml": "ATSS",
    "poto/r50_3x_ms_lgd.yaml": "POTO",
    "gfl/r50_1x_ss_lgd.yaml": "GFL",
    "faster_rcnn/r50_1x_ms_lgd.yaml": "GeneralizedRCNN",
    "mask_rcnn/swin_t_3x_ms_lgd.yaml": "GeneralizedRCNN",
}
SMALL = {
    "NUM_CLASSES": 3,
    "MODEL.WEIGHTS": "",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 1,
    "MODEL.SWINT.EMBED_DIM": 24,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.DISTILLATOR.LABEL_ENCODER.WIDTH": 64,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 50,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
    "MODEL.FCOS.SCORE_THRESH_TEST": 0.0,
}


def small(**changes):
    settings = {**SMALL, **{key.replace("__", "."): value for key, value in changes.items()}}
    return [str(item) for pair in settings.items() for item in pair]


def make(recipe, seed, **changes):
    cfg = load_config(REPOSITORY / "configs" / recipe, small(**changes))
    torch.manual_seed(seed)
    model = build_model(cfg)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim == 1:  # norms and biases, which start alike
                tensor.add_(0.02 * torch.rand_like(tensor))
    return cfg, model.eval()


def make_batch():
    generator = torch.Generator().manual_seed(7)
    size = torch.tensor([[128, 160]])
    boxes = torch.tensor([[[8.0, 8.0, 70.0, 60.0], [30.0, 50.0, 120.0, 120.0]]])
    targets = Targets(boxes, torch.tensor([[0, 2]]), torch.tensor([[True, True]]))
    images = torch.randint(0, 256, (1, 3, 128, 160), generator=generator, dtype=torch.uint8)
    return Batch(images, size, size, torch.zeros(1, dtype=torch.int64), targets)


def outputs_of(model, with_teacher):
    """All that the model makes of a batch, as one list of tensors."""
    batch = with_masks(make_batch())
    with torch.no_grad():
        features = model.student.extract_features(batch)
        (found,) = model.student.detect(features, batch)
        taught = model.teach(features, batch).values() if with_teacher else ()
    assert len(found.scores) > 0
    masks = [] if found.masks is None else [found.masks]
    return [found.boxes, found.scores, found.labels, *masks, *taught]


def test_every_detector_is_here():
    assert set(RECIPES.values()) == set(DETECTORS)
    for recipe, detector in RECIPES.items():
        cfg = load_config(REPOSITORY / "configs" / recipe, small())
        assert cfg.model.meta_architecture == detector


@pytest.mark.parametrize("recipe", RECIPES)
def test_outputs_are_the_same_after_every_format(tmp_path, recipe):
    (cfg, model), (_, another) = make(recipe, seed=1), make(recipe, seed=2)
    outputs = {with_teacher: outputs_of(model, with_teacher) for with_teacher in (False, True)}
    for kind in convert.WRITERS:
        path = tmp_path / kind
        convert.WRITERS[kind](path, convert._Conversion(model, cfg, None))
        with_teacher = kind in ("full", "reference")
        other, fresh = copy.deepcopy(another), another.state_dict()
        report = fill_model(cfg, other, str(path))
        filled = other.state_dict()
        for name, tensor in model.state_dict().items():
            is_kept = name in report.kept or (not with_teacher and not name.startswith("student."))
            assert torch.equal(filled[name], fresh[name] if is_kept else tensor), (kind, name)
        assert {name for name in report.kept if name.startswith("student.")} <= {"student.loss_normalizer"}
        pairs = zip(outputs[with_teacher], outputs_of(other, with_teacher), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), kind
        assert not report.dropped


def test_kinds_are_recognised(tmp_path):
    cfg, model = make("retinanet/r50_2x_ms_lgd.yaml", seed=1)
    kinds = {"student": "lgd", "full": "lgd", "detectron2": "detectron2-model", "reference": "reference"}
    for kind, expected in kinds.items():
        convert.WRITERS[kind](tmp_path / kind, convert._Conversion(model, cfg, None))
        assert read_checkpoint_file(tmp_path / kind).kind == expected


@pytest.fixture
def checkpoint(tmp_path):
    cfg, model = make("retinanet/r50_2x_ms_lgd.yaml", seed=1)
    path = tmp_path / "model_final.pth"
    classes = {"names": ["a", "b", "c"], "category_ids": [1, 2, 7]}
    content = {"format": "lgd", "model": model.state_dict(), "config": flatten(cfg), "classes": classes}
    torch.save(content, path)
    return path, cfg, model, classes


def test_the_module_says_what_it_does_as_the_command_does(tmp_path, checkpoint):
    path, target = checkpoint[0], tmp_path / "student.safetensors"
    arguments = [str(path), str(target), "--to", "student"]
    run = ForkedProgram("lgd.weights.convert", arguments, log=tmp_path / "log", as_module=True)
    assert run.wait() == 0
    said = run.log.read_text()
    assert "tensors loaded" in said
    assert f"{target} written as student" in said


def test_the_command_needs_no_recipe_for_our_checkpoints(tmp_path, checkpoint, capsys):
    path, cfg, model, classes = checkpoint
    student, detector, full = (str(tmp_path / name) for name in ("s.safetensors", "d.pth", "f.pth"))
    assert cli.main(["convert", str(path), student, "--to", "student"]) == 0
    assert "tensors loaded" in capsys.readouterr().out
    with safetensors.safe_open(student, framework="pt") as file:
        metadata = file.metadata()
        assert {name.split(".")[0] for name in file.keys()} == {"student"}  # noqa: SIM118
    assert json.loads(metadata["classes"]) == classes
    assert metadata["config_sha256"] == config_hash(cfg)
    assert cli.main(["convert", student, detector, "--to", "detectron2"]) == 0
    content = torch.load(detector, weights_only=True)
    assert set(content) == {"model", "__author__"}
    assert "backbone.bottom_up.res2.0.conv1.norm.running_var" in content["model"]
    assert "anchor_generator.cell_anchors.4" in content["model"]
    assert content["model"]["pixel_mean"].shape == (3, 1, 1)
    assert cli.main(["convert", student, full, "--to", "full", "MODEL.DISTILLATOR.ENABLED", "False"]) == 0
    content = torch.load(full, weights_only=True)
    assert content["format"] == "lgd"
    assert content["classes"] == classes
    assert {name.split(".")[0] for name in content["model"]} == {"student"}
    expected = model.state_dict()
    for name, tensor in content["model"].items():
        assert torch.equal(tensor, expected[name]), name


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, checkpoint, capsys):
    path, cfg, model, _ = checkpoint
    bare, out = tmp_path / "bare.pth", str(tmp_path / "out" / "x.pth")
    convert.WRITERS["reference"](bare, convert._Conversion(model, cfg, None))

    def error(*arguments):
        assert cli.main(["convert", *map(str, arguments)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    recipe = REPOSITORY / "configs/retinanet/r50_2x_ms_lgd.yaml"
    assert "bare.pth: does not say how its model is built; give its recipe by --config-file" in error(
        bare, out, "--to", "student"
    )
    assert "set NUM_CLASSES as in the weights" in error(
        bare, out, "--to", "student", "--config-file", recipe, *small(NUM_CLASSES=5)
    )
    assert "NUM_CLASSES 0 takes the classes from the data" in error(
        path, out, "--to", "full", "NUM_CLASSES", 0
    )
    assert "nowhere.pth: no such weights file" in error("nowhere.pth", out, "--to", "full")
    assert "SOLVER.STEPZ" in error(path, out, "--to", "full", "SOLVER.STEPZ", 0)
    (tmp_path / "file").write_text("")
    assert "file" in error(path, tmp_path / "file" / "x.pth", "--to", "student")
    assert not (tmp_path / "out").exists()
    content = torch.load(path, weights_only=True)
    content["config"]["MODEL.FLUX"] = 1
    torch.save(content, path)
    assert "model_final.pth: MODEL.FLUX is not a setting" in error(path, out, "--to", "full")


def test_a_recipe_gives_the_settings_that_a_file_lacks(tmp_path, checkpoint):
    _, cfg, model, _ = checkpoint
    bare, out = tmp_path / "bare.pth", tmp_path / "student.safetensors"
    convert.WRITERS["reference"](bare, convert._Conversion(model, cfg, None))
    recipe = str(REPOSITORY / "configs/retinanet/r50_2x_ms_lgd.yaml")
    arguments = ["convert", str(bare), str(out), "--to", "student", "--config-file", recipe]
    assert cli.main([*arguments, *small()]) == 0
    tensors = read_checkpoint_file(out).tensors
    for name, tensor in model.state_dict().items():
        if name.startswith("student.") and name != "student.loss_normalizer":
            assert torch.equal(tensors[name], tensor), name
