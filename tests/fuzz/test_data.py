"""Damaged annotations and caches: each opens right or is refused in one line, and soon."""

from __future__ import annotations

import json
import math
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hotcoco import mask as mask_tools

from lgd.data import cache, presence
from lgd.data.catalog import open_dataset
from lgd.data.errors import DataError
from lgd.data.index import AnnotationIndex, RunLengths
from lgd.data.outlines import read_outlines
from lgd.evaluation.coco import Backend, Metrics
from lgd.evaluation.predictions import Masks, Predictions
from lgd.evaluation.score import score
from tests.data.boxes_sets import person, voc_object, voc_xml, write_crowdhuman, write_voc
from tests.data.sets import annotation, image_record, write_coco
from tests.fuzz.mutations import damage_bytes, damage_value
from tests.fuzz.outcomes import soon

pytestmark = pytest.mark.slow

HERE = Path()
ROUNDS = range(10)
"""Each is a test of its own with a seed of its own."""


@pytest.fixture(autouse=True)
def strict():
    """What numpy warns of is not done on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def open_or_refuse(spec: str) -> AnnotationIndex | None:
    """The set, or None where it is refused in one line."""
    try:
        return open_dataset(spec, HERE)
    except DataError as error:
        text = str(error)
        assert "\n" not in text
        assert len(text) < 1500, text
        text.encode()  # has no half characters
        return None


def use(index: AnnotationIndex) -> None:
    """Do what training and evaluation do with a set; what was found is what is there."""
    for i in range(len(index)):
        boxes, labels = index.boxes(i), index.labels(i)
        assert np.isfinite(boxes).all()
        assert ((labels >= 0) & (labels < len(index.class_names))).all()
        assert len(boxes) == len(labels) == len(index.crowd(i)) == len(index.segmentation(i))
        assert len(read_outlines(index, i).counts) == len(boxes)
        assert index.counts[i] == (~index.crowd(i)).sum()
        assert index.path(i).resolve().is_relative_to(index.image_dir.resolve())
    metrics = {backend: score_perfect(index, backend) for backend in ("hotcoco", "pycocotools")}
    for kind, numbers in metrics["hotcoco"].items():
        for name, value in (numbers or {}).items():
            assert value == pytest.approx(metrics["pycocotools"][kind][name], abs=1e-9)
            assert value is None or 0 <= value <= 100 + 1e-9


def score_perfect(index: AnnotationIndex, backend: Backend) -> dict[str, Metrics | None]:
    """Score detections that are the objects."""
    image = np.repeat(np.arange(len(index)), np.diff(index.columns["annotation_offsets"]))
    found = Predictions(
        np.asarray(index.image_ids)[image],
        np.array(index.category_ids)[index.columns["labels"]],
        np.array(index.columns["xywh"]),
        np.linspace(0.5, 1, len(image)),
        Masks.from_rle([encode(index, int(i), row) for row, i in enumerate(image)]),
    )
    return score(index, {"student": found}, with_masks=True, backend=backend)["student"]


def encode(index: AnnotationIndex, i: int, row: int) -> dict[str, Any]:
    height, width = int(index.heights[i]), int(index.widths[i])
    mask = index.mask(i, row)
    if isinstance(mask, RunLengths):
        rle = mask_tools.frPyObjects({"size": [height, width], "counts": mask.counts.tolist()}, height, width)
    elif mask is None:
        rle = mask_tools.frPyObjects({"size": [height, width], "counts": [height * width]}, height, width)
    else:
        rle = mask_tools.merge(mask_tools.frPyObjects([each.tolist() for each in mask], height, width))
    return {"size": [height, width], "counts": rle["counts"].decode()}


def make_document() -> dict[str, Any]:
    rle = {"size": [48, 64], "counts": [10, 5, 48 * 64 - 15]}
    text = {"size": [30, 20], "counts": "hb0"}
    annotations = [
        annotation(1, 1, area=5.5, iscrowd=0, segmentation=[[0, 0, 8, 0, 8, 8.5], [1, 1, 2, 2]]),
        annotation(2, 1, (0, 0, 64, 48), 1, iscrowd=1, segmentation=rle),
        annotation(3, 2, (1.5, 2.25, 3, 4), 7, segmentation=text),
        annotation(4, 2, (1, 1, 0, 5)),
        annotation(2**62, 2, (100, 100, 5, 5), area=None),
    ]
    images = [image_record(1), image_record(2, 20, 30), image_record(2**53 + 1)]
    categories = [{"id": 3, "name": "cat"}, {"id": 1, "name": "dog"}, {"id": 7, "name": 7}]
    return {"info": {"year": 2020}, "images": images, "annotations": annotations, "categories": categories}


def say(value: Any) -> str:
    """An id as text; 1.0 and "1" are 1."""
    return value if isinstance(value, str) else str(int(value))


def as_the_file_says(index: AnnotationIndex, document: dict[str, Any]) -> None:
    """Nothing in the columns is another value than in the document, without a remark on it."""
    remarks = {remark.kind for remark in index.remarks[0]}
    written_images, written_categories = index.written_ids()
    images = {say(record["id"]): record for record in document["images"]}
    places = {}
    for place, image in enumerate(map(index.image, range(len(index)))):
        name = say(written_images.get(image.id, image.id))
        places[name], record = place, images[name]
        assert image.file_name == record["file_name"] or "file_names_found" in remarks
        if record.get("height") is None or record.get("width") is None:
            assert "sizes_read" in remarks
        else:
            assert (image.height, image.width) == (int(record["height"]), int(record["width"]))
    assert places.keys() == images.keys()
    assert len(images) == len(document["images"]) or "images_merged" in remarks

    categories = {say(record["id"]): record for record in document["categories"]}
    names = [say(written_categories.get(number, number)) for number in index.category_ids]
    assert sorted(names) == sorted(categories)
    assert len(set(index.class_names)) == len(categories)
    for class_name, name in zip(index.class_names, names, strict=True):
        assert class_name.startswith(str(categories[name]["name"]))

    listed = document.get("annotations", [])
    kept = [
        each for each in listed if each.get("bbox") != [] or each.get("segmentation") not in (None, [], [[]])
    ]
    assert len(kept) == len(listed) or "annotations_empty" in remarks
    records = sorted(kept, key=lambda record: places[say(record["image_id"])])
    image_of = np.repeat(np.arange(len(index)), np.diff(index.columns["annotation_offsets"]))
    assert image_of.tolist() == [places[say(record["image_id"])] for record in records]
    assert [names[label] for label in index.columns["labels"]] == [
        say(record["category_id"]) for record in records
    ]
    if not remarks & {"annotation_ids_repeated", "annotation_ids_text"}:
        assert index.columns["annotation_ids"].tolist() == [record["id"] for record in records]
    pixels = (index.heights * index.widths)[image_of].tolist()
    for row, record in enumerate(records):
        x, y, width, height = index.columns["xywh"][row].tolist()
        assert [x, y, width, height] == record.get("bbox") or "boxes_from_masks" in remarks
        assert index.columns["crowd"][row] == FLAGS[str(record.get("iscrowd")).lower()]
        assert index.columns["areas"][row] == expected_area(record.get("area"), width * height, pixels[row])


FLAGS = dict.fromkeys(("none", "0", "false", "0.0", "-0.0"), False) | dict.fromkeys(
    ("1", "true", "1.0"), True
)


def expected_area(value: Any, of_box: float, pixels: int) -> float:
    """The file's, or the box's where it says none or one that cannot be."""
    if value in (None, []) or math.isnan(value) or not 0 <= value <= 2 * max(pixels, of_box):
        return of_box
    return of_box if value == 0 and of_box > 0 else float(value)


@pytest.fixture
def coco(tmp_path):
    """A set whose annotation file is to be written, and its spec."""
    document = make_document()
    path = write_coco(tmp_path, document["images"])
    return path, f"coco:{tmp_path}:train"


@pytest.mark.parametrize("seed", ROUNDS)
def test_coco_values(coco, seed):
    path, spec = coco
    generator, opened = random.Random(seed), 0
    for number in range(150):
        document = damage_value(generator, make_document())
        path.write_text(json.dumps(document))
        with soon(f"seed {seed}, case {number}"):
            index = open_or_refuse(spec)
            if index is not None:
                as_the_file_says(index, document)
                use(index)
                opened += 1
        shutil.rmtree(path.parent / ".lgd", ignore_errors=True)
    assert 5 < opened < 145


@pytest.mark.parametrize("seed", ROUNDS)
def test_coco_bytes(coco, seed):
    path, spec = coco
    generator, whole = random.Random(100 + seed), json.dumps(make_document()).encode()
    for number in range(100):
        content = damage_bytes(generator, whole)
        path.write_bytes(content)
        with soon(f"seed {seed}, case {number}"):
            index = open_or_refuse(spec)
            if index is not None:
                as_the_file_says(index, json.loads(content))
                use(index)
        shutil.rmtree(path.parent / ".lgd", ignore_errors=True)


@pytest.mark.parametrize("seed", ROUNDS)
def test_crowdhuman(tmp_path, seed):
    people = {
        "a": [person((-10, 5, 30, 50)), person((30, 10, 10, 20), ignore=1)],
        "b": [person((0, 0, 10, 10), tag="mask")],
    }
    spec = write_crowdhuman(tmp_path, people)
    path = tmp_path / "annotation_val.odgt"
    generator, whole = random.Random(200 + seed), path.read_bytes()
    records = [json.loads(line) for line in whole.splitlines()]
    for number in range(100):
        if number % 2:
            path.write_bytes(damage_bytes(generator, whole))
        else:
            damaged = damage_value(generator, records)
            lines = damaged if isinstance(damaged, list) else [damaged]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        with soon(f"seed {seed}, case {number}"):
            index = open_or_refuse(spec)
            if index is not None:
                assert set(index.file_names()) <= {"a.jpg", "b.jpg"}
                use(index)
        shutil.rmtree(tmp_path / ".lgd", ignore_errors=True)


@pytest.mark.parametrize("seed", ROUNDS)
def test_voc(tmp_path, seed):
    objects = [voc_object("cat", (1, 1, 64, 48)), voc_object("dog", (3.5, 4, 10, 12), difficult=1)]
    spec = write_voc(tmp_path, {"1": objects, "2": []})
    files = [tmp_path / "Annotations" / "1.xml", tmp_path / "ImageSets" / "Main" / "trainval.txt"]
    generator = random.Random(300 + seed)
    texts = (
        "9" * 5000,
        "-1",
        "nan",
        "1e400",
        "",
        " ",
        "0",
        "2147483649",
        "1e9",
        "²",
        "c\nat",
        "é",
        "x" * 5000,
    )
    for number in range(100):
        whole = {path: path.read_bytes() for path in files}
        if number % 2:
            damaged = files[number % 10 == 1]
            damaged.write_bytes(damage_bytes(generator, whole[damaged]))
        else:
            old = generator.choice((">64<", ">48<", ">1<", ">cat<", ">3.5<", ">3<", ">Left<"))
            xml = voc_xml("1", objects).replace(
                old, f">{generator.choice(texts)}<", generator.choice((1, -1))
            )
            files[0].write_text(xml)
        with soon(f"seed {seed}, case {number}"):
            index = open_or_refuse(spec)
            if index is not None:
                use(index)
        for path, content in whole.items():
            path.write_bytes(content)
        shutil.rmtree(files[1].parent / ".lgd", ignore_errors=True)


def _damage_file(generator: random.Random, path: Path, others: list[Path]) -> None:
    kind = generator.randrange(8)
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.write_bytes(b"")
    elif kind == 2:
        path.write_bytes(generator.choice(others).read_bytes())
    elif kind == 3:
        path.write_bytes(json.dumps(damage_value(generator, {"stamp": "a", "content_hash": "b"})).encode())
    else:
        path.write_bytes(damage_bytes(generator, path.read_bytes()))


def _opened(open_set: Callable[[], AnnotationIndex]) -> tuple[Any, ...]:
    index = open_set()
    columns = {name: column.tolist() for name, column in index.columns.items()}
    return columns, index.class_names, index.category_ids, index.content_hash, index.warnings, index.kind


@pytest.mark.parametrize("seed", ROUNDS)
def test_caches(coco, tmp_path, monkeypatch, seed):
    for module in (cache, presence):  # the quick ways are taken at once
        monkeypatch.setattr(module, "SETTLED", -(10**9))
    path, spec = coco
    path.write_text(json.dumps(make_document()))
    other = write_coco(tmp_path / "other", [image_record(1)])
    open_dataset(f"coco:{tmp_path / 'other'}:train", HERE)
    others = sorted(entry for entry in (other.parent / ".lgd").iterdir() if entry.name != ".gitignore")
    expected = _opened(lambda: open_dataset(spec, HERE))
    generator = random.Random(400 + seed)
    for number in range(100):
        kept = sorted(entry for entry in (path.parent / ".lgd").iterdir() if entry.name != ".gitignore")
        _damage_file(generator, generator.choice(kept), [*others, *kept])
        with soon(f"seed {seed}, case {number}"):
            assert _opened(lambda: open_dataset(spec, HERE)) == expected
