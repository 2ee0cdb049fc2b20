"""TEST.BEST_METRIC: what chooses model_best.pth, and which names there are."""

import json

import pytest
import torch

from lgd import exits, train
from lgd.config.values import ConfigError
from lgd.data.catalog import open_dataset
from lgd.engine.checkpoint import load_newest
from lgd.run.best import require_metric
from tests.data.boxes_sets import person, write_crowdhuman
from tests.data.sets import annotation, image_record, open_coco, write_coco
from tests.training import REPOSITORY, read_metrics, small_settings

DEMO = str(REPOSITORY / "configs/demo.yaml")


def lgd_train(settings, *flags):
    return train.main(["--config-file", DEMO, *flags, *settings])


@pytest.fixture(scope="module")
def finished(small_data, tmp_path_factory):
    output = tmp_path_factory.mktemp("best") / "run"
    settings = small_settings(
        small_data,
        output,
        TEST__BEST_METRIC="AR@120",
        TEST__DETECTIONS_PER_IMAGE=120,
        TEST__EVAL_PERIOD=3,
        SOLVER__MAX_ITER=6,
    )
    assert lgd_train(settings) == 0
    return output


def values_of(output, name):
    return {
        line["iteration"]: next(iter(line["eval"].values()))["student"]["bbox"][name]
        for line in read_metrics(output)
        if "eval" in line
    }


def test_it_chooses_the_best_model(finished):
    best = load_newest(finished / "checkpoints").state["best"]
    values = values_of(finished, "AR@120")
    assert best == {"AR@120": max(values.values()), "step": best["step"]}
    assert values[best["step"]] == best["AR@120"]
    assert (finished / "model_best.pth").exists()
    (results,) = json.loads((finished / "results.json").read_text()).values()
    assert {"AP@120", "AP50@120", "AP75@120", "AR@120"} <= results["student"]["bbox"].keys()


def test_curves_have_it(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished))
    events.Reload()
    assert any(tag.startswith("AP_bbox/") and tag.endswith("/AP@120") for tag in events.Tags()["scalars"])


def test_another_metric_begins_anew(finished, small_data):
    settings = small_settings(
        small_data,
        finished,
        TEST__BEST_METRIC="AP50",
        TEST__DETECTIONS_PER_IMAGE=120,
        TEST__EVAL_PERIOD=3,
        SOLVER__MAX_ITER=9,
    )
    assert lgd_train(settings, "--resume") == 0
    best = load_newest(finished / "checkpoints").state["best"]
    assert best == {"AP50": values_of(finished, "AP50")[9], "step": 9}
    assert torch.load(finished / "model_best.pth", weights_only=True)["config"]["TEST.BEST_METRIC"] == "AP50"


def test_a_name_that_is_none_ends_the_run_before_the_first_step(small_data, tmp_path, capsys):
    settings = small_settings(small_data, tmp_path / "run", TEST__BEST_METRIC="AP_50")
    assert lgd_train(settings) == exits.USER_ERROR
    said = capsys.readouterr().err
    assert "TEST.BEST_METRIC AP_50 is not measured on" in said
    assert "did you mean AP50?" in said
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.fixture
def cells(tmp_path):
    return open_coco(write_coco(tmp_path, [image_record(1)], [annotation(1, 1)]))


@pytest.mark.parametrize("name", ["AP", "bbox/AP75", "segm/AP", "AP@300", "AP-cat", "segm/AR@300"])
def test_names(cells, name):
    require_metric(name, cells, with_masks=True, cap=300)


@pytest.mark.parametrize("name", ["ap", "segm/AP", "AP@300", "AP@1000", "AP-horse", "mMR", ""])
def test_names_that_are_none(cells, name):
    with pytest.raises(
        ConfigError, match=r"TEST\.BEST_METRIC .* is not measured on a set.* There are AP, AP50"
    ):
        require_metric(name, cells, with_masks=False, cap=100)


def test_names_of_other_kinds_of_sets(tmp_path):
    index = open_dataset(write_crowdhuman(tmp_path, {"a": [person((1, 1, 20, 20))]}), tmp_path)
    require_metric("mMR", index, with_masks=False, cap=100)


def test_nothing_chooses_without_annotations(tmp_path):
    index = open_coco(write_coco(tmp_path, [image_record(1)], None))
    require_metric("AP", index, with_masks=False, cap=100)
    with pytest.raises(ConfigError, match=r"TEST\.BEST_METRIC AP50: a set has no annotations"):
        require_metric("AP50", index, with_masks=False, cap=100)
