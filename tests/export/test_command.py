"""From weights to a file that other runtimes run, by the command line and back through `lgd.load`."""

import json

import pytest
import torch

import lgd
from lgd import cli
from lgd.export import command
from lgd.export.about import About
from lgd.weights.report import WeightsError
from tests.samples import BCCD
from tests.tiny import NAMES, write_tiny

onnxruntime = pytest.importorskip("onnxruntime")

PICTURES = str(BCCD / "val")


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("weights") / "student.safetensors")


@pytest.fixture(scope="session")
def exported(weights, tmp_path_factory):
    """The student as an ONNX file of a fixed size, for which torch is quickest, that held the check."""
    path = tmp_path_factory.mktemp("exported") / "student.onnx"
    words = ["--size", "64x96", "--batch", "2", "--check", PICTURES]
    assert cli.main(["export", str(weights), str(path), *words]) == 0
    return path


def test_a_file_says_how_it_is_fed_and_what_it_finds(exported):
    said = onnxruntime.InferenceSession(exported).get_modelmeta().custom_metadata_map
    assert said["lgd"] == lgd.__version__
    assert json.loads(said["classes"]) == {"names": list(NAMES), "category_ids": [1, 7, 3]}
    fed = json.loads(said["input"])
    assert (fed["channels"], fed["short_side"], fed["size"], fed["batch"]) == ("RGB", 64, [64, 96], 2)
    assert json.loads(said["settings"])["NUM_CLASSES"] == "3"
    assert len(said["settings_hash"]) == 64
    found = {"masks": False, "half": False, "score_threshold": 0.0, "nms_threshold": 0.5, "detections": 100}
    assert json.loads(said["output"]) == found


def test_a_file_predicts_and_evaluates_as_its_weights(exported, weights):
    ours, theirs = lgd.load(weights, "cpu"), lgd.load(exported)
    assert theirs.class_names == ours.class_names
    for one, other in zip(ours.predict(PICTURES, 0.0105), theirs.predict(PICTURES, 0.0105), strict=True):
        assert len(one) > 0
        assert torch.allclose(one.boxes, other.boxes, atol=1e-3)
        assert torch.allclose(one.scores, other.scores, atol=1e-5)


def test_predict_runs_a_file(exported, tmp_path, capsys):
    words = ["predict", str(exported), PICTURES, "--json", "--score", "0.0105", "--backend", "onnx"]
    assert cli.main(words) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(line["detections"] for line in lines)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("WEIGHTS", "out.tflite"), "out.tflite: ends as neither .onnx nor .pt2"),
        (("WEIGHTS", "out.onnx", "--size", "100x64"), "--size 100x64: give multiples of 32"),
        (("WEIGHTS", "out.onnx", "--check", "nowhere"), "nowhere: no such file or folder"),
        (("nowhere.pth", "out.onnx"), "nowhere.pth"),
        (("EXPORTED", "out.onnx"), "an exported model; give the weights that it was made of"),
        (("WEIGHTS", "folder.onnx"), "folder.onnx: is a folder; name the file"),
        (("absent.pth", "file/out.onnx"), "file"),
    ],
)
def test_what_the_user_can_mend_is_a_line(weights, exported, words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").touch()
    places = {"WEIGHTS": str(weights), "EXPORTED": str(exported)}
    assert cli.main(["export", *(places.get(word, word) for word in words)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert says in last
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    "words",
    [("--size", "0x64"), ("--size", "64"), ("--batch", "0"), ("--batch", "-1"), ("--max-detections", "all")],
)
def test_wrong_arguments_end_with_2(words, capsys):
    with pytest.raises(SystemExit) as end:
        command.parse_arguments(["weights", "out.onnx", *words])
    assert end.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "backend", "says"),
    [
        ("WEIGHTS", "onnx", "weights are run by torch or compile, not by onnx; .* lgd export"),
        ("EXPORTED", "torch", "is run by onnx or openvino, not by torch"),
        ("broken.onnx", None, "broken.onnx: onnxruntime cannot run it"),
        ("broken.pt2", None, "broken.pt2: torch.export cannot load it: it is no archive"),
        ("absent.onnx", None, "absent.onnx: No such file"),
        ("absent.pt2", None, "absent.pt2: "),
    ],
)
def test_what_cannot_be_loaded_is_named(weights, exported, tmp_path, monkeypatch, file, backend, says):
    monkeypatch.chdir(tmp_path)
    for name in ("broken.onnx", "broken.pt2"):
        (tmp_path / name).write_bytes(b"none of it")
    path = {"WEIGHTS": weights, "EXPORTED": exported}.get(file, file)
    with pytest.raises(WeightsError, match=says):
        lgd.load(path, "cpu", backend)


def test_a_foreign_file_is_named(exported, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(WeightsError, match=r"foreign.onnx: does not say how it is fed"):
        lgd.load(tmp_path / "foreign.onnx")


def test_a_description_comes_back(exported):
    texts = onnxruntime.InferenceSession(exported).get_modelmeta().custom_metadata_map
    about = About.of_metadata(texts)
    assert about.to_metadata() == texts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("student.onnx", ()),
        ("student.onnx", ("--size", "64x64", "--batch", "3")),  # smaller than what the pictures come to
        ("student.pt2", ()),
        ("student.pt2", ("--batch", "3", "--max-detections", "7")),
    ],
)
def test_every_way_holds_the_check(weights, tmp_path, name, words):
    path = tmp_path / name
    assert cli.main(["export", str(weights), str(path), *words, "--check", PICTURES]) == 0
    found = lgd.load(path).predict(PICTURES, 0.0)
    assert 0 < max(map(len, found)) <= (7 if "7" in words else 100)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["student.onnx", "student.pt2"])
def test_half_is_smaller_and_says_so(weights, tmp_path, name):
    sizes = []
    for words in ((), ("--half",)):
        path = tmp_path / f"{len(words)}{name}"
        assert cli.main(["export", str(weights), str(path), "--size", "64x96", *words]) == 0
        sizes.append(path.stat().st_size)
    assert sizes[1] < sizes[0] - 0.35 * weights.stat().st_size
    # All scores of this net are about 0.01: which boxes stay among them is left to rounding.
    for one, other in zip(*(lgd.load(x).predict(PICTURES, 0.0) for x in (weights, path)), strict=True):
        assert torch.allclose(one.scores[:20], other.scores[:20], atol=1e-4)


@pytest.mark.slow
def test_a_check_beyond_the_tolerance_ends_with_2(weights, tmp_path, monkeypatch, capsys):
    before = command.describe

    def describe(*arguments, **words):
        about = before(*arguments, **words)
        about.limits["score_threshold"] = 0.0105  # of which the file knows nothing
        return about

    written = command.write

    def write(student, about, target, **words):
        student.detector.score_thresh_test = 0.0105
        written(student, about, target, **words)
        student.detector.score_thresh_test = 0.01

    monkeypatch.setattr(command, "write", write)
    monkeypatch.setattr(command, "describe", describe)
    assert cli.main(["export", str(weights), str(tmp_path / "a.onnx"), "--check", PICTURES]) == 2
    assert "detects otherwise than" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_openvino_and_compile_find_the_same(weights, exported):
    pytest.importorskip("openvino")
    ours = lgd.load(weights, "cpu").predict(PICTURES, 0.0105)
    for theirs in (lgd.load(exported, "cpu", "openvino"), lgd.load(weights, "cpu", "compile")):
        for one, other in zip(ours, theirs.predict(PICTURES, 0.0105), strict=True):
            assert torch.allclose(one.boxes, other.boxes, atol=1e-3)
            assert torch.allclose(one.scores, other.scores, atol=1e-5)


def test_fewer_products_are_asked_for(weights, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(command, "export_program", lambda *model, **words: None)
    monkeypatch.setattr(command, "write_onnx", lambda program, path, texts: path.write_bytes(b"x"))
    monkeypatch.setattr(command, "mark_convolutions", lambda program, *how: seen.append(how))
    for words in ((), ("--winograd",), ("--winograd", "--size", "64x96")):
        assert cli.main(["export", str(weights), str(tmp_path / "a.onnx"), *words]) == 0
    (usual, _), fixed = seen
    assert usual[0] % 32 == usual[1] % 32 == 0
    assert fixed == ((64, 96), 32)


@pytest.mark.parametrize(("name", "words"), [("a.pt2", ()), ("a.onnx", ("--half",))])
def test_fewer_products_are_for_float32_in_onnx(name, words, weights, tmp_path, capsys):
    assert cli.main(["export", str(weights), str(tmp_path / name), "--winograd", *words]) == 2
    assert "--winograd is for .onnx files" in capsys.readouterr().err.splitlines()[-1]
