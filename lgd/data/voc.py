"""Pascal VOC and sets laid out like it: an XML file an image, and lists of images.

Coordinates in the files count pixels from 1 and include both ends, so that xmin - 1, ymin - 1, xmax, ymax are
the edges of the box. Difficult objects are trained on, as in detectron2, and neither found nor missed in the
evaluation.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lgd.data.annotations import ParsedImage, columns_of_images
from lgd.data.cache import Columns, cached_columns
from lgd.data.errors import DataError
from lgd.data.index import AnnotationIndex
from lgd.data.limits import MAX_XML_BYTES, is_file, is_folder, is_name, is_printable, plain, read_text, shown
from lgd.data.presence import check_images_present, names_in
from lgd.data.remarks import Remark, to_metadata
from lgd.data.voc_xml import VocFile, corners_from_zero, read_voc_xml

logger = logging.getLogger(__name__)

CLASS_NAMES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""Pascal VOC's 20 classes in their usual order."""


def load_voc(root: Path, split: str, *, name: str) -> AnnotationIndex:
    """Open a split of a VOC-style set.

    ROOT is a folder like VOCdevkit/VOC2007: ROOT/ImageSets/Main/SPLIT.txt lists the images' ids,
    ROOT/Annotations/ID.xml has their objects, ROOT/JPEGImages/ID.jpg (or another ending) is the picture.
    Images are numbered from 1 in the list's order.

    The classes are those of ROOT/classes.txt (one name a line) where there is one; else VOC's 20 where no
    other name occurs in the split; else the names in the split, sorted.

    Args:
        root: the folder of the set.
        split: names the list.
        name: what messages call the set.

    Raises:
        DataError: the list, a folder, an XML file or an image is absent, or an XML file is not what the
            format says.
    """
    places = _Places(root, split)
    if not is_file(places.list_path):
        raise DataError(_no_list(places, name))
    for folder in (places.annotations, places.images):
        if not is_folder(folder):
            raise DataError(f"{name}: there is no folder {folder}")
    ids = _read_ids(places.list_path)
    index = _open(places, ids, name)
    try:
        check_images_present(index)
    except DataError:
        if index.file_names() == _file_names(places, ids):
            raise
        with contextlib.suppress(OSError):
            index.cache_path.unlink()  # it is of pictures that had other endings
        index = _open(places, ids, name)
        check_images_present(index)
    for warning in index.warnings:
        logger.warning("%s", warning)
    return index


def _open(places: _Places, ids: Sequence[str], name: str) -> AnnotationIndex:
    cache_path = cached_columns(
        places.list_path,
        lambda content_hash: _parse(places, ids, content_hash),
        parts=_parts(places, ids),
        max_part_bytes=MAX_XML_BYTES,
    )
    return AnnotationIndex(cache_path, name=name, json_path=places.list_path, image_dir=places.images)


@dataclass(frozen=True)
class _Places:
    """Where the parts of a set lie."""

    root: Path
    split: str

    @property
    def list_path(self) -> Path:
        return self.root / "ImageSets" / "Main" / f"{self.split}.txt"

    @property
    def annotations(self) -> Path:
        return self.root / "Annotations"

    @property
    def images(self) -> Path:
        return self.root / "JPEGImages"

    @property
    def classes(self) -> Path:
        return self.root / "classes.txt"


def _no_list(places: _Places, name: str) -> str:
    years = sorted(folder.name for folder in places.root.glob("VOC*") if (folder / "ImageSets").is_dir())
    hint = f"; did you mean voc:{places.root / years[0]}:{places.split}?" if years else ""
    return f"{name}: there is no list of images {places.list_path}{hint}"


def _read_ids(list_path: Path) -> list[str]:
    # The lists of a single class have a second column; which images they hold is the first.
    ids = [line.split()[0] for line in read_text(list_path).splitlines() if line.strip()]
    if not ids:
        raise DataError(f"{list_path} is empty")
    if len(set(ids)) < len(ids):
        twice, _ = Counter(ids).most_common(1)[0]
        raise DataError(f"{list_path} lists {plain(twice)} more than once")
    return ids


def _parts(places: _Places, ids: Sequence[str]) -> list[Path]:
    """The files beside the list that the columns are made from."""
    present = names_in(places.annotations)
    absent = next((image_id for image_id in ids if f"{image_id}.xml" not in present), None)
    if absent is not None:
        raise DataError(
            f"{places.list_path} lists {plain(absent)}, but there is no "
            f"{places.annotations / plain(absent)}.xml"
        )
    classes = [places.classes] if is_file(places.classes) else []
    return classes + [places.annotations / f"{image_id}.xml" for image_id in ids]


def _parse(places: _Places, ids: Sequence[str], content_hash: str) -> Columns:
    files, corner_remarks = corners_from_zero(
        [read_voc_xml(places.annotations / f"{image_id}.xml") for image_id in ids]
    )
    class_names, class_remarks = _choose_classes(places, files)
    images = [
        _parse_image(file, file_name, class_names, places.classes)
        for file_name, file in zip(_file_names(places, ids), files, strict=True)
    ]
    columns, remarks = columns_of_images(images, places.list_path)
    metadata = {
        "kind": "voc",
        "content_hash": content_hash,
        "class_names": class_names,
        "category_ids": list(range(1, len(class_names) + 1)),
        "has_annotations": True,
        "remarks": [to_metadata(class_remarks + corner_remarks + remarks)],
    }
    return columns, metadata


def _file_names(places: _Places, ids: Sequence[str]) -> list[str]:
    """The images' pictures; of two of one name the JPEG counts, since it comes last."""
    names = filter(is_printable, names_in(places.images))
    stems = {Path(name).stem: name for name in sorted(names, key=lambda name: (name.endswith(".jpg"), name))}
    return [stems.get(image_id, f"{image_id}.jpg") for image_id in ids]


def _choose_classes(places: _Places, files: Sequence[VocFile]) -> tuple[list[str], list[Remark]]:
    """The classes in the order of their labels, and a remark where they hang on the split alone."""
    if is_file(places.classes):
        names = [line.strip() for line in read_text(places.classes).splitlines() if line.strip()]
        if not names or len(set(names)) < len(names) or not all(map(is_name, names)):
            raise DataError(f"{places.classes} is empty, names a class twice, or has what is no name")
        return names, []
    found = sorted({each.name for file in files for each in file.objects})
    if set(found) <= set(CLASS_NAMES):
        return list(CLASS_NAMES), []
    warning = (
        f"other classes than VOC's 20, so the {len(found)} of this split are taken in sorted order; to fix "
        f"them for all splits write them to {places.classes.name} in the set's folder, one a line"
    )
    return found, [Remark("classes_of_this_split", len(found), warning)]


def _parse_image(file: VocFile, file_name: str, class_names: Sequence[str], classes: Path) -> ParsedImage:
    unknown = next((each.name for each in file.objects if each.name not in class_names), None)
    if unknown is not None:
        close = difflib.get_close_matches(unknown, class_names, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise DataError(f"{file.path}: the class {shown(unknown)} of an object is not in {classes}{hint}")
    return ParsedImage(
        file_name=file_name,
        height=file.height,
        width=file.width,
        boxes=[each.box for each in file.objects],
        labels=[class_names.index(each.name) for each in file.objects],
        crowd=[False] * len(file.objects),
        difficult=[each.difficult for each in file.objects],
    )
