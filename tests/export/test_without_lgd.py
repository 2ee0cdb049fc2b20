"""Exported files where neither LGD nor (for ONNX) torch is: the programs that the docs give."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lgd
from lgd import cli
from tests.samples import BCCD
from tests.tiny import write_tiny
from tests.training import REPOSITORY

pytestmark = pytest.mark.slow

PROGRAMS = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/export.md").read_text(), flags=re.DOTALL)


@pytest.fixture(scope="module", params=["retinanet", "mask_rcnn"])
def weights(request, tmp_path_factory):
    """A small student; one with masks too."""
    return write_tiny(tmp_path_factory.mktemp("weights") / "student.safetensors", **SETTINGS[request.param])


SETTINGS = {
    "retinanet": {},
    "mask_rcnn": {
        "MODEL__META_ARCHITECTURE": "GeneralizedRCNN",
        "MODEL__BACKBONE__NAME": "build_resnet_fpn_backbone",
        "MODEL__RESNETS__OUT_FEATURES": "[res2, res3, res4, res5]",
        "MODEL__FPN__IN_FEATURES": "[res2, res3, res4, res5]",
        "MODEL__MASK_ON": True,
        "MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.05,
    },
}


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """An interpreter that has onnxruntime, numpy and Pillow alone."""
    pytest.importorskip("onnxruntime")
    home = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    (packages,) = home.glob("lib/python*/site-packages")
    for name in ("onnxruntime", "numpy", "PIL"):
        place = Path(importlib.util.find_spec(name).origin).parent
        for path in (place, place.with_name(f"{name.replace('PIL', 'pillow')}.libs")):
            if path.is_dir():
                (packages / path.name).symlink_to(path)
    python = home / "bin/python"
    found = "import importlib.util as i; print(i.find_spec('torch'), i.find_spec('lgd'))"
    assert run(python, "-I", "-c", found) == "None None\n"
    return python


@pytest.fixture
def pictures(tmp_path):
    """One of the size that the model sees, one to be resized, one to be turned as well."""
    source = Image.open(next((BCCD / "val").rglob("*.jpg"))).convert("RGB")
    source.resize((96, 64)).save(tmp_path / "same.png")
    source.save(tmp_path / "large.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    source.resize((320, 200)).save(tmp_path / "turned.jpg", exif=exif)
    return [tmp_path / name for name in ("same.png", "large.png", "turned.jpg")]


def run(*words, cwd=None):
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    words = [str(word) for word in words]
    done = subprocess.run(words, cwd=cwd, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_program_of_the_docs_finds_what_lgd_finds(weights, python, pictures, tmp_path):
    path, program = tmp_path / "model.onnx", tmp_path / "detect.py"
    assert cli.main(["export", str(weights), str(path)]) == 0
    program.write_text(next(text for text in PROGRAMS if "import onnxruntime" in text))
    lines = run(python, program, path, "0", *pictures).splitlines()
    results = lgd.load(path).predict([str(picture) for picture in pictures], 0.0)
    for picture, line, result in zip(pictures, lines, results, strict=True):
        found = json.loads(line)["detections"]
        assert len(found) > 0
        boxes = torch.tensor([each["box"] for each in found]).view(-1, 4)
        far = (boxes[:, None] - result.boxes).abs().amax(dim=-1)
        far += 1e3 * (torch.tensor([each["score"] for each in found])[:, None] - result.scores).abs()
        if picture.name == "same.png":
            assert len(found) == len(result)
            assert far.amin(dim=1).max() < 1e-3
            areas = [] if result.masks is None else result.masks.sum(dim=(1, 2)).tolist()
            assert [each["mask_area"] for each in found if "mask_area" in each] == pytest.approx(areas, abs=2)
        else:  # a level of some pixels may change places in the list
            assert (far.amin(dim=1) < 0.5).float().mean() > 0.9


def test_torch_loads_its_file_without_lgd(weights, pictures, tmp_path):
    path = tmp_path / "model.pt2"
    assert cli.main(["export", str(weights), str(path)]) == 0
    program = next(text for text in PROGRAMS if "torch.export.load" in text and "_inductor" not in text)
    images = np.asarray(Image.open(pictures[0])).transpose(2, 0, 1)[None]
    np.save(tmp_path / "images.npy", np.ascontiguousarray(images))
    lines = [
        "import sys, numpy, torch, torchvision",
        "images = torch.from_numpy(numpy.load('images.npy'))",
        "sizes = original_sizes = torch.tensor([[64, 96]])",
        program.replace("boxes, scores, labels, valid =", "boxes, scores, labels, valid, *masks ="),
        "assert not any(name.split('.')[0] == 'lgd' for name in sys.modules)",
        "numpy.save('boxes.npy', boxes[valid].numpy())",
    ]
    (tmp_path / "program.py").write_text("\n".join(lines))
    run(sys.executable, "program.py", cwd=tmp_path)
    result = lgd.load(weights, "cpu").predict(str(pictures[0]), 0.0)
    boxes = torch.from_numpy(np.load(tmp_path / "boxes.npy"))
    assert len(boxes) == len(result) > 0
    assert (boxes[:, None] - result.boxes).abs().amax(dim=-1).amin(dim=1).max() < 1e-3
