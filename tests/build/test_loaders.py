from pathlib import Path

import pytest
import torch

from lgd.build.augmentations import build_augmentations
from lgd.build.training import build_train_loader, training_canvases, uses_static_canvases
from lgd.config.augmentation_schema import KINDS
from lgd.config.load import load_config
from tests.data.sets import annotation, image_record, open_coco, write_coco


def first_batches(tmp_path: Path, words: str, count: int = 10):
    annotations = [annotation(k, k, category=3) for k in range(1, 9)] + [annotation(20, 8, category=1)]
    index = open_coco(write_coco(tmp_path, [image_record(k) for k in range(1, 9)], annotations))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("")
    settings = "SOLVER.IMS_PER_BATCH 4 INPUT.MIN_SIZE_TRAIN (48,) DATALOADER.NUM_WORKERS 0 SEED 3"
    cfg = load_config(recipe, [*settings.split(), *words.split()])
    batches = iter(build_train_loader(cfg, index, first_step=0, device=torch.device("cpu")))
    return [next(batches) for _ in range(count)]


@pytest.mark.parametrize(
    ("kind", "size", "expected"),
    [
        ("relative", "(0.5,0.25)", (24, 16)),
        ("absolute", "(24,16)", (24, 16)),
        ("absolute_range", "(24,24)", (24, 24)),
        ("relative_range", "(1.0,1.0)", (48, 64)),
    ],
)
def test_crops_are_taken_before_resizing(tmp_path, kind, size, expected):
    crop = f"INPUT.CROP.ENABLED True INPUT.CROP.TYPE {kind} INPUT.CROP.SIZE {size}"
    (batch,) = first_batches(tmp_path, crop, count=1)
    short = min(expected)
    assert batch.sizes.tolist() == [[side * 48 // short for side in expected]] * 4


def test_rare_classes_are_repeated(tmp_path):
    words = "DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler DATALOADER.REPEAT_THRESHOLD 0.5"
    ids = [i for batch in first_batches(tmp_path, words, count=27) for i in batch.image_ids.tolist()]
    assert ids.count(8) in range(22, 27)  # twice as often as each of the seven others


def test_a_threshold_alone_repeats_nothing(tmp_path):
    ids = [
        i for b in first_batches(tmp_path, "DATALOADER.REPEAT_THRESHOLD 0.5") for i in b.image_ids.tolist()
    ]
    assert all(ids.count(k) == 5 for k in range(1, 9))


def test_static_canvases_are_the_recipes(tmp_path):
    words = "INPUT.MIN_SIZE_TRAIN (48,80) INPUT.MAX_SIZE_TRAIN 200 TRAIN.STATIC_CANVASES"
    tight = first_batches(tmp_path / "a", f"{words} auto")
    padded = first_batches(tmp_path / "b", f"{words} True")
    assert {batch.images.shape[2:] for batch in tight} == {(64, 64), (96, 128)}
    assert {batch.images.shape[2:] for batch in padded} == {(96, 128)}
    assert [tuple(batch.canvas.tolist()) for batch in padded] == [batch.images.shape[2:] for batch in tight]


@pytest.mark.parametrize(
    ("static", "compiled", "device", "expected"),
    [
        ("auto", "auto", "cuda", True),
        ("auto", "auto", "cpu", False),
        ("auto", "True", "cpu", False),
        ("auto", "False", "cuda", False),
        ("True", "False", "cpu", True),
        ("False", "True", "cuda", False),
    ],
)
def test_canvases_are_static_where_steps_are_compiled_on_cuda(tmp_path, static, compiled, device, expected):
    (tmp_path / "recipe.yaml").write_text("")
    words = ["TRAIN.STATIC_CANVASES", static, "TRAIN.COMPILE", compiled]
    cfg = load_config(tmp_path / "recipe.yaml", words)
    assert uses_static_canvases(cfg, torch.device(device)) is expected


@pytest.mark.parametrize("channels_last", [False, True])
def test_decoding_in_the_trainer_changes_nothing_on_the_cpu(tmp_path, channels_last):
    words = f"TRAIN.CHANNELS_LAST {channels_last} DATALOADER.DECODE_ON_GPU"
    plain = first_batches(tmp_path / "a", f"{words} False", count=3)
    for batch, other in zip(plain, first_batches(tmp_path / "b", f"{words} True", count=3), strict=True):
        assert torch.equal(batch.images, other.images)
        assert batch.images.stride() == other.images.stride()


def test_fixed_sizes_and_turns_have_static_canvases_too(tmp_path):
    (tmp_path / "recipe.yaml").write_text("INPUT: {MIN_SIZE_TRAIN: [96], MAX_SIZE_TRAIN: 160}")
    words = ["TRAIN.STATIC_CANVASES", "True"]
    jitter = ["INPUT.AUGMENTATIONS", "[{NAME: large_scale_jitter, SIZE: [100, 250]}]"]
    common = training_canvases(load_config(tmp_path / "recipe.yaml", words), torch.device("cpu"))
    cfg = load_config(tmp_path / "recipe.yaml", words + jitter)
    assert training_canvases(cfg, torch.device("cpu")) == (*common, (128, 256))


def test_lists_of_a_recipe_change_the_batches(tmp_path):
    (plain,) = first_batches(tmp_path / "a", "SEED 3", count=1)
    (turned,) = first_batches(tmp_path / "b", 'INPUT.AUGMENTATIONS [{"NAME":"quarter_turn"}]', count=1)
    assert plain.sizes.tolist() == [[48, 64]] * 4
    assert [64, 48] in turned.sizes.tolist()


def test_every_kind_of_entry_is_built(tmp_path):
    (tmp_path / "recipe.yaml").write_text("")
    entries = ", ".join(f"{{NAME: {name}}}" for name in KINDS)
    cfg = load_config(tmp_path / "recipe.yaml", ["INPUT.AUGMENTATIONS", f"[{entries}]"])
    built = build_augmentations(cfg)
    assert len(built) == len(KINDS)
    assert built[0].image_format == "BGR"
    assert len({type(each) for each in built}) == len(KINDS)
    for entry, each in zip(cfg.input.augmentations, built, strict=True):
        for key in entry.keys() - {"NAME"}:
            assert getattr(each, key.lower()) == entry[key]
