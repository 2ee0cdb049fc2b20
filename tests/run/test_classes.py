"""Runs on sets that name their classes in another order, lack some, or are mixed by weight."""

import json
import shutil

import pytest
import torch

from lgd import train
from lgd.engine.checkpoint import load_newest
from tests.run.test_data import change, turn_classes
from tests.training import REPOSITORY, read_metrics, small_settings

DEMO = str(REPOSITORY / "configs/demo.yaml")


def run(data, output, *flags, **changes):
    settings = small_settings(data, output, SOLVER__MAX_ITER=4, **changes)
    return train.main(["--config-file", DEMO, *flags, *settings])


def results(output):
    (found,) = json.loads((output / "results.json").read_text()).values()
    return found["student"]["bbox"]


def final_model(output):
    return torch.load(output / "model_final.pth", weights_only=True)["model"]


def assert_same_model(one, other):
    expected, got = final_model(one), final_model(other)
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name


def without_class(name):
    def edit(content):
        (gone,) = (each["id"] for each in content["categories"] if each["name"] == name)
        content["categories"] = [each for each in content["categories"] if each["id"] != gone]
        content["annotations"] = [each for each in content["annotations"] if each["category_id"] != gone]

    return edit


@pytest.fixture(scope="module")
def two_sets(small_data, tmp_path_factory):
    """A folder with the small set in other files: "turned" has its classes in the opposite order."""
    folder = tmp_path_factory.mktemp("two") / "data"
    shutil.copytree(small_data, folder)
    for split in ("train", "val"):
        for name, edit in (("turned", turn_classes), ("fewer", without_class("ring"))):
            shutil.copytree(folder / split, folder / f"{name}_{split}")
            annotations = folder / "annotations"
            shutil.copy(
                annotations / f"instances_{split}.json", annotations / f"instances_{name}_{split}.json"
            )
            change(folder, f"{name}_{split}", edit)
    return folder


@pytest.fixture(scope="module")
def plain(two_sets, tmp_path_factory):
    """A run on the set and itself again, everything in one order."""
    output = tmp_path_factory.mktemp("plain")
    assert run(two_sets, output, DATASETS__TRAIN=specs(two_sets, "train", "train")) == 0
    return output


def specs(folder, *splits):
    return json.dumps([f"coco:{folder}:{split}" for split in splits])


def test_the_order_in_the_files_changes_nothing(two_sets, plain, tmp_path, capsys):
    """The same objects under the same names: training and AP by name are equal to the last bit."""
    changes = {
        "DATASETS__TRAIN": specs(two_sets, "train", "turned_train"),
        "DATASETS__TEST": specs(two_sets, "turned_val"),
    }
    assert run(two_sets, tmp_path, **changes) == 0
    assert results(tmp_path) == results(plain)
    assert_same_model(plain, tmp_path)
    ids = {
        name: {each["name"]: each["id"] for each in json.loads(path.read_text())["categories"]}
        for name, path in (
            (n, two_sets / "annotations" / f"instances_{n}.json") for n in ("val", "turned_val")
        )
    }
    assert ids["val"] != ids["turned_val"]
    (found,), (expected,) = (
        [json.loads(path.read_text()) for path in (output / "inference").rglob("predictions.json")]
        for output in (tmp_path, plain)
    )
    by_id = {category_id: ids["turned_val"][name] for name, category_id in ids["val"].items()}
    assert [each["category_id"] for each in found] == [by_id[each["category_id"]] for each in expected]
    state = load_newest(tmp_path / "checkpoints").state
    train_names = [record["class_names"] for record in (*state["data"]["train"], *state["data"]["test"])]
    assert train_names == [state["classes"]["names"]] * 3


def test_a_class_that_val_lacks(two_sets, plain, tmp_path, capsys):
    expected = results(plain)
    weights = plain / "model_final.pth"
    fewer = {"DATASETS__TEST": specs(two_sets, "fewer_val"), "MODEL__WEIGHTS": weights}
    assert run(two_sets, tmp_path / "a", "--eval-only", **fewer) == 0
    found = results(tmp_path / "a")
    assert found["AP-ring"] is None
    assert {name for name in found if name.startswith("AP-")} == {
        name for name in expected if name.startswith("AP-")
    }
    for name in ("disk", "square", "triangle", "star", "cross"):
        assert found[f"AP-{name}"] == expected[f"AP-{name}"]
    assert "its categories lack ring, which the run has" in (tmp_path / "a" / "log.txt").read_text()
    assert run(two_sets, tmp_path / "b", DATASETS__TEST=specs(two_sets, "fewer_val")) == 0
    assert results(tmp_path / "b")["AP-ring"] is None
    assert "its categories lack ring, which the run has" in (tmp_path / "b" / "log.txt").read_text()


def test_a_class_that_a_training_set_lacks(two_sets, tmp_path, capsys):
    changes = {"DATASETS__TRAIN": specs(two_sets, "train", "fewer_train")}
    assert run(two_sets, tmp_path, **changes) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert (
        f"coco:{two_sets}:fewer_train does not list the class ring, which coco:{two_sets}:train has" in line
    )
    assert "DATASETS.CLASSES: '[disk, square, triangle, star, ring, cross]' takes the sets as they" in line
    assert "'[disk, square, triangle, star, cross]' trains on what all have" in line
    assert not (tmp_path / "log.txt").exists()
    changes["DATASETS__CLASSES"] = "[disk, square, triangle, star, ring, cross]"
    assert run(two_sets, tmp_path, **changes) == 0
    assert results(tmp_path)["AP-ring"] is not None
    changes |= {"DATASETS__CLASSES": "[ring]", "DATASETS__TRAIN": specs(two_sets, "fewer_train")}
    assert run(two_sets, tmp_path, **changes) == 2
    assert "none of its 12 images has an object to train on" in capsys.readouterr().err


def test_a_merged_subset_is_trained_and_evaluated(two_sets, tmp_path, capsys):
    changes = {"DATASETS__CLASSES": "{round: [ring, disk], star: star}", "DATASETS__OTHER_CLASSES": "ignore"}
    assert run(two_sets, tmp_path, **changes) == 0
    found = results(tmp_path)
    assert [name for name in found if name.startswith("AP-")] == ["AP-round", "AP-star"]
    state = load_newest(tmp_path / "checkpoints").state
    assert state["classes"] == {"names": ["round", "star"], "category_ids": [5, 4]}
    assert "regions to ignore in evaluations" in (tmp_path / "log.txt").read_text()
    assert run(two_sets, tmp_path, "--resume", "--eval-only", **changes) == 0
    assert results(tmp_path) == found
    assert run(two_sets, tmp_path, "--resume", DATASETS__CLASSES="{round: [ring], star: star}") == 2
    assert "was trained on other data" in capsys.readouterr().err
    assert run(two_sets, tmp_path, "--resume") == 2
    assert "or choose the same classes by name (DATASETS.CLASSES)" in capsys.readouterr().err


def test_a_weighted_run_goes_on_exactly(two_sets, tmp_path):
    changes = {
        "DATASETS__TRAIN": specs(two_sets, "train", "turned_train"),
        "DATASETS__WEIGHTS": "[1, 3]",
        "DATALOADER__SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
        "DATALOADER__REPEAT_THRESHOLD": 0.5,
    }
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(two_sets, whole, **changes) == 0
    shutil.copytree(whole, parts)
    for path in (parts / "checkpoints").glob("step_0000004*"):
        path.unlink()
    (parts / "model_final.pth").unlink()
    assert run(two_sets, parts, "--resume", **changes) == 0
    assert read_metrics(parts) == read_metrics(whole)
    assert_same_model(whole, parts)


def test_a_weighted_set_without_objects_is_an_error(two_sets, tmp_path, capsys):
    shutil.copytree(two_sets, tmp_path / "data")
    change(tmp_path / "data", "turned_train", lambda content: content["annotations"].clear())
    changes = {
        "DATASETS__TRAIN": specs(tmp_path / "data", "train", "turned_train"),
        "DATASETS__WEIGHTS": "[1, 3]",
    }
    assert run(tmp_path / "data", tmp_path / "out", **changes) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "instances_turned_train.json has a weight, but no image with an object to train on" in line


def test_crowds_may_be_objects(two_sets, tmp_path):
    shutil.copytree(two_sets, tmp_path / "data")

    def mark(content):
        content["annotations"][0]["iscrowd"] = 1

    change(tmp_path / "data", "train", mark)
    assert run(tmp_path / "data", tmp_path / "out", DATASETS__CROWDS="object") == 0
    log = (tmp_path / "out" / "log.txt").read_text()
    assert ":train: 12 images, 45 objects" in log
    assert "1 crowd is taken for an object" in log
