"""`lgd analyse`: what it takes, what it writes, and what it says of what it cannot take."""

import json
import re
from html.parser import HTMLParser

import pytest

import lgd
from lgd import cli
from lgd.config.keys import flatten
from lgd.run.output import OutputFolder
from tests.analyse.scenes import (
    DOG,
    detection,
    random_truth_and_detections,
    right_ones,
    write_json,
    write_scene,
)
from tests.data.sets import annotation, image_record, write_coco
from tests.tiny import CLASSES, tiny_config


class Page(HTMLParser):
    """What a page holds: its headings, the pictures, and whatever it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.headings, self.pictures, self.fetched, self.open = [], 0, [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "rect", "line", "circle", "polyline", "br"):
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href"):
                inline = value.startswith("data:image/jpeg;base64,")
                self.pictures += inline
                self.fetched += [] if inline else [value]

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data):
        if self.open[-1:] == ["h2"]:
            self.headings.append(data)


@pytest.fixture
def analysed(capsys, tmp_path):
    """Runs the command; returns code, what is on stdout as JSON, the last line on stderr, and the page."""

    def run(*words, out=tmp_path / "out"):
        code = cli.main(["analyse", *map(str, words), "--out", str(out), "--json", "--bootstrap", "20"])
        said = capsys.readouterr()
        page = out / "analysis.html"
        lines = said.err.strip().splitlines()
        return (
            code,
            json.loads(said.out) if said.out else None,
            lines[-1] if lines else "",
            Page(page.read_text()) if page.is_file() else None,
        )

    return run


def test_a_page_and_the_same_numbers(analysed, tmp_path):
    write_scene(tmp_path)
    found = [
        *right_ones()[:-1],
        detection(8, 7, (36, 20, 20, 20), 0.8),
        detection(2, 3, (4, 26, 10, 10), 0.95),
    ]
    code, said, _, page = analysed(write_json(tmp_path / "found.json", found), "--data", f"{tmp_path}:val")
    assert code == 0
    assert (said["images"], said["objects"], len(said["runs"])) == (8, 16, 1)
    run = said["runs"][0]
    assert run["confusion"]["counts"][DOG] == [7, 0, 1, 0]
    assert [(each["reason"], each["file"]) for each in said["suspects"]] == [
        ("unlabelled", "002.png"),
        ("other class", "008.png"),
    ]
    assert run["worst_pictures"][0] == {
        "image_id": 8, "file": "008.png", "right": 1, "wrong": 1, "missed": 1, "f1": 0.5,
    }  # fmt: skip
    assert page.fetched == page.open == []
    assert page.pictures == 2 * len(run["worst_pictures"]) + len(said["suspects"])
    assert page.headings[0] == "What goes wrong"
    assert "The pictures with the worst errors" in page.headings


def test_two_runs(analysed, tmp_path):
    write_scene(tmp_path)
    first = write_json(tmp_path / "a/found.json", right_ones()[:-3])
    second = write_json(tmp_path / "b/found.json", right_ones())
    code, said, _, page = analysed(first, second, "--data", f"{tmp_path}:val")
    assert code == 0
    assert [each["name"] for each in said["runs"]] == ["a/found.json", "b/found.json"]
    assert said["comparison"]["objects"]["only_second"] == 3
    assert said["comparison"]["metrics"][0]["difference"] > 0
    assert page.headings[:2] == ["A against B", "Where B is better"]
    assert page.pictures >= 2 * 3


def test_coco_file_of_predict_goes_by_names(analysed, tmp_path):
    write_scene(tmp_path)
    plain = right_ones()[2:]
    whole = {
        "images": [{"id": 100 - number, "file_name": f"{number:03d}.png"} for number in range(1, 9)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "cow"}, {"id": 3, "name": "dog"}],
        "annotations": [
            {
                **each,
                "image_id": 100 - each["image_id"],
                "category_id": {3: 1, 7: 2, 1: 3}[each["category_id"]],
            }
            for each in plain
        ],
    }
    data = ("--data", f"{tmp_path}:val")
    one = analysed(write_json(tmp_path / "found.json", plain), *data)[1]
    two = analysed(write_json(tmp_path / "whole" / "found.json", whole), *data)[1]
    assert one["runs"][0] == two["runs"][0] | {"name": one["runs"][0]["name"]}
    assert "no scores below 0.90" in two["doubts"][0]
    whole["images"].pop(0)
    said = analysed(write_json(tmp_path / "whole" / "found.json", whole), *data)[1]
    assert "lacks 1 of the 8 pictures" in said["doubts"][0]


def test_a_run_on_its_own_test_set(analysed, tmp_path, tiny_weights):
    """AP is that of `lgd.evaluate`; what was found is kept, and means the same run."""
    categories = [
        {"id": number, "name": name}
        for name, number in zip(CLASSES["names"], CLASSES["category_ids"], strict=True)
    ]
    objects = [annotation(k, k, category=1) for k in (1, 2, 3)]
    write_coco(tmp_path, [image_record(k) for k in (1, 2, 3)], objects, split="val", categories=categories)
    run = tmp_path / "run"
    run.mkdir()
    (run / "model_best.pth").symlink_to(tiny_weights)
    settings = flatten(tiny_config()) | {"DATASETS.TEST": [f"coco:{tmp_path}:val"]}
    write_config(run / "config.yaml", settings)
    code, said, _, page = analysed(run, "--device", "cpu", "--batch", "2", out=run / "analysis")
    assert code == 0
    expected = lgd.evaluate(lgd.load(tiny_weights, "cpu"), f"coco:{tmp_path}:val")["bbox"]
    assert said["runs"][0]["metrics"] == pytest.approx(expected, nan_ok=True)
    assert said["data"] == f"coco:{tmp_path}:val"
    assert page.fetched == []
    again = analysed(run / "analysis/predictions.json")[1]
    assert again["runs"][0]["metrics"] == said["runs"][0]["metrics"]
    assert (said["runs"][0]["name"], again["runs"][0]["name"]) == ("run", "run/predictions.json")


def test_saved_predictions_of_a_run_go_with_their_own_test_set(analysed, tmp_path):
    write_scene(tmp_path / "one")
    write_scene(tmp_path / "two", count=3)
    output = OutputFolder(tmp_path / "run")
    names = [f"coco:{tmp_path / folder}:val" for folder in ("one", "two")]
    for name, count in zip(names, (8, 3), strict=True):
        write_json(output.predictions(name, "student"), right_ones(count))
    write_config(output.config, flatten(tiny_config()) | {"DATASETS.TEST": names})
    for name in names:
        code, said, *_ = analysed(output.predictions(name, "student"))
        assert (code, said["data"]) == (0, name)
        assert said["runs"][0]["metrics"]["AP"] == pytest.approx(100)


def test_the_page_lies_in_the_runs_folder_or_here(tmp_path, monkeypatch, capsys):
    write_scene(tmp_path)
    output = OutputFolder(tmp_path / "run")
    name = f"coco:{tmp_path}:val"
    inside = write_json(output.predictions(name, "student"), right_ones())
    write_config(output.config, flatten(tiny_config()) | {"DATASETS.TEST": [name]})
    loose = write_json(tmp_path / "loose.json", right_ones())
    monkeypatch.chdir(tmp_path)
    assert cli.main(["analyse", str(inside)]) == cli.main(["analyse", str(loose), "--data", name]) == 0
    assert (tmp_path / "run/analysis/analysis.html").is_file()
    assert (tmp_path / "analysis/analysis.html").is_file()
    assert "AP 100.00  AP50 100.00" in capsys.readouterr().out


def write_config(path, settings):
    """Flat settings as the tree that a configuration file is."""
    import yaml

    tree = {}
    for key, value in settings.items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    path.write_text(yaml.safe_dump(tree))


@pytest.mark.parametrize("number", [1, 80])
def test_any_number_of_classes(analysed, tmp_path, number):
    objects, found = random_truth_and_detections(5, classes=number, images=60)
    categories = [{"id": k + 1, "name": f"class <{k}> & more"} for k in range(number)]
    annotations = [annotation(k, i, box, label + 1) for k, (i, label, box) in enumerate(objects, start=1)]
    images = [image_record(k) for k in range(1, 61)]
    write_coco(tmp_path, images, annotations, split="val", categories=categories)
    results = [detection(image, label + 1, box, score) for image, label, box, score in found]
    path = write_json(tmp_path / "found.json", results)
    code, said, _, page = analysed(path, path, "--data", f"{tmp_path}:val")
    assert code == 0
    assert len(said["runs"][0]["classes"]) == number
    assert page.fetched == page.open == []
    text = (tmp_path / "out/analysis.html").read_text()
    assert "class &lt;0&gt; &amp; more" in text
    assert not re.search("class <0>|NaN|nan|None|inf[^o]", text.split("<body>")[1].split("data:")[0])


def test_nothing_found(analysed, tmp_path):
    write_scene(tmp_path)
    path = write_json(tmp_path / "found.json", [])
    code, said, *_ = analysed(path, path, "--data", f"{tmp_path}:val")
    assert code == 0
    assert said["runs"][0]["metrics"]["AP"] == 0
    assert said["runs"][0]["classes"][0]["threshold"] is None
    assert "Nothing was found" in (tmp_path / "out/analysis.html").read_text()


def test_pictures_that_cannot_be_read_are_named(analysed, tmp_path):
    write_scene(tmp_path)
    (tmp_path / "val/003.png").write_bytes(b"no picture")
    found = write_json(tmp_path / "found.json", [each for each in right_ones() if each["image_id"] != 3])
    code, *_ = analysed(found, "--data", f"{tmp_path}:val")
    assert code == 0
    assert "003.png" in (tmp_path / "out/analysis.html").read_text()
    assert "the picture cannot be read" in (tmp_path / "out/analysis.html").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"info": 1}, "neither a list of them nor a COCO file"),
        ([{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]}], "entry 0 has no score"),
        ([detection(1, 3, (1, 2, 3), 0.5)], "entry 0 has a bbox of [1, 2, 3]"),
        ([detection(1, 3, (1, 2, 3, 4), 7)], "entry 0 has a score of 7"),
        ([detection(99, 3, (1, 2, 3, 4), 0.5)], "1 picture id that"),
        ([detection(1, 99, (1, 2, 3, 4), 0.5)], "1 class id that"),
        (
            {"images": [{"id": 1, "file_name": "other.jpg"}], "annotations": []},
            "1 of its 1 picture is not in",
        ),
        (
            {"categories": [{"id": 1, "name": "bird"}], "annotations": []},
            "has other classes (bird) than",
        ),
    ],
)
def test_predictions_that_do_not_fit(analysed, tmp_path, content, message):
    write_scene(tmp_path)
    good = write_json(tmp_path / "good.json", right_ones())
    bad = write_json(tmp_path / "bad.json", content)
    code, said, last, page = analysed(good, bad, "--data", f"{tmp_path}:val")
    assert (code, said, page) == (2, None, None)
    assert last.startswith(f"error: {bad}")
    assert message in last


def test_what_else_is_said_in_a_line(analysed, tmp_path, tiny_weights):
    write_scene(tmp_path)
    write_coco(tmp_path, [image_record(9)], [], split="empty")
    found = write_json(tmp_path / "found.json", right_ones())
    data = ("--data", f"{tmp_path}:val")
    assert "--data" in analysed(found)[2]
    assert "give one: " in analysed(found, "--data", tmp_path)[2]
    assert "has no labels" in analysed(found, "--data", f"{tmp_path}:empty")[2]
    assert "has other classes (dog, cat, cow) than the model" in analysed(tiny_weights, *data)[2]
    assert "absent.json" in analysed(tmp_path / "absent.json", *data)[2]
    (tmp_path / "broken.json").write_text("[{")
    assert "broken.json" in analysed(tmp_path / "broken.json", *data)[2]
    assert not (tmp_path / "out").exists()
