"""A trained model under the real FiftyOne, in an environment of its own; without its database."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.adapters.fiftyone_program import SCORE
from tests.training import REPOSITORY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The Python of an environment that has FiftyOne beside what is installed here."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    here = [path for path in sys.path if Path(path).name == "site-packages"]
    (packages / "here.pth").write_text("\n".join(here) + "\n")
    install = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "fiftyone==1.22.1"]
    done = subprocess.run(install, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        pytest.fail(f"this test needs FiftyOne from PyPI, and pip cannot install it:\n{done.stderr[-2000:]}")
    return folder / "bin/python"


def test_samples_hold_what_predict_gives(python, tiny_weights, tiny_model, small_data, tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "HOME": str(tmp_path),
        "FIFTYONE_DO_NOT_TRACK": "true",
        "OMP_NUM_THREADS": "1",
    }
    out = tmp_path / "found.json"
    program = [str(python), "-m", "tests.adapters.fiftyone_program"]
    words = [*program, str(tiny_weights), str(small_data / "val"), str(out)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(out.read_text())
    results = tiny_model.predict(small_data / "val", SCORE)
    assert sorted(said) == [result.name for result in results]
    assert sum(map(len, said.values())) > 10
    for result in results:
        height, width = result.size
        assert len(said[result.name]) == len(result)
        for found, box, name in zip(said[result.name], result.boxes.tolist(), result.names, strict=True):
            x, y, w, h = found["box"]
            corners = [x * width, y * height, (x + w) * width, (y + h) * height]
            assert corners == pytest.approx(box, abs=1e-3)
            assert found["name"] == name
            rows, columns, area = found["mask"]
            assert abs(rows - h * height) <= 1.5
            assert abs(columns - w * width) <= 1.5
            assert 0.35 * rows * columns <= area <= 0.65 * rows * columns + rows
        assert [each["score"] for each in said[result.name]] == pytest.approx(result.scores.tolist())
