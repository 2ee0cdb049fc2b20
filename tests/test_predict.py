"""`lgd predict`: files in, files out, and what it says of what went wrong."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from lgd import cli, predict
from tests.tiny import NAMES
from tests.training import run_to_end, small_settings


@pytest.fixture
def folder(tmp_path):
    """Two pictures, one of them in a sub folder."""
    generator = np.random.default_rng(1)
    for name, size in (("a.jpg", (80, 96, 3)), ("cam/b.tif", (96, 80, 3))):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, size, dtype=np.uint8)).save(tmp_path / "data" / name)
    return tmp_path / "data"


def run(weights, *words):
    return cli.main(["predict", str(weights), *map(str, words), "--device", "cpu"])


def test_every_kind_of_file(tiny_weights, folder, tmp_path):
    out = tmp_path / "out"
    words = ("--out", out, "--save", "images,coco,csv,yolo,crops", "--score", "0.0105")
    assert run(tiny_weights, folder, *words) == 0
    assert Image.open(out / "images/a.jpg").size == (96, 80)
    assert Image.open(out / "images/cam/b.tif.png").size == (80, 96)

    content = json.loads((out / "predictions.json").read_text())
    assert [(each["id"], each["file_name"]) for each in content["images"]] == [(1, "a.jpg"), (2, "cam/b.tif")]
    assert [each["id"] for each in content["categories"]] == [1, 7, 3]
    found = content["annotations"]
    assert len(found) > 2
    assert {each["image_id"] for each in found} == {1, 2}

    rows = list(csv.DictReader((out / "predictions.csv").open(encoding="utf-8")))
    assert len(rows) == len(found)
    assert {row["class"] for row in rows} <= set(NAMES)

    assert (out / "labels/classes.txt").read_text("utf-8").splitlines() == list(NAMES)
    lines = (out / "labels/a.txt").read_text().splitlines()
    label, x, y, w, h, score = map(float, lines[0].split())
    assert len(lines) + len((out / "labels/cam/b.txt").read_text().splitlines()) == len(found)
    left, top, width, height = found[0]["bbox"]
    assert [1, 7, 3][int(label)] == found[0]["category_id"]
    assert [x * 96, y * 80, w * 96, h * 80, score] == pytest.approx(
        [left + width / 2, top + height / 2, width, height, found[0]["score"]], abs=1e-3
    )

    crops = list((out / "crops").rglob("*.jpg"))
    assert len(crops) == len(found)
    assert {path.relative_to(out / "crops").parts[0] for path in crops} <= {"cat", "größer_猫", "dog_wolf"}
    assert not list(out.glob(".*"))


def test_lines_of_json_are_all_that_is_on_stdout(tiny_weights, folder, capsys):
    (folder / "bad.png").write_bytes(b"none")
    assert run(tiny_weights, folder, "--json", "--score", "0.0105") == 2
    said = capsys.readouterr()
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert [line["name"] for line in lines] == ["a.jpg", "bad.png", "cam/b.tif"]
    assert "bad.png" in lines[1]["error"]
    assert lines[0]["detections"][0].keys() == {"box", "score", "label", "name"}
    assert f"cannot read image {folder / 'bad.png'}" in said.err
    assert said.err.splitlines()[-1] == "error: 1 of 3 files could not be read; see the lines above"


def test_image_ids_of_an_annotation_file(tiny_weights, folder, tmp_path):
    known = {"images": [{"id": 40, "file_name": "a.jpg"}, {"id": 9, "file_name": "cam/b.tif"}]}
    (tmp_path / "ids.json").write_text(json.dumps(known))
    words = ("--out", tmp_path / "out", "--save", "coco", "--ids", tmp_path / "ids.json", "--score", "0")
    assert run(tiny_weights, folder, *words) == 0
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    assert {each["image_id"] for each in content["annotations"]} == {9, 40}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("empty", "--json"), "empty: there are no pictures or videos in it"),
        (("nowhere", "--json"), "nowhere: no such file or folder"),
        (("data", "--json", "--classes", "cow,cat"), "there is no class 'cow'"),
        (("data", "--out", "out", "--ids", "ids.json"), "ids.json: has no image a.jpg (2 pictures"),
        (("data", "--out", "ids.json"), "a file, where a folder is needed: ids.json"),
        (("~nobody.here/a.jpg", "--json"), "~nobody.here/a.jpg: no such file or folder"),
        (("", "--json"), "a picture's path is empty"),
        (("data", "--json", "--classes", ","), "no class is named to look for"),
    ],
)
def test_what_the_user_can_mend_is_a_line(tiny_weights, folder, monkeypatch, capsys, words, says):
    monkeypatch.chdir(folder.parent)
    (folder.parent / "empty").mkdir()
    (folder.parent / "ids.json").write_text('{"images": []}')
    assert run(tiny_weights, *words) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert says in last


@pytest.mark.parametrize(
    "words",
    [
        ("data",),
        ("data", "--json", "--save", "csv"),
        ("data", "--out", "out", "--save", "pdf"),
        ("data", "--out", "out", "--save", ","),
        ("data", "--out", ""),
        ("data", "--json", "--score", "2"),
        ("data", "--json", "--batch", "0"),
        ("data", "--json", "--tile", "8"),
        ("data", "--json", "--overlap", "0.3"),
        ("data", "--json", "--ids", "ids.json"),
        ("data", "--out", "out", "--save", "csv", "--ids", "ids.json"),
        ("data", "--json", "--backend", "abacus"),
        ("data", "--json", "--precision", "half"),
    ],
)
def test_wrong_arguments_end_with_2(words, capsys):
    with pytest.raises(SystemExit) as end:
        predict.parse_arguments(["weights", *words])
    assert end.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_the_precision_that_is_asked_for(tiny_weights, folder, capsys):
    found = {}
    for precision in ("float32", "bfloat16"):
        words = ("--json", "--score", "0", "--precision", precision)
        assert run(tiny_weights, folder, *words) == 0
        found[precision] = [json.loads(line)["detections"] for line in capsys.readouterr().out.splitlines()]
    assert len(found["float32"]) == len(found["bfloat16"]) == 2
    assert found["float32"] != found["bfloat16"]


def test_an_older_file_stays_when_something_goes_wrong(tiny_weights, folder, tmp_path, monkeypatch):
    assert run(tiny_weights, folder, "--out", tmp_path / "out", "--save", "coco") == 0
    before = (tmp_path / "out/predictions.json").read_bytes()

    def fail(self, image_id):
        raise OSError(28, "No space left on device", "predictions.json")

    monkeypatch.setattr("lgd.inference.result.Result.to_coco", fail)
    assert run(tiny_weights, folder, "--out", tmp_path / "out", "--save", "coco", "--score", "0") == 2
    assert (tmp_path / "out/predictions.json").read_bytes() == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.json"]


def test_ctrl_c_ends_with_130(tiny_weights, folder, tmp_path, monkeypatch):
    def interrupt(self, result):
        raise KeyboardInterrupt

    monkeypatch.setattr("lgd.inference.save.Savers.add", interrupt)
    assert run(tiny_weights, folder, "--out", tmp_path / "out") == 130


def test_progress_of_a_log_is_a_line_now_and_then(tiny_weights, folder, capsys, monkeypatch):
    monkeypatch.setattr("lgd.notices._SECONDS", 0.0)
    assert run(tiny_weights, folder, "--json") == 0
    said = capsys.readouterr().err
    assert "predicting: 1 of 2 images, " in said
    assert "ETA 0:00:" in said
    assert "2 pictures, 0 objects, " in said


def test_one_label_file_for_each_of_two_pictures_of_one_stem(tiny_weights, folder, tmp_path):
    Image.new("RGB", (40, 40)).save(folder / "a.png")
    assert run(tiny_weights, folder, "--out", tmp_path / "out", "--save", "yolo,images") == 0
    assert (tmp_path / "out/labels/a.txt").exists()
    assert (tmp_path / "out/labels/a.png.txt").exists()
    assert (tmp_path / "out/images/a.png").exists()


@pytest.mark.slow
def test_ap_of_the_file_equals_that_of_eval_only(tmp_path, sample_data):
    """A short training, `--eval-only`, and `lgd predict` on the same pictures in batches of other sizes."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    import lgd

    trained = small_settings(
        sample_data, tmp_path / "run", SOLVER__MAX_ITER=150, SOLVER__STEPS="[120]", SEED=1
    )
    run_to_end([*trained, "NUM_CLASSES", "0"])
    weights = tmp_path / "run/model_final.pth"
    evaluated = small_settings(sample_data, tmp_path / "eval")
    run_to_end([*evaluated, "NUM_CLASSES", "0", "MODEL.WEIGHTS", str(weights)], "--eval-only")
    ((models,),) = (json.loads((tmp_path / "eval/results.json").read_text()).values(),)
    expected = models["student"]["bbox"]
    assert expected["AP50"] > 0

    annotations = sample_data / "annotations/instances_val.json"
    metrics = lgd.evaluate(lgd.load(tmp_path / "run", "cpu"), f"coco:{sample_data}:val")
    assert metrics["bbox"] == expected
    for batch in (1, 8):
        out = tmp_path / f"out{batch}"
        words = ("--ids", annotations, "--score", "0", "--save", "coco", "--batch", batch)
        assert run(weights, sample_data / "val", "--out", out, *words) == 0
        truth = COCO(str(annotations))
        found = json.loads((out / "predictions.json").read_text())["annotations"]
        scorer = COCOeval(truth, truth.loadRes(found), "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
        assert 100 * scorer.stats[0] == pytest.approx(expected["AP"], abs=1e-9)
        assert 100 * scorer.stats[1] == pytest.approx(expected["AP50"], abs=1e-9)


def test_a_drawing_that_cannot_be_written_ends_the_command(tiny_weights, folder, tmp_path, capsys):
    (tmp_path / "out/images/cam").mkdir(parents=True)
    (tmp_path / "out/images/cam/b.tif.png").mkdir()
    assert run(tiny_weights, folder, "--out", tmp_path / "out", "--save", "images") == 2
    assert "b.tif.png" in capsys.readouterr().err.splitlines()[-1]
