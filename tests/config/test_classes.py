"""DATASETS.CLASSES: names as they are written, in a list or merged in a map."""

from pathlib import Path

import pytest

from lgd.config.load import ConfigError, dump_config, load_config

LISTS = {
    "[b, a]": ("b", "a"),
    "('a', \"b\",)": ("a", "b"),
    "traffic light": ("traffic light",),
    "[007, 7, 1.0, yes, null, 1e3]": ("007", "7", "1.0", "yes", "null", "1e3"),
    '["a: b", c#]': ("a: b", "c#"),
    "[]": (),
}
MAPS = {
    "{vehicle: [car, van], person: person}": {"vehicle": ("car", "van"), "person": ("person",)},
    "{7: [8, 08], no: [on]}": {"7": ("8", "08"), "no": ("on",)},
}


@pytest.mark.parametrize(("text", "expected"), {**LISTS, **MAPS}.items())
def test_classes_are_taken_as_they_are_written(text, expected, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("")
    assert load_config(path, ["DATASETS.CLASSES", text]).datasets.classes == expected
    if text[0] in "[{":
        path.write_text(f"DATASETS:\n  CLASSES: {text}\n")
    cfg = load_config(path, [] if text[0] in "[{" else ["DATASETS.CLASSES", text])
    assert cfg.datasets.classes == expected
    assert list(cfg.datasets.classes) == list(expected), "the order of the labels"
    path.write_text(dump_config(cfg))
    assert load_config(path) == cfg


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a, b, a]", "DATASETS.CLASSES names a twice; an object is of one class"),
        ("{x: [a], y: [b, a]}", "DATASETS.CLASSES names a twice; an object is of one class"),
        ("{x: []}", "DATASETS.CLASSES merges nothing into x; write {x: [NAME, NAME]}"),
        ("{x: [a], x: [b]}", "expects a map (NAME: a list (each a name)) or a list (each a name), got"),
        ("[a, [b]]", "expects a map (NAME: a list (each a name)) or a list (each a name), got"),
        ("[a", "expects a map"),
    ],
)
def test_what_is_no_choice_of_classes(text, message, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("")
    with pytest.raises(ConfigError) as error:
        load_config(path, ["DATASETS.CLASSES", text])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a: [1], a: [2]}", "DATASETS.CLASSES has a key twice, or one that is no name"),
        ("!!python/object:a.b [1]", "DATASETS.CLASSES has the tag !!python/object:a.b, refused"),
        ("{a: {b: c}}", "DATASETS.CLASSES expects a map"),
    ],
)
def test_what_a_file_may_not_say(text, message, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"DATASETS:\n  CLASSES: {text}\n")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(error.value).startswith(f"{path}:2: {message}")


def test_weights_and_needless_settings(tmp_path, caplog):
    path = Path(tmp_path / "recipe.yaml")
    path.write_text("DATASETS: {TRAIN: [a, b], WEIGHTS: [3, 1e-1], OTHER_CLASSES: ignore}")
    assert load_config(path).datasets.weights == (3.0, 0.1)
    assert "DATASETS.OTHER_CLASSES ignore has no effect while DATASETS.CLASSES names no" in caplog.text
    with pytest.raises(ConfigError, match=r"WEIGHTS \(3.0, 0.1\) must have a number for each of the 1 set "):
        load_config(path, ["DATASETS.TRAIN", "[a]"])
    with pytest.raises(ConfigError, match="WEIGHTS expects a list"):
        load_config(path, ["DATASETS.WEIGHTS", "[1, 0]"])
