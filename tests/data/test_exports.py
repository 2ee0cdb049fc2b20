"""Exports of annotation tools, made with the tools from PyPI, open from their own folders to the pixel."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lgd.data.catalog import open_dataset
from lgd.data.index import AnnotationIndex
from lgd.data.layouts import find_splits
from tests.data import exporting
from tests.data.exporting import CLASSES, PICTURES

pytestmark = pytest.mark.slow

PACKAGES = (
    "supervision==0.31.2", "datumaro==1.13.12", "label-studio-sdk==2.1.2", "labelme2coco==0.2.6",
    "sahi==0.12.8",
    # What these import on the way to an export: all that they require is gigabytes.
    "appdirs==1.4.4", "attrs==26.1.0", "certifi", "charset-normalizer==3.5.3", "click==8.5.1",
    "defusedxml==0.7.1", "idna==3.20", "ijson==3.6.0", "imagesize==2.0.1", "joblib==1.6.0",
    "json-stream-rs-tokenizer==0.5.4", "json-stream==2.5.1", "lxml==6.1.3", "nltk==3.10.4",
    "opencv-python-headless==5.0.0.93", "orjson==3.13.0", "pandas==3.1.1", "pyarrow==26.0.1",
    "pycocotools==2.0.11", "pydeprecate==0.14.0", "pyjwt==2.15.1", "python-dateutil==2.9.0.post0", "pytz",
    "regex==2026.11.19", "requests==2.34.2", "shapely==2.2.0", "six==1.17.0", "tqdm==4.70.1",
    "typing-extensions==4.16.0", "ujson==6.1.0", "urllib3==2.8.0",
)  # fmt: skip
HERE = Path()
EXPECTED = {
    name: sorted((label, *map(float, box)) for label, box in objects)
    for name, (_, objects) in PICTURES.items()
}


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> Path:
    """A folder with what each tool wrote."""
    packages, root = tmp_path_factory.mktemp("packages"), tmp_path_factory.mktemp("exports")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*install, "--target", str(packages), *PACKAGES],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode:
        pytest.fail(
            f"this test needs the tools from PyPI, and pip cannot install them:\n{done.stderr[-2000:]}"
        )
    for tool in exporting.TOOLS:
        subprocess.run(
            [sys.executable, "-P", exporting.__file__, str(root), tool],
            env=os.environ | {"PYTHONPATH": str(packages)},
            check=True,
            timeout=120,
        )
    return root


def name_of(index: AnnotationIndex, i: int) -> str:
    """What a picture was called before the tool put a hash before its name."""
    return re.sub("^[0-9a-f]{8}__", "", Path(index.file_name(i)).stem).replace("%20", " ")


def check(
    index: AnnotationIndex, names: set[str], *, at_most: float = 0.0, corner: float | None = None
) -> None:
    """Compare with what was drawn: upper left corners to `corner` pixels, all else to `at_most`."""
    assert {name_of(index, i) for i in range(len(index))} == names
    for i in range(len(index)):
        assert index.path(i).is_file()
        found = sorted(
            (index.class_names[label], *box)
            for label, box in zip(index.labels(i).tolist(), index.boxes(i).tolist(), strict=True)
        )
        expected = EXPECTED[name_of(index, i)]
        assert [each[0] for each in found] == [each[0] for each in expected]
        difference = np.abs(
            np.array([each[1:] for each in found]) - np.array([each[1:] for each in expected])
        )
        if expected:
            assert difference[:, 2:].max() <= at_most
            assert difference[:, :2].max() <= (at_most if corner is None else corner)


ALL = set(PICTURES)


def test_supervision(exports):
    root = exports / "supervision"
    index = open_dataset(f"coco:{root}/coco:train", HERE)
    assert index.class_names == CLASSES
    check(index, ALL)
    index = open_dataset(f"yolo:{root}/yolo/data.yaml:train", HERE)
    assert index.class_names == CLASSES
    check(index, ALL, at_most=64 * 1e-5)  # it writes five digits
    check(open_dataset(f"voc:{root}/voc", HERE), ALL)


def test_datumaro(exports):
    root = exports / "datumaro"
    for kind, rounding in (("coco", 0.0), ("yolo", 80 * 1e-5)):
        splits = find_splits(root / kind)
        assert [(split.kind, split.name) for split in splits] == [(kind, "train"), (kind, "val")]
        for split, names in zip(splits, (ALL - {"four"}, {"four"}), strict=True):
            index = open_dataset(split.spec, HERE)
            assert index.class_names == CLASSES
            check(index, names, at_most=rounding)
    train = open_dataset(f"coco:{root}/coco:train", HERE)
    masks = {name_of(train, i): train.segmentation(i) for i in range(len(train))}
    assert all(masks["one"])
    for name, names in (("train", ALL - {"four"}), ("val", {"four"})):
        index = open_dataset(f"{root}/voc:{name}", HERE)
        assert index.class_names == CLASSES
        check(index, names, corner=1)  # it counts pixels from 0, VOC from 1


def test_label_studio(exports):
    root = exports / "label_studio"
    index = open_dataset(f"coco:{root}/coco", HERE)
    assert index.class_names == tuple(sorted(CLASSES))
    check(index, ALL, at_most=1e-12)  # it writes percents
    index = open_dataset(str(root / "yolo"), HERE)
    assert index.class_names == tuple(sorted(CLASSES))
    check(index, ALL, at_most=1e-12)
    # It leaves out pictures without objects, cuts the decimals of corners and sides, and counts from 0.
    check(open_dataset(str(root / "voc"), HERE), ALL - {"three"}, at_most=2, corner=2)


def test_labelme2coco(exports):
    root = exports / "labelme"
    for spec in (f"coco:{root}/runs/dataset.json:{root}/labelled", str(root)):
        index = open_dataset(spec, HERE)
        assert set(index.class_names) == set(CLASSES)
        check(index, ALL)


def test_sahi(exports):
    for spec in (str(exports / "sahi"), f"{exports}/sahi/coco.json", f"coco:{exports}/sahi:train"):
        index = open_dataset(spec, HERE)
        assert index.class_names == CLASSES
        check(index, ALL)


def test_fiftyone(tmp_path):
    """In the words of its documentation, since the tool itself runs on a database server."""
    paths = exporting.draw(tmp_path / "data")
    names = sorted(CLASSES)
    numbers = {name: number for number, name in enumerate(PICTURES, start=1)}
    document = {
        "info": {"year": "", "version": "", "description": "Exported from FiftyOne", "url": ""},
        "licenses": [],
        "categories": [{"id": k, "name": name, "supercategory": None} for k, name in enumerate(names, 1)],
        "images": [
            {
                "id": numbers[name],
                "file_name": paths[name].name,
                "width": size[0],
                "height": size[1],
                "license": None,
            }
            for name, (size, _) in PICTURES.items()
        ],
        "annotations": [],
    }
    for name, (_, objects) in PICTURES.items():
        for label, (x1, y1, x2, y2) in objects:
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            number = len(document["annotations"]) + 1
            category = names.index(label) + 1
            document["annotations"].append(
                {"id": number, "image_id": numbers[name], "category_id": category} | box
            )
    (tmp_path / "labels.json").write_text(json.dumps(document))
    for spec in (f"coco:{tmp_path}:train", f"coco:{tmp_path}", str(tmp_path)):
        index = open_dataset(spec, HERE)
        assert index.class_names == tuple(names)
        assert index.layout == "FiftyOne (labels.json, pictures in data/)"
        check(index, ALL)
