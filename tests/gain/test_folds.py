"""Every picture validates once."""

import json
from pathlib import Path

import numpy as np
import pytest

from lgd.data.catalog import open_dataset
from lgd.data.errors import DataError
from lgd.gain.folds import divide, write_folds


def test_parts_are_alike_in_size_and_keep_groups_together():
    groups = np.array([0, 0, 0, 1, 2, 3, 4, 5, 6, 6])
    parts = divide(groups, 3)
    assert sorted(np.bincount(parts)) in ([3, 3, 4], [2, 4, 4])
    assert len({*parts[:3]}) == len({*parts[8:]}) == 1
    assert np.array_equal(parts, divide(groups, 3))


def test_every_picture_validates_once(small_data, tmp_path):
    lines = [f"coco:{small_data}:train", f"coco:{small_data}:val"]
    pairs = write_folds(lines, Path("datasets"), 3, tmp_path)
    names, sizes = [], []
    for train, val in pairs:
        opened = [open_dataset(line, Path("datasets")) for line in (train, val)]
        rest, part = ({index.path(i).resolve() for i in range(len(index))} for index in opened)
        assert all(path.is_file() for path in rest | part)
        assert not rest & part
        assert len(rest | part) == 17
        assert len(opened[1].columns["labels"]) > 0
        names += part
        sizes.append(len(part))
    assert len(names) == len({*names}) == 17
    assert max(sizes) - min(sizes) <= 1
    whole = [open_dataset(line, Path("datasets")) for line in lines]
    objects = sum(len(index.columns["labels"]) for index in whole)
    assert len(json.loads((tmp_path / "all.json").read_text())["annotations"]) == objects


def test_too_few_pictures(small_data, tmp_path):
    with pytest.raises(DataError, match="5 pictures are too few for 6 folds"):
        write_folds([f"coco:{small_data}:val"], Path("datasets"), 6, tmp_path)
