"""A run is its data: what a checkpoint knows of it, and what a resume says of other data."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from lgd import train
from lgd.config.load import load_config
from lgd.data.catalog import open_dataset
from lgd.engine.checkpoint import Checkpoint, CheckpointError, load_newest
from lgd.run.data import open_data, trace_data
from tests.training import REPOSITORY, read_metrics, small_settings

DEMO = str(REPOSITORY / "configs/demo.yaml")


def change(folder, split, edit, **dump):
    """Edit the annotations of a split in place."""
    path = folder / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content, **dump))


def config(*specs, test=()):
    return load_config(
        DEMO, ["DATASETS.TRAIN", json.dumps(specs), "DATASETS.TEST", json.dumps(test), "NUM_CLASSES", "0"]
    )


def spec(folder, split="train"):
    return f"coco:{folder}:{split}"


def checkpoint_of(data, step=3, changes=()):
    state = {"data": data.describe(), "data_changes": list(changes)}
    return Checkpoint(Path("step.pth"), step, json.loads(json.dumps(state)))


@pytest.fixture
def copy(small_data, tmp_path):
    """A copy of the small data at another place."""
    return Path(shutil.copytree(small_data, tmp_path / "elsewhere"))


def fewer_images(content):
    gone = content["images"].pop()["id"]
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] != gone]


def move_a_box(content):
    content["annotations"][0]["bbox"][0] += 1


def other_label(content):
    label = content["annotations"][0]
    label["category_id"] = next(c["id"] for c in content["categories"] if c["id"] != label["category_id"])


def other_order(content):
    content["annotations"].reverse()


def swap_files(content):
    first, second = content["images"][:2]
    first["file_name"], second["file_name"] = second["file_name"], first["file_name"]


def no_object(content):
    content["annotations"].pop()


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (fewer_images, "images 12 -> 11, objects 45 -> "),
        (no_object, "objects 45 -> 44"),
        (move_a_box, "the same counts, other content (boxes, or their order)"),
        (other_label, "the same counts, other content (labels, or their order)"),
        (other_order, "the same counts, other content (boxes, labels"),
        (swap_files, "the same counts, other content (file names, or their order)"),
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_changed_content_is_refused_by_name(small_data, copy, edit, expected, split):
    if split == "val":
        expected = expected.replace("12 -> 11, objects 45 -> ", "5 -> 4").replace("45 -> 44", "14 -> 13")
    before = checkpoint_of(
        open_data(config(spec(small_data), test=[spec(small_data, "val")]), with_training=True)
    )
    change(copy, split, edit)
    now = open_data(config(spec(copy), test=[spec(copy, "val")]), with_training=True)
    with pytest.raises(CheckpointError) as error:
        trace_data(now, before, accept=False)
    assert f"other data: {spec(copy, split)} (was {spec(small_data, split)}): {expected}" in str(error.value)
    assert "TRAIN.ACCEPT_CHANGED_DATA True" in str(error.value)
    origin = trace_data(now, before, accept=True)
    assert origin.keeps_best == (split == "train")
    assert origin.changes == [
        {"step": 3, "changes": [line.removeprefix("other data: ") for line in origin.news]}
    ]
    again = checkpoint_of(now, changes=origin.changes)
    assert trace_data(now, again, accept=False).changes == origin.changes


def test_the_same_content_may_lie_elsewhere_and_be_written_otherwise(small_data, copy):
    before = checkpoint_of(open_data(config(spec(small_data)), with_training=True))
    change(copy, "train", lambda content: content.pop("info", None), indent=3)
    change(
        copy, "train", lambda content: [each.update(id=each["id"] + 100) for each in content["annotations"]]
    )
    now = open_data(config(spec(copy)), with_training=True)
    assert trace_data(now, before, accept=False).news == ()


def test_several_training_sets_are_held_one_by_one(small_data, copy):
    two = open_data(config(spec(small_data), spec(copy)), with_training=True)
    assert len(two.train) == 24
    before = checkpoint_of(two)
    assert trace_data(
        open_data(config(spec(copy), spec(small_data)), with_training=True), before, accept=False
    )
    with pytest.raises(CheckpointError, match=rf"other data: {spec(copy)} is gone"):
        trace_data(open_data(config(spec(small_data)), with_training=True), before, accept=False)
    one = checkpoint_of(open_data(config(spec(small_data)), with_training=True))
    with pytest.raises(CheckpointError, match=rf"other data: {spec(copy)} is new"):
        trace_data(two, one, accept=False)


def test_of_further_test_sets_those_count_that_are_called_as_before(small_data, copy):
    def opened(*tests):
        return open_data(config(spec(small_data), test=tests), with_training=True)

    val, other = spec(small_data, "val"), spec(copy, "val")
    before = checkpoint_of(opened(val, other))
    for tests in ((val,), (val, other), (val, spec(copy)), (other, val)):
        assert trace_data(opened(*tests), before, accept=False).keeps_best
    change(copy, "val", move_a_box)
    with pytest.raises(CheckpointError, match=rf"{other}: the same counts, other content \(boxes"):
        trace_data(opened(val, other), before, accept=False)
    assert trace_data(opened(val, other), before, accept=True).keeps_best
    assert not trace_data(opened(spec(small_data)), before, accept=True).keeps_best


@pytest.mark.parametrize("accept", [False, True])
def test_classes_stay(small_data, copy, accept):
    before = checkpoint_of(open_data(config(spec(small_data)), with_training=True))

    def refused(edit):
        change(copy, "train", edit)
        now = open_data(config(spec(copy)), with_training=True)
        with pytest.raises(CheckpointError, match="A run keeps its classes: choose another") as error:
            trace_data(now, before, accept=accept)
        return str(error.value)

    text = refused(lambda content: content["categories"].append({"id": 99, "name": "tree"}))
    assert "classes 6 -> 7 (with tree)" in text
    assert "classes 6 -> 7 (without disk, with plate, tree)" in refused(rename_first)


def rename_first(content):
    content["categories"][0]["name"] = "plate"


def test_other_ids_and_another_order_are_told(small_data, copy):
    before = checkpoint_of(open_data(config(spec(small_data)), with_training=True))
    change(copy, "train", shift_ids)
    now = open_data(config(spec(copy)), with_training=True)
    with pytest.raises(CheckpointError, match="category ids 1, 2, 3, 4, 5, 6 -> 11, 12, 13, 14, 15, 16"):
        trace_data(now, before, accept=False)
    assert trace_data(now, before, accept=True).news
    change(copy, "train", turn_classes)
    now = open_data(config(spec(copy)), with_training=True)
    with pytest.raises(CheckpointError, match=r"classes in another order: disk, .* -> cross, ring"):
        trace_data(now, before, accept=True)


def shift_ids(content):
    for each in content["categories"]:
        each["id"] += 10
    for each in content["annotations"]:
        each["category_id"] += 10


def turn_classes(content):
    """Give the classes their ids, and with them their labels, the other way round."""
    ids = [each["id"] for each in content["categories"]]
    turned = dict(zip(ids, reversed(ids), strict=True))
    for each in content["categories"]:
        each["id"] = turned[each["id"]]
    for each in content["annotations"]:
        each["category_id"] = turned[each["category_id"]]


def test_a_checkpoint_that_does_not_know_its_data_goes_on_with_a_warning(small_data, caplog):
    data = open_data(config(spec(small_data)), with_training=True)
    with caplog.at_level(logging.WARNING):
        assert trace_data(data, Checkpoint(Path("old.pth"), 3, {}), accept=False).news == ()
    assert "old.pth does not say what it was trained on" in caplog.text


def test_hashes_of_another_version_are_not_held_against_these(small_data, copy):
    before = checkpoint_of(open_data(config(spec(small_data)), with_training=True))
    record = before.state["data"]["train"][0]
    record["columns"].append("more")
    record["content"]["boxes"] = "other"
    assert trace_data(open_data(config(spec(copy)), with_training=True), before, accept=False).news == ()
    change(copy, "train", no_object)
    with pytest.raises(CheckpointError, match="objects 45 -> 44"):
        trace_data(open_data(config(spec(copy)), with_training=True), before, accept=False)


def test_the_hash_covers_every_column_but_ids_that_mean_nothing(small_data):
    without_effect = {"annotation_ids", "written_ids", "written_id_offsets"}
    index = open_dataset(spec(small_data), Path())
    before = index.hash_parts()
    assert set(before) == {"images", "file names", "boxes", "labels", "crowds", "masks"}
    for name, column in index.columns.items():
        changed = column.copy()
        changed.reshape(-1)[:1] = changed.reshape(-1)[:1] == 0
        index.columns[name] = changed
        differs = index.hash_parts() != before
        assert differs == (name not in without_effect and column.size > 0), name
        index.columns[name] = column


def test_the_other_kinds_of_sets_have_the_same_columns(tmp_path):
    from tests.data.boxes_sets import person, voc_object, write_crowdhuman, write_voc

    for specification in (
        write_crowdhuman(tmp_path / "crowd", {"a": [person((1, 2, 20, 30))], "b": [person((3, 3, 9, 9))]}),
        write_voc(tmp_path / "voc", {"a": [voc_object("cat", (5, 6, 20, 30))], "b": []}),
    ):
        assert len(set(open_dataset(specification, Path()).hash_parts().values())) == 6


def test_a_run_on_changed_data(small_data, copy, tmp_path, capsys):
    settings = small_settings(copy, tmp_path / "run", SOLVER__MAX_ITER=3)
    assert train.main(["--config-file", DEMO, *settings]) == 0
    saved = load_newest(tmp_path / "run" / "checkpoints").state
    assert [record["images"] for record in (*saved["data"]["train"], *saved["data"]["test"])] == [12, 5]
    change(copy, "train", fewer_images)
    change(copy, "val", move_a_box)
    more = [*settings, "SOLVER.MAX_ITER", "6"]
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert train.main(["--config-file", DEMO, "--resume", *more]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{spec(copy)}: images 12 -> 11, objects 45 -> " in line
    assert f"{spec(copy, 'val')}: the same counts, other content (boxes, or their order)" in line
    assert {path: path.read_bytes() for path in before} == before
    accept = ["TRAIN.ACCEPT_CHANGED_DATA", "True"]
    assert train.main(["--config-file", DEMO, "--resume", *more, *accept]) == 0
    assert "other data: " in capsys.readouterr().out
    state = load_newest(tmp_path / "run" / "checkpoints").state
    assert state["data"]["train"][0]["images"] == 11
    ((change_of_step),) = state["data_changes"]
    assert change_of_step["step"] == 3
    assert state["best"]["step"] == 6  # measured on the test set as it is
    starts = [json.loads(text) for text in (tmp_path / "run" / "history.jsonl").read_text().splitlines()][::2]
    assert [bool(start.get("notes")) for start in starts] == [False, True]
    assert train.main(["--config-file", DEMO, "--resume", *more]) == 0  # accepted once
    assert read_metrics(tmp_path / "run")[-1]["iteration"] == 6


def test_the_ap_of_the_right_names(small_data, copy, tmp_path):
    """Weights, a checkpoint, and further training on data whose classes have another order."""
    finished = tmp_path / "finished"
    wide = {"MODEL__DISTILLATOR__LABEL_ENCODER__WIDTH": 1024}  # with which classes come to APs of their own
    assert train.main(["--config-file", DEMO, *small_settings(small_data, finished, **wide)]) == 0
    for split in ("train", "val"):
        change(copy, split, turn_classes)

    def results(output, *flags, **settings):
        arguments = small_settings(copy, output, **wide, **settings)
        assert train.main(["--config-file", DEMO, *flags, *arguments]) == 0
        (models,) = json.loads((output / "results.json").read_text()).values()
        return models

    (expected,) = json.loads((finished / "results.json").read_text()).values()
    weights = results(tmp_path / "a", "--eval-only", MODEL__WEIGHTS=finished / "model_final.pth")
    shutil.copytree(finished, tmp_path / "b")
    checkpoint = results(tmp_path / "b", "--eval-only", "--resume")
    for found in (weights, checkpoint):
        for model in ("student", "teacher"):
            assert found[model]["bbox"] == pytest.approx(expected[model]["bbox"], abs=1e-6)
    assert len({value for name, value in expected["student"]["bbox"].items() if name.startswith("AP-")}) > 2
    tuned = {"MODEL__WEIGHTS": finished / "model_final.pth", "SOLVER__MAX_ITER": 1, "SOLVER__BASE_LR": 1e-9}
    again = results(tmp_path / "c", **tuned, SOLVER__WEIGHT_DECAY=0.0)
    assert again["student"]["bbox"] == pytest.approx(expected["student"]["bbox"], abs=0.01)
    state = torch.load(tmp_path / "c" / "model_final.pth", weights_only=True)
    assert state["classes"]["names"][0] == "cross"


def test_other_names_are_refused_with_both_lists(small_data, copy, tmp_path, capsys):
    assert (
        train.main(["--config-file", DEMO, *small_settings(small_data, tmp_path / "f", SOLVER__MAX_ITER=1)])
        == 0
    )
    for split in ("train", "val"):
        change(copy, split, rename_first)
    capsys.readouterr()
    settings = small_settings(
        copy, tmp_path / "o", MODEL__WEIGHTS=tmp_path / "f" / "model_final.pth", SOLVER__MAX_ITER=1
    )
    for flags in (("--eval-only",), ()):
        assert train.main(["--config-file", DEMO, *flags, *settings]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        names = "square, triangle, star, ring, cross"
        assert f"trained on other classes (disk, {names}) than the data has (plate, {names})" in line
        assert "model_final.pth: " in line
    anew = [*settings, "MODEL.WEIGHTS_IGNORE_CLASSES", "True"]
    assert train.main(["--config-file", DEMO, *anew]) == 0
    assert "in the file, not used: student.head (2), teacher.label_encoder (6)" in capsys.readouterr().out
    assert train.main(["--config-file", DEMO, "--eval-only", *anew]) == 2
    assert "not a trained detector" in capsys.readouterr().err
