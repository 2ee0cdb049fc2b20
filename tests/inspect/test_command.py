"""`lgd data`: what it says to people and to programs, and when it ends with 2."""

import json
import time

import numpy as np
import pytest
from PIL import Image

from lgd import cli
from tests.data.sets import annotation, image_record, write_coco


@pytest.fixture
def folder(tmp_path):
    """A train and a val split; of the four annotations of train one is a crowd and one has no size."""
    annotations = [
        annotation(1, 1),
        annotation(2, 1, (0, 0, 10, 0)),
        annotation(3, 2, category=1, iscrowd=1, segmentation={"size": [48, 64], "counts": [10, 3062]}),
        annotation(4, 2, (30, 10, 8, 8), category=1),
    ]
    write_coco(tmp_path, [image_record(k) for k in (1, 2, 3)], annotations)
    write_coco(tmp_path, [image_record(4)], [annotation(9, 4)], split="val")
    return tmp_path


def lgd_data(capsys, *arguments):
    """Exit code, what is on stdout, and what is on stderr."""
    code = cli.main(["data", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_stdout_is_a_line_of_json_for_each_set_and_words_go_to_stderr(folder, capsys):
    code, out, err = lgd_data(capsys, folder, "--json")
    assert code == 0
    train, val = map(json.loads, out.splitlines())
    assert train["name"] == f"coco:{folder}:train"
    assert "instances_train.json" in train["layout"]
    assert (train["images"], train["objects"], train["crowds"]) == (3, 2, 1)
    assert train["classes"] == [
        {"name": "dog", "objects": 1, "images": 1},
        {"name": "cat", "objects": 1, "images": 1},
        {"name": "cow", "objects": 0, "images": 0},
    ]
    assert train["dropped"] == {"boxes_without_size": 1, "crowds": 1}
    assert any("cow" in line for line in train["warnings"])
    assert (val["images"], val["objects"], val["crowds"]) == (1, 1, 0)
    assert "what to set" in err


def test_words_go_to_stdout(folder, capsys):
    code, out, err = lgd_data(capsys, f"coco:{folder}:train")
    assert (code, err) == (0, "")
    for words in ("3, 1 of them without objects", "and 1 crowd", "in 1 image ", "NUM_CLASSES 3", "64 x 48"):
        assert words in out
    assert f"coco:{folder}:val" not in out


def test_the_same_picture_in_two_sets_is_said(folder, capsys):
    (folder / "val" / "004.png").write_bytes((folder / "train" / "002.png").read_bytes())
    _, out, _ = lgd_data(capsys, folder, "--json")
    train = json.loads(out.splitlines()[0])
    (line,) = [line for line in train["warnings"] if "same picture" in line]
    assert f"coco:{folder}:val" in line
    assert "002.png = 004.png" in line
    assert "same picture" not in lgd_data(capsys, folder, "--json", "--no-duplicates")[1]


def test_classes_that_only_one_of_the_sets_has_are_named(folder, capsys):
    names = [{"id": 1, "name": "cat"}, {"id": 2, "name": "fox"}]
    write_coco(folder, [image_record(4)], [annotation(9, 4, category=2)], split="val", categories=names)
    _, out, _ = lgd_data(capsys, folder, "--json")
    train, val = (json.loads(line)["warnings"] for line in out.splitlines())
    assert any("not here, 2: dog, cow" in line for line in val)
    assert any("does not have, 1: fox" in line for line in val)
    assert not any("fox" in line for line in train)


def test_many_pictures_are_not_compared_unasked(folder, capsys, monkeypatch):
    monkeypatch.setattr("lgd.inspect.duplicates.MAX_COMPARED", 2)
    (folder / "val" / "004.png").write_bytes((folder / "train" / "002.png").read_bytes())
    code, out, _ = lgd_data(capsys, folder)
    assert code == 0
    assert "not looked for, 4 pictures are many" in out
    code, out, _ = lgd_data(capsys, folder, "--duplicates")
    assert "002.png = 004.png" in out


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ([], "no objects"),
        (None, "no annotations"),
        ([annotation(1, 1, iscrowd=1)], "only 1 crowd"),
        ([annotation(1, 1, (0, 0, 10, 0))], "no objects"),
    ],
)
def test_what_cannot_be_trained_on_ends_with_2(annotations, words, tmp_path, capsys):
    write_coco(tmp_path, [image_record(1)], annotations)
    for word in (f"coco:{tmp_path}:train", tmp_path):
        code, out, err = lgd_data(capsys, word, "--json")
        assert code == 2
        assert json.loads(out)["trainable"] is False
        assert err.splitlines()[-1].startswith("error: ")
        assert words in err.splitlines()[-1]


def test_a_test_split_may_lack_labels_where_another_split_has_some(folder, capsys):
    write_coco(folder, [image_record(5)], None, split="test")
    code, out, _ = lgd_data(capsys, folder, "--json")
    assert code == 0
    assert [json.loads(line)["trainable"] for line in out.splitlines()] == [True, True, False]


def test_a_set_that_cannot_be_read_keeps_no_other_from_being_shown(folder, capsys):
    code, out, err = lgd_data(capsys, "coco:nowhere:train", f"coco:{folder}:val", "--json")
    assert code == 2
    assert json.loads(out)["name"] == f"coco:{folder}:val"
    assert "nowhere" in err.splitlines()[-1]


def test_an_empty_folder_is_said(tmp_path, capsys):
    code, out, err = lgd_data(capsys, tmp_path, "--json")
    assert (code, out) == (2, "")
    assert str(tmp_path) in err
    assert len(err.splitlines()) == 1


def test_a_path_that_is_none_is_no_folder(monkeypatch, folder, capsys):
    """An empty one, of a variable that is not set, is not the folder that one is in."""
    monkeypatch.chdir(folder)
    code, _, err = lgd_data(capsys, "")
    assert code == 2
    assert err.startswith("error: unknown data set ''")


@pytest.mark.parametrize(
    "draw", [("0", "a.png"), ("x", "a.png"), ("4", "a.gif"), ("1000", "a.png"), ("4", "~nobody.here/a.png")]
)
def test_what_cannot_be_drawn_is_refused(draw, folder):
    with pytest.raises(SystemExit) as ended:
        cli.main(["data", str(folder), "--draw", *draw])
    assert ended.value.code == 2


@pytest.mark.parametrize("name", ["sheet.png", "sheet.jpg"])
def test_a_contact_sheet_shows_the_classes_colours(name, folder, tmp_path, capsys):
    out = tmp_path / "sheets" / name
    code, _, _ = lgd_data(capsys, folder, "--draw", "4", out)
    assert code == 0
    with Image.open(out) as sheet:
        assert sheet.format == ("PNG" if name.endswith("png") else "JPEG")
        assert min(sheet.size) > 800  # two by two
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    from lgd.inference.captions import class_color

    for label in (0, 1):
        near = np.abs(pixels - np.array(class_color(label))).max(axis=2) < 40
        assert near.sum() > 500


@pytest.mark.slow
def test_a_set_of_cocos_size_takes_seconds_once_it_is_indexed(tmp_path, capsys):
    from tests.data.large import write_large_coco

    write_large_coco(tmp_path, "train", num_images=118_000, num_boxes=860_000)
    for number in range(1, 118_001):
        (tmp_path / "train" / f"{number:012d}.jpg").touch()
    assert lgd_data(capsys, tmp_path, "--json")[0] == 0
    begin = time.process_time()
    code, out, _ = lgd_data(capsys, tmp_path, "--json")
    assert time.process_time() - begin < 6  # of 10 s; the rest is for the imports
    assert (code, json.loads(out)["images"]) == (0, 118_000)


def pixels_of(path):
    with Image.open(path) as sheet:
        return np.asarray(sheet.convert("RGB")).astype(int)


def test_samples_are_drawn_as_training_sees_them(folder, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    turned = "[{NAME: quarter_turn, PROBABILITY: 1}, {NAME: cut_out, PROBABILITY: 1}]"
    recipe.write_text(f"INPUT: {{MIN_SIZE_TRAIN: [48], AUGMENTATIONS: {turned}}}\nSEED: 4")
    train = f"coco:{folder}:train"
    sheets = [tmp_path / f"{number}.png" for number in range(4)]
    asked = (
        (),
        ("--augmented", "--config-file", recipe),
        ("--augmented", turned, "--config-file", recipe),
        ("--augmented", "[]", "--config-file", recipe),
    )
    for sheet, flags in zip(sheets, asked, strict=True):
        assert lgd_data(capsys, train, "--draw", "3", sheet, *flags)[0] == 0
    plain, by_recipe, by_list, by_none = map(pixels_of, sheets)
    assert np.array_equal(by_recipe, by_list)
    assert by_recipe.shape != by_none.shape or (by_recipe != by_none).any()
    assert (by_recipe == 128).all(axis=2).sum() > 1000  # what was cut out
    assert (plain == 128).all(axis=2).sum() < 100


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--augmented",), "needs a LIST"),
        (("--config-file", "demo"), "goes with --augmented"),
    ],
)
def test_what_to_augment_by_is_asked_for(flags, said, folder, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["data", str(folder), "--draw", "2", "a.png", *flags])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_wrong_list_ends_with_2(folder, tmp_path, capsys):
    flags = ("--draw", "2", tmp_path / "a.png", "--augmented", "[{NAME: mosaics}]")
    code, _, err = lgd_data(capsys, folder, *flags)
    assert code == 2
    assert "did you mean mosaic?" in err.splitlines()[-1]
