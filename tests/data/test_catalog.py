import multiprocessing
from pathlib import Path

import numpy as np
import pytest

import lgd.data.catalog as catalog
from lgd.data.catalog import open_dataset
from lgd.data.errors import DataError
from tests.data.sets import annotation, image_record, open_joined, write_coco


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(catalog, "DEFAULT_SIZES", {"train": 6, "val": 3})


def test_coco_by_root_and_split(tmp_path):
    write_coco(tmp_path / "a:b", [image_record(1)], [annotation(1, 1)], split="val")
    index = open_dataset(f"coco:{tmp_path}/a:b:val", Path("datasets"))
    assert len(index) == 1
    assert index.name == f"coco:{tmp_path}/a:b:val"


def test_known_names_lie_below_the_root(tmp_path):
    with pytest.raises(DataError, match=r"coco_2017_val: .*coco/annotations/instances_val2017\.json"):
        open_dataset("coco_2017_val", tmp_path)
    write_coco(tmp_path / "coco", [image_record(1)], [annotation(1, 1)], split="train2017")
    assert len(open_dataset("coco_2017_train", tmp_path)) == 1


def test_synthetic_is_written_on_first_use(tmp_path, small):
    train = open_dataset(f"synthetic:{tmp_path}/s:train", Path("datasets"))
    val = open_dataset(f"synthetic:{tmp_path}/s:val", Path("datasets"))
    assert (len(train), len(val)) == (6, 3)
    assert train.path(0).read_bytes() != val.path(0).read_bytes()
    with pytest.raises(DataError, match="the synthetic set has the splits train, val, not test"):
        open_dataset(f"synthetic:{tmp_path}/s:test", Path("datasets"))


@pytest.mark.parametrize(("split", "images", "boxes"), [("train", 146, 1987), ("val", 36, 500)])
def test_a_sample_comes_with_the_package(tmp_path, split, images, boxes):
    index = open_dataset(f"sample:blood_cells:{split}", tmp_path)
    assert index.name == f"sample:blood_cells:{split}"
    assert (len(index), sum(len(index.boxes(i)) for i in range(images))) == (images, boxes)
    assert all(index.path(i).is_file() for i in range(images))
    assert "MIT" in (index.path(0).parents[1] / "LICENSE").read_text()


@pytest.mark.parametrize("line", ["sample", "sample:blood_cells", "sample:cells:train", "sample:../a:train"])
def test_an_unknown_sample(tmp_path, line):
    with pytest.raises(DataError) as caught:
        open_dataset(line, tmp_path)
    known = "sample:blood_cells:train and sample:blood_cells:val"
    assert str(caught.value) == f"{line}: no such sample; with the package come {known}"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("coco_2017_trian", "did you mean coco_2017_train?"),
        ("cocoo:x:y", "did you mean coco:ROOT:SPLIT?"),
        ("sintetic:x:y", "did you mean synthetic:ROOT:SPLIT?"),
        ("coco:x", "coco:x: there is no file or folder x; write coco:ROOT:SPLIT"),
        ("coco::x", "there is no file or folder :x; write coco:ROOT:SPLIT"),
        ("coco", "did you mean coco:ROOT:SPLIT?"),
        ("voc", "did you mean voc:ROOT:SPLIT?"),
        ("crowd_human:x:y", "did you mean crowdhuman:ROOT:SPLIT?"),
        ("crowdhuman:x", "crowdhuman:x: there is no file or folder x; write crowdhuman:ROOT:SPLIT"),
        (
            "objects365",
            "unknown data set 'objects365', nor is there such a file or folder: Known are coco_2017_train, "
            "coco_2017_val, coco:ROOT:SPLIT, yolo:ROOT:SPLIT, voc:ROOT:SPLIT, crowdhuman:ROOT:SPLIT, "
            "synthetic:ROOT:SPLIT, sample:ROOT:SPLIT, and files and folders that are there",
        ),
        ("", "unknown data set ''"),
    ],
)
def test_unknown_names(spec, message):
    with pytest.raises(DataError) as caught:
        open_dataset(spec, Path("datasets"))
    assert message in str(caught.value)


def make(root: Path, first_image: int, first_annotation: int, **other) -> str:
    annotations = [
        annotation(
            first_annotation, first_image, (1, 2, 3, 4), segmentation=[[0, 0, 1, 0, 1, 1], [2, 2, 3, 2, 3, 3]]
        ),
        annotation(first_annotation + 1, first_image + 1, segmentation={"size": [30, 20], "counts": [600]}),
        annotation(first_annotation + 2, first_image + 1, iscrowd=1, segmentation=[[5, 5, 9, 5, 9, 9]]),
    ]
    write_coco(root, [image_record(first_image), image_record(first_image + 1, 20, 30)], annotations, **other)
    return f"coco:{root}:train"


@pytest.mark.parametrize(("second_image", "second_annotation"), [(11, 21), (2, 3)])
def test_joined_sets(tmp_path, second_image, second_annotation):
    specs = [make(tmp_path / "a", 1, 1), make(tmp_path / "b", second_image, second_annotation)]
    parts = [open_dataset(spec, tmp_path) for spec in specs]
    joined = open_joined(specs, tmp_path)
    assert len(joined) == 4
    assert joined.name == " + ".join(specs)
    assert joined.counts.tolist() == [1, 1, 1, 1]
    assert len(set(joined.image_ids.tolist())) == 4
    assert len(set(joined.columns["annotation_ids"].tolist())) == 6
    for i in range(4):
        part, k = parts[i // 2], i % 2
        assert joined.path(i) == part.path(k).resolve()
        assert np.array_equal(joined.boxes(i), part.boxes(k))
        assert joined.labels(i).tolist() == part.labels(k).tolist()
        for mine, theirs in zip(joined.segmentation(i), part.segmentation(k), strict=True):
            if isinstance(mine, tuple):
                assert [p.tolist() for p in mine] == [p.tolist() for p in theirs]
            else:
                assert mine.counts.tolist() == theirs.counts.tolist()
    if second_image == 11:
        assert joined.image_ids.tolist() == [1, 2, 11, 12]
    assert open_joined(specs, tmp_path).content_hash == joined.content_hash


def _open_synthetic(root: Path) -> int:
    catalog.DEFAULT_SIZES = {"train": 12}
    return len(open_dataset(f"synthetic:{root}:train", root))


def test_racing_processes_share_one_synthetic_set(tmp_path):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(_open_synthetic, [tmp_path / "s"] * 4) == [12] * 4
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["annotations", "train"]
    assert len(list((tmp_path / "s" / "train").iterdir())) == 12
