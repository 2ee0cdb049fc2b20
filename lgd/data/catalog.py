"""What a user writes in DATASETS.TRAIN and DATASETS.TEST, and the data sets meant by it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from lgd.data.coco import load_coco
from lgd.data.concatenation import concatenate
from lgd.data.crowdhuman import load_crowdhuman
from lgd.data.derived import tidy
from lgd.data.errors import DataError
from lgd.data.index import AnnotationIndex
from lgd.data.synthetic import DEFAULT_SIZES, write_synthetic
from lgd.data.voc import load_voc

_KNOWN = {
    "coco_2017_train": ("coco/annotations/instances_train2017.json", "coco/train2017"),
    "coco_2017_val": ("coco/annotations/instances_val2017.json", "coco/val2017"),
}
_KINDS = ("coco", "crowdhuman", "voc", "synthetic")


def open_dataset(spec: str, root: Path) -> AnnotationIndex:
    """Open one data set, without the categories that are no classes (`tidy`).

    Args:
        spec: "coco_2017_train" or "coco_2017_val" (below `root`); "coco:ROOT:SPLIT", which is
            ROOT/annotations/instances_SPLIT.json and the images in ROOT/SPLIT; "crowdhuman:ROOT:SPLIT";
            "voc:ROOT:SPLIT", ROOT a folder like VOCdevkit/VOC2007; or "synthetic:ROOT:SPLIT", laid out like
            COCO and written on first use.
        root: the folder of the known data sets.

    Raises:
        DataError: `spec` is none of these, or see `load_coco`, `load_crowdhuman` and `load_voc`.
    """
    return tidy(_open(spec, root))


def _open(spec: str, root: Path) -> AnnotationIndex:
    if spec in _KNOWN:
        json_path, image_dir = _KNOWN[spec]
        return load_coco(root / json_path, root / image_dir, name=spec)
    kind, _, place = spec.partition(":")
    folder, _, split = place.rpartition(":")
    if kind not in _KINDS or not folder or not split:
        raise DataError(_unknown(spec))
    if kind == "crowdhuman":
        return load_crowdhuman(Path(folder), split, name=spec)
    if kind == "voc":
        return load_voc(Path(folder), split, name=spec)
    if kind == "synthetic":
        if split not in DEFAULT_SIZES:
            raise DataError(
                f"{spec}: the synthetic set has the splits {', '.join(DEFAULT_SIZES)}, not {split}"
            )
        write_synthetic(Path(folder), split, num_images=DEFAULT_SIZES[split])
    annotations = Path(folder) / "annotations" / f"instances_{split}.json"
    return load_coco(annotations, Path(folder) / split, name=spec)


def open_datasets(specs: Sequence[str], root: Path) -> AnnotationIndex:
    """Open data sets to train on as one, their images one after the other.

    Args:
        specs: at least one, each as in `open_dataset`, all of the same classes.
        root: as in `open_dataset`.

    Raises:
        DataError: there are none, their classes differ, or one cannot be opened.
    """
    if not specs:
        raise DataError("no data set is given")
    indices = [open_dataset(spec, root) for spec in specs]
    return indices[0] if len(indices) == 1 else concatenate(indices)


def _unknown(spec: str) -> str:
    names = [*_KNOWN, *(f"{kind}:ROOT:SPLIT" for kind in _KINDS)]
    written = spec.partition(":")[0]
    close = difflib.get_close_matches(written, [*_KNOWN, *_KINDS], n=1)
    meant = next((name for name in names if close and name in (close[0], f"{close[0]}:ROOT:SPLIT")), None)
    hint = f"did you mean {meant}? " if meant else ""
    return f"unknown data set {spec!r}: {hint}Known are {', '.join(names)}"
