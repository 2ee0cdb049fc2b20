"""Trained models from files and folders, and what they find in whatever they are given."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import lgd
from lgd.build import build_model
from lgd.build.training import build_test_loader
from lgd.config.keys import flatten
from lgd.config.values import ConfigError
from lgd.data.catalog import open_dataset
from lgd.data.decoding import Decoding
from lgd.data.errors import DataError
from lgd.data.images import read_image
from lgd.engine.checkpoint import FORMAT, save_checkpoint, save_file
from lgd.inference.detect import detect
from lgd.inference.evaluate import detect_on
from lgd.inference.model import TrainedModel
from lgd.weights.report import WeightsError
from tests.data.sets import CATEGORIES, annotation, image_record, open_coco, write_coco
from tests.tiny import CLASSES, NAMES, tiny_config, write_tiny


def same(a, b):
    return (
        torch.equal(a.boxes, b.boxes) and torch.equal(a.scores, b.scores) and torch.equal(a.labels, b.labels)
    )


@pytest.fixture(scope="module")
def picture(small_data):
    return sorted((small_data / "val").iterdir())[0]


def test_importing_lgd_imports_no_torch():
    program = "import sys, lgd; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        lgd.lode  # noqa: B018


@pytest.mark.parametrize("multiplies", [True, False, None])
@pytest.mark.parametrize("trained_so", [True, False])
@pytest.mark.parametrize("precision", [None, "float32", "bfloat16"])
def test_precision_is_that_of_the_training_where_the_device_has_it(
    tmp_path, tiny_model, picture, monkeypatch, multiplies, trained_so, precision
):
    monkeypatch.setattr("lgd.run.trained.multiplies_bfloat16", lambda device: multiplies)
    weights = write_tiny(tmp_path / "tiny.safetensors", SOLVER__AMP__ENABLED=trained_so)
    found = lgd.load(weights, "cpu", precision=precision).predict(picture, score=0)
    in_lower = precision == "bfloat16" or (precision is None and trained_so and multiplies is not False)
    assert same(found, tiny_model.predict(picture, score=0)) is not in_lower


def test_precisions_that_there_are_not(tmp_path, tiny_weights):
    with pytest.raises(ValueError, match="precision 'half': choose float32 or bfloat16"):
        lgd.load(tiny_weights, precision="half")
    with pytest.raises(WeightsError, match=r"model.onnx: an exported file has its precision; leave float32"):
        lgd.load(tmp_path / "model.onnx", precision="float32")


def test_every_way_to_give_a_picture_gives_the_same(tiny_model, picture):
    pixels = read_image(picture)
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    png = Image.fromarray(array)
    ways = [picture, str(picture), pixels, array, png]
    results = [tiny_model.predict(way, score=0) for way in ways]
    assert len(results[0]) > 10
    assert all(same(each, results[0]) for each in results)
    many = tiny_model.predict(ways, score=0, batch=3)
    assert isinstance(many, list)
    assert len(many) == 5


def test_one_picture_gives_a_result_and_a_folder_a_list(tiny_model, picture):
    assert tiny_model.predict(picture).name == picture.name
    assert len(tiny_model.predict([picture])) == 1
    assert [each.name for each in tiny_model.predict(picture.parent)] == [
        path.name for path in sorted(picture.parent.iterdir())
    ]


def test_a_grey_array_is_a_grey_picture(tiny_model):
    grey = np.arange(64 * 80, dtype=np.uint8).reshape(64, 80)
    assert same(tiny_model.predict(grey, score=0), tiny_model.predict(np.stack([grey] * 3, axis=2), score=0))


def test_a_sideways_photograph_has_boxes_as_it_is_seen(tiny_model, picture, tmp_path):
    upright = Image.open(picture).convert("RGB")
    exif = Image.Exif()
    exif[274] = 6
    upright.rotate(90, expand=True).save(tmp_path / "a.png", exif=exif)
    turned = tiny_model.predict(tmp_path / "a.png", score=0)
    assert turned.size == (upright.height, upright.width)
    assert same(turned, tiny_model.predict(upright, score=0))
    assert same(turned, tiny_model.predict(Image.open(tmp_path / "a.png"), score=0))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.zeros((8, 8, 3), np.float32), "an ndarray of shape (8, 8, 3), float32, is no picture"),
        (np.zeros((8, 8, 4), np.uint8), "(8, 8, 4), uint8"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), "a Tensor of shape (8, 8, 3), uint8"),
        (np.zeros((0, 8, 3), np.uint8), "(0, 8, 3)"),
        (17, "an int is no picture"),
    ],
)
def test_what_is_no_picture_is_refused(tiny_model, value, says):
    with pytest.raises(DataError) as error:
        tiny_model.predict(value)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"score": 1.5}, "the least score is 1.5"),
        ({"batch": 0}, "the batch is 0"),
        ({"classes": ["cow"]}, "no class 'cow'; the model has cat, größer 猫, dog/wolf"),
        ({"tile": 8}, "the side of tiles is 8"),
        ({"tile": 64.0}, "the side of tiles is 64.0"),
        ({"overlap": 0.2}, "the overlap 0.2 is of tiles: it goes with their size"),
        ({"tile": 64, "overlap": "0.2"}, "the overlap of tiles is '0.2'"),
        ({"score": "0.5"}, "the least score is '0.5'; give a number from 0 to 1"),
        ({"score": True}, "the least score is True"),
        ({"score": float("nan")}, "the least score is nan"),
        ({"batch": 2.5}, "the batch is 2.5; give a whole number"),
        ({"batch": True}, "the batch is True"),
        ({"classes": []}, "no class is named"),
        ({"classes": 3}, "there is no class 3"),
    ],
)
def test_wrong_options_are_said_at_once(tiny_model, picture, options, says):
    with pytest.raises(ValueError, match=says):
        tiny_model.stream(picture, **options)


def test_score_and_classes_select(tiny_model, picture):
    every = tiny_model.predict(picture, score=0)
    least = float(every.scores[5])
    assert len(tiny_model.predict(picture, score=least)) >= 6
    assert (tiny_model.predict(picture, score=least).scores >= least).all()
    some = tiny_model.predict(picture, score=0, classes=["dog/wolf", "cat"])
    one = tiny_model.predict(picture, score=0, classes="cat")
    assert {*one.names} == {"cat"}
    assert set(some.names) <= {"dog/wolf", "cat"}
    assert same(some, replace(every, detections=_with_labels(every.detections, (0, 2))))


def _with_labels(found, labels):
    kept = torch.isin(found.labels, torch.tensor(labels))
    return replace(found, boxes=found.boxes[kept], scores=found.scores[kept], labels=found.labels[kept])


def test_a_stream_keeps_the_order_and_leaves_out_what_cannot_be_read(tiny_model, picture, tmp_path):
    for number, size in enumerate([(80, 60), (60, 80), (0, 0), (80, 60), (64, 64), (60, 80)]):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", size).save(path) if size[0] else path.write_bytes(b"none")
    left_out = []
    found = list(tiny_model.stream(tmp_path, batch=2, on_unreadable=left_out.append))
    assert [each.name for each in found] == ["0.png", "1.png", "3.png", "4.png", "5.png"]
    assert [each.size for each in found][:2] == [(60, 80), (80, 60)]
    assert [each.source.name for each in left_out] == ["2.png"]
    with pytest.raises(DataError, match=r"2\.png"):
        list(tiny_model.stream(tmp_path))


def test_results_of_a_folder_hold_no_pictures_but_find_them(tiny_model, picture):
    (first, *_) = tiny_model.predict(picture.parent, score=0.9)
    assert first.pixels is None
    assert first.draw().size == Image.open(picture).size
    (first, *_) = tiny_model.stream(picture.parent, score=0.9)
    assert torch.equal(first.pixels, read_image(picture))


def test_tiles_find_what_is_in_them(tiny_model, picture):
    pixels = read_image(picture)[:, :64, :64]
    alone = tiny_model.predict(pixels, score=0)
    wide = torch.cat([pixels, torch.zeros_like(pixels)], dim=2)
    tiled = tiny_model.predict(wide, score=0, tile=64, overlap=0)
    assert tiled.size == (64, 128)
    inside = (alone.boxes[:, 2] < 60).nonzero().flatten()
    found = {tuple(box) for box in tiled.boxes.tolist()}
    assert sum(tuple(box) in found for box in alone.boxes[inside].tolist()) > 0.3 * len(inside)
    assert (tiled.scores.diff() <= 0).all()


def test_the_same_as_evaluations_in_training(tiny_weights, tiny_model, small_data):
    index = open_dataset(f"coco:{small_data}:val", small_data)
    cfg = tiny_config()
    model = build_model(cfg)
    model.load_state_dict(lgd.weights.files.read_checkpoint_file(tiny_weights).tensors)
    batches = build_test_loader(cfg, index, pin_memory=False)
    there = detect(model.eval().student, batches, CLASSES["category_ids"], device=torch.device("cpu"))
    there = there.found["student"].to_results()
    here = []
    for number, result in zip(
        index.image_ids.tolist(), tiny_model.predict(small_data / "val", score=0), strict=True
    ):
        here += result.to_coco(number)
    assert here == there


def test_folders_of_runs(tmp_path, tiny_weights, tiny_model, picture):
    cfg = tiny_config()
    torch.manual_seed(4)
    states = [build_model(cfg).state_dict() for _ in range(3)]
    about = {"config": flatten(cfg), "classes": CLASSES}
    save_checkpoint(tmp_path / "checkpoints", 7, {"model": states[0], **about}, keep=2)
    found = [lgd.load(tmp_path, "cpu").predict(picture, score=0)]
    for name, state in zip(("model_final.pth", "model_best.pth"), states[1:], strict=True):
        save_file(tmp_path / name, {"format": FORMAT, "model": state, **about})
        found.append(lgd.load(tmp_path, "cpu").predict(picture, score=0))
        assert same(found[-1], lgd.load(tmp_path / name, "cpu").predict(picture, score=0))
    assert not same(found[0], found[1])
    assert not same(found[1], found[2])
    assert lgd.load(tmp_path, "cpu").class_names == NAMES


def test_of_a_distiller_the_student_alone_is_built(tmp_path, picture):
    cfg = tiny_config()
    distilled = replace(
        cfg, model=replace(cfg.model, distillator=replace(cfg.model.distillator, enabled=True))
    )
    torch.manual_seed(4)
    model = build_model(distilled)
    about = {"config": flatten(distilled), "classes": CLASSES}
    save_file(tmp_path / "model.pth", {"format": FORMAT, "model": model.state_dict(), **about})
    loaded = lgd.load(tmp_path / "model.pth", "cpu")
    assert len(loaded.predict(picture, score=0)) > 10


def _save(path, **content):
    save_file(path, {"format": FORMAT, "model": build_model(tiny_config()).state_dict(), **content})


def test_what_is_missing_is_named(tmp_path):
    about = {"config": flatten(tiny_config()), "classes": CLASSES}
    two = {"names": ["a", "b"], "category_ids": [1, 2]}
    _save(tmp_path / "nothing.pth", classes=CLASSES)
    _save(tmp_path / "two.pth", **{**about, "classes": two})
    (tmp_path / "folder").mkdir()
    save_file(tmp_path / "empty.pth", {"format": FORMAT, "model": {}, **about})
    for name, says in {
        "none.pth": "no such weights file",
        "folder": "neither model_best.pth nor model_final.pth nor checkpoints",
        "nothing.pth": "does not say how its model is built; .* lgd convert",
        "two.pth": "names 2 classes, but its NUM_CLASSES is 3",
        "empty.pth": "empty.pth",
        "model.onnx": "model.onnx: No such file",
    }.items():
        with pytest.raises(WeightsError, match=says):
            lgd.load(tmp_path / name)


def test_files_without_classes_call_them_by_label(tmp_path, picture):
    _save(tmp_path / "model.pth", config=flatten(tiny_config()))
    assert lgd.load(tmp_path / "model.pth").class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("path", "says"),
    [("", "the path of the weights is empty"), ("~nobody.here/run", "^~nobody.here/run: no ")],
)
def test_a_path_that_is_none(tmp_path, monkeypatch, path, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=says):
        lgd.load(path)


@pytest.mark.parametrize("device", ["gpu", "mps", "cuda:99"])
def test_a_device_that_there_is_not(tiny_weights, device):
    with pytest.raises(ConfigError, match=f"the device is '{device}'"):
        lgd.load(tiny_weights, device)


def test_an_evaluation_with_other_classes_is_refused(tiny_model, small_data):
    with pytest.raises(DataError, match="has other classes"):
        lgd.evaluate(tiny_model, f"coco:{small_data}:val")


def test_arguments_of_an_evaluation_that_would_change_nothing_are_refused(tiny_model, small_data):
    index = open_dataset(f"coco:{small_data}:val", small_data)
    with pytest.raises(ValueError, match="a str is no model; give what"):
        lgd.evaluate("outputs/mine", index)
    with pytest.raises(ValueError, match="nothing is no data set; give a line"):
        lgd.evaluate(tiny_model, None)
    with pytest.raises(ValueError, match="the root somewhere is for a data set by its line,"):
        lgd.evaluate(tiny_model, index, root="somewhere")
    with pytest.raises(ConfigError, match="no evaluation backend 'coco'; give one of hotcoco, pycocotools"):
        lgd.evaluate(tiny_model, index, backend="coco")


def test_the_size_that_the_model_sees_is_the_files(tmp_path, picture):
    small = lgd.load(write_tiny(tmp_path / "a.safetensors", INPUT__MIN_SIZE_TEST=32), "cpu")
    assert small.rule.min_size == 32


def test_a_pil_image_is_drawn_as_it_was_given(tiny_model, picture):
    image = Image.open(picture).convert("RGB")
    image.filename = str(picture)
    image.paste((1, 2, 3), (0, 0, *image.size))
    result = tiny_model.predict(image, score=1.0)
    assert result.name == picture.name
    assert (np.asarray(result.draw()) == (1, 2, 3)).all()


def test_data_sets_are_decoded_as_single_pictures_are(tiny_model, tmp_path):
    """A model for pictures of 12 bits sees them alike in `predict` and where it is evaluated."""
    path = write_coco(tmp_path, [image_record(1)], [annotation(1, 1)], with_files=False)
    values = np.random.default_rng(1).integers(0, 4096, (48, 64)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "train/001.png")
    rule = replace(tiny_model.rule, decoding=Decoding((0, 4095)))
    names, ids = [each["name"] for each in CATEGORIES], [each["id"] for each in CATEGORIES]
    model = TrainedModel(
        tiny_model.run, rule, class_names=names, category_ids=ids, with_masks=False, device=tiny_model.device
    )
    found = detect_on(model, open_coco(path), with_masks=False)
    expected = model.predict(tmp_path / "train/001.png", score=0)
    assert len(found) == len(expected) > 3
    assert found.scores.tolist() == pytest.approx(expected.scores.tolist(), rel=1e-6)
    assert found.scores.max() != pytest.approx(
        tiny_model.predict(tmp_path / "train/001.png", score=0).scores.max().item(), rel=1e-6
    )
