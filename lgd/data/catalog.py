"""What a user writes in DATASETS.TRAIN and DATASETS.TEST, and the data sets meant by it."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Mapping
from pathlib import Path

from lgd.data.coco import load_coco, load_coco_split
from lgd.data.coco_layouts import find_coco
from lgd.data.crowdhuman import load_crowdhuman
from lgd.data.derived import tidy
from lgd.data.errors import DataError
from lgd.data.index import AnnotationIndex
from lgd.data.layouts import FINDERS, find_splits
from lgd.data.limits import is_file, is_folder, plain
from lgd.data.presence import names_in
from lgd.data.splits import Split, choose, the_one
from lgd.data.synthetic import DEFAULT_SIZES, write_synthetic
from lgd.data.voc import load_voc
from lgd.data.walking import folders_in
from lgd.data.yolo import load_yolo

_KNOWN = {
    "coco_2017_train": ("coco/annotations/instances_train2017.json", "coco/train2017"),
    "coco_2017_val": ("coco/annotations/instances_val2017.json", "coco/val2017"),
}
_LOADERS: Mapping[str, Callable[..., AnnotationIndex]] = {
    "coco": load_coco_split,
    "yolo": load_yolo,
    "voc": load_voc,
    "crowdhuman": load_crowdhuman,
}
"""A format is a line here, and one in `FINDERS`."""

_WORDS = {
    "coco": "COCO (JSON)",
    "yolo": "YOLO (data.yaml)",
    "voc": "Pascal VOC (XML)",
    "crowdhuman": "CrowdHuman (annotation_SPLIT.odgt)",
}

_KINDS = (*_LOADERS, "synthetic", "sample")

_SAMPLES = Path(__file__).parent / "samples"
"""Small sets that come with the package: folders in COCO's layout, each with its licence."""

_MAX_FOLDERS = 20
"""That are looked into for what may have been meant."""


def open_dataset(spec: str, root: Path) -> AnnotationIndex:
    """Open one data set, without the categories that are no classes (`tidy`).

    Args:
        spec: "coco_2017_train" or "coco_2017_val" (below `root`); "KIND:ROOT:SPLIT", where KIND is coco,
            yolo, voc or crowdhuman and may be left out, as may SPLIT where there is one only; a file instead
            of ROOT, as in "yolo:data.yaml:SPLIT" or "coco:FILE.json:IMAGES"; "synthetic:ROOT:SPLIT", which is
            written on first use; or "sample:blood_cells:SPLIT", which comes with the package. `~` is the
            user's home.
        root: the folder of the known data sets.

    Raises:
        DataError: `spec` is none of these, means several, or see `load_coco`, `load_yolo`, `load_voc` and
            `load_crowdhuman`.
    """
    return tidy(_open(spec, root))


def _open(spec: str, root: Path) -> AnnotationIndex:
    if spec in _KNOWN:
        json_path, image_dir = (_expand(str(root / path), spec) for path in _KNOWN[spec])
        return load_coco(json_path, image_dir, name=spec)
    kind, _, place = spec.partition(":")
    if kind == "synthetic":
        return _open_synthetic(spec, place)
    if kind == "sample":
        return _open_sample(spec, place)
    kinds = (kind,) if kind in FINDERS else tuple(FINDERS)
    path, rest = _divide(place if kind in FINDERS else spec, spec)
    if rest is not None and path.is_file() and path.suffix.lower() == ".json":
        return load_coco_split(find_coco(path)[0], name=spec, image_dir=_image_dir(path, rest, spec))
    found = find_splits(path, kinds, rest)
    if not found and (near := _nearby(path, rest)):
        lines = " or ".join(split.spec for split in near[:2])
        raise DataError(f"{spec}: {plain(str(path))} is not laid out like that; did you mean {lines}?")
    split = the_one(found, rest, path, spec, " or ".join(_WORDS[kind] for kind in kinds))
    return _LOADERS[split.kind](split, name=spec)


def _open_synthetic(spec: str, place: str) -> AnnotationIndex:
    written, _, split = place.rpartition(":")
    if not written or not split:
        raise DataError(_unknown(spec))
    if split not in DEFAULT_SIZES:
        raise DataError(f"{spec}: the synthetic set has the splits {', '.join(DEFAULT_SIZES)}, not {split}")
    folder = _expand(written, spec)
    write_synthetic(folder, split, num_images=DEFAULT_SIZES[split])
    return load_coco(folder / "annotations" / f"instances_{split}.json", folder / split, name=spec)


def _open_sample(spec: str, place: str) -> AnnotationIndex:
    jsons = sorted(_SAMPLES.glob("*/annotations/instances_*.json"))
    places = {f"{path.parents[1].name}:{path.stem.removeprefix('instances_')}": path for path in jsons}
    if place not in places:
        lines = " and ".join(f"sample:{known}" for known in places)
        raise DataError(f"{spec}: no such sample; with the package come {lines}")
    name, _, split = place.partition(":")
    return load_coco(places[place], _SAMPLES / name / split, name=spec)


def _divide(place: str, spec: str) -> tuple[Path, str | None]:
    """The file or folder, and the split or folder of pictures behind it; both may have colons in them."""
    whole = _expand(place, spec)
    if place and (is_file(whole) or is_folder(whole)):
        return whole, None
    cuts = [k for k, letter in enumerate(place) if letter == ":" and 0 < k < len(place) - 1]
    for cut in reversed(cuts):
        path, rest = _expand(place[:cut], spec), place[cut + 1 :]
        if is_file(path) or (is_folder(path) and "/" not in rest):
            return path, rest
    raise DataError(_unknown(spec, place))


def _expand(written: str, spec: str) -> Path:
    try:
        return Path(written).expanduser()
    except RuntimeError as error:
        user = plain(Path(written).parts[0])
        raise DataError(f"{spec}: there is no home folder of {user} on this machine") from error


def _image_dir(json_path: Path, written: str, spec: str) -> Path:
    """The folder of pictures that is named with a JSON: from here, or from the JSON's folder."""
    places = [_expand(written, spec), json_path.parent / written]
    folder = next((place for place in places if is_folder(place)), None)
    if folder is None:
        raise DataError(
            f"{spec}: there is no image folder {plain(written)}, neither here nor beside the JSON"
        )
    return folder


def _nearby(path: Path, wanted: str | None) -> list[Split]:
    """The splits of other formats in a folder, or those of the folders in it."""
    places = [path, *(path / name for name in folders_in(path)[:_MAX_FOLDERS])]
    for place in places if path.is_dir() else ():
        with contextlib.suppress(DataError):
            found = find_splits(place)
            if near := choose(found, wanted) or (found if place is not path else []):
                return near
    return []


def _unknown(spec: str, place: str = "") -> str:
    kind, *rest = spec.split(":")
    names = [*_KNOWN, *(f"{kind}:ROOT:SPLIT" for kind in _KINDS)]
    if kind in _KINDS and rest:
        folder = Path(place.rpartition(":")[0] or place)
        near = _near(folder)
        hint = f"; did you mean {near}?" if near else ""
        return f"{spec}: there is no file or folder {plain(str(folder))}{hint or ';'} write {kind}:ROOT:SPLIT"
    close = difflib.get_close_matches(kind, [*_KNOWN, *_KINDS], n=1)
    meant = next((name for name in names if close and name in (close[0], f"{close[0]}:ROOT:SPLIT")), None)
    meant = meant or _near(Path(kind))
    hint = f"did you mean {meant}? " if meant else ""
    return (
        f"unknown data set {spec!r}, nor is there such a file or folder: {hint}Known are {', '.join(names)}, "
        "and files and folders that are there"
    )


def _near(path: Path) -> str | None:
    """What lies beside an absent path under a similar name."""
    close = difflib.get_close_matches(path.name, names_in(path.parent), n=1)
    return plain(str(path.parent / close[0])) if close else None
