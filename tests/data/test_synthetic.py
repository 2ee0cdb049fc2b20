import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lgd.data.coco import load_coco
from lgd.data.errors import DataError
from lgd.data.images import read_image
from lgd.data.index import AnnotationIndex, RunLengths
from lgd.data.outlines import pad_outlines, read_outlines
from lgd.data.synthetic import CLASS_NAMES, make_scene, write_synthetic
from lgd.ops.polygons import rasterize_on_grid


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("synthetic")
    write_synthetic(root, "train", num_images=40)
    write_synthetic(root, "val", num_images=10)
    return root


@pytest.fixture(scope="module")
def index(root) -> AnnotationIndex:
    return load_coco(root / "annotations" / "instances_train.json", root / "train", name="synthetic")


def digest(root: Path) -> str:
    files = sorted(path for path in root.rglob("*") if path.suffix in (".json", ".jpg"))
    content = b"".join(path.relative_to(root).as_posix().encode() + path.read_bytes() for path in files)
    return hashlib.sha256(content).hexdigest()


def test_same_seed_same_bytes(root, tmp_path):
    write_synthetic(tmp_path / "a", "train", num_images=40)
    write_synthetic(tmp_path / "a", "val", num_images=10)
    assert digest(tmp_path / "a") == digest(root)


def test_scene_follows_from_the_generator_alone():
    first, again, other = (make_scene(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first.image, again.image)
    assert first.labels == again.labels
    assert first.image.shape != other.image.shape or not np.array_equal(first.image, other.image)


def test_other_seed_and_other_split_are_other_images(root, tmp_path):
    write_synthetic(tmp_path, "train", num_images=5, seed=1)
    first = root / "train" / "000001.jpg"
    assert first.read_bytes() != (tmp_path / "train" / "000001.jpg").read_bytes()
    assert first.read_bytes() != (root / "val" / "000001.jpg").read_bytes()


def test_what_is_there_stays(root):
    before = digest(root)
    write_synthetic(root, "train", num_images=3, seed=9)
    assert digest(root) == before


def test_leftover_images_without_json_are_completed(root, tmp_path):
    write_synthetic(tmp_path, "train", num_images=40)
    write_synthetic(tmp_path, "val", num_images=10)
    (tmp_path / "annotations" / "instances_val.json").unlink()
    write_synthetic(tmp_path, "val", num_images=10)
    assert digest(tmp_path) == digest(root)


def test_all_classes_and_some_variety(index):
    assert index.class_names == CLASS_NAMES
    assert set(index.columns["labels"].tolist()) == set(range(len(CLASS_NAMES)))
    assert len(set(zip(index.heights.tolist(), index.widths.tolist(), strict=True))) >= 3
    assert index.counts.max() >= 5
    assert not index.warnings
    kinds = {type(mask) for i in range(len(index)) for mask in index.segmentation(i)}
    assert kinds == {tuple, RunLengths}


def _decode(mask: RunLengths) -> np.ndarray:
    values = np.repeat(np.arange(len(mask.counts)) % 2, mask.counts)
    return values.reshape(mask.width, mask.height).T.astype(bool)


def test_boxes_and_areas_are_those_of_the_masks(index):
    for i in range(len(index)):
        total = np.zeros((index.heights[i], index.widths[i]), dtype=int)
        for box, area, mask in zip(index.boxes(i), index.area(i), index.segmentation(i), strict=True):
            assert area >= 30
            if isinstance(mask, RunLengths):
                pixels = _decode(mask)
                total += pixels
                rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
                assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
                assert area == pixels.sum()
        assert total.max() <= 1


def test_polygons_bound_their_areas_to_a_fraction_of_a_pixel(index):
    for i in range(len(index)):
        for box, area, mask in zip(index.boxes(i), index.area(i), index.segmentation(i), strict=True):
            if isinstance(mask, tuple):
                points = mask[0].reshape(-1, 2)
                following = np.roll(points, -1, axis=0)
                enclosed = abs((points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]).sum()) / 2
                perimeter = np.linalg.norm(following - points, axis=1).sum()
                assert abs(area - enclosed) < 0.4 * perimeter
                assert np.abs(box - [*points.min(0), *points.max(0)]).max() < 2


def test_outlines_are_the_masks(index):
    for i in range(len(index)):
        outlines = pad_outlines([read_outlines(index, i)], max(1, len(index.labels(i))), torch.float32)
        size = (int(index.heights[i]), int(index.widths[i]))
        drawn = rasterize_on_grid(
            outlines.edges, outlines.parts, outlines.num_parts, torch.tensor([size]), size, size
        )[0]
        for pixels, area, box in zip(drawn, index.area(i), index.boxes(i).round().astype(int), strict=False):
            x1, y1, x2, y2 = box.tolist()
            assert abs(pixels.sum().item() / area - 1) < 0.1
            assert pixels.sum() - pixels[max(y1 - 1, 0) : y2 + 1, max(x1 - 1, 0) : x2 + 1].sum() == 0


def test_images_are_as_the_file_says(index):
    for i in range(10):
        assert read_image(index.path(i)).shape == (3, index.heights[i], index.widths[i])


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write the synthetic data set to"):
        write_synthetic(tmp_path / "file", "train", num_images=1)


def test_nothing_else_is_left_behind(root):
    names = sorted(path.name for path in root.iterdir())
    assert names == ["annotations", "train", "val"]
    assert json.loads((root / "annotations" / "instances_val.json").read_text())["info"]["seed"] == 0
