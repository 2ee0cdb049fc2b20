"""Pascal VOC and sets laid out like it: an XML file an image, and lists of images.

Coordinates in the files count pixels from 1 and include both ends, so that xmin - 1, ymin - 1, xmax, ymax are
the edges of the box. Difficult objects are trained on, as in detectron2, and neither found nor missed in the
evaluation.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from lgd.data.annotations import ParsedImage, columns_of_images
from lgd.data.cache import Columns, cached_columns
from lgd.data.errors import DataError
from lgd.data.images import read_size
from lgd.data.index import AnnotationIndex
from lgd.data.limits import MAX_XML_BYTES, is_folder, is_name, name_some, plain, read_text, shown
from lgd.data.presence import check_images_present
from lgd.data.remarks import Remark, to_metadata
from lgd.data.voc_layouts import VocSplit, find_pictures, read_ids
from lgd.data.voc_xml import VocFile, corners_from_zero, read_voc_xml
from lgd.notices import follow
from lgd.words import counted

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


def load_voc(split: VocSplit, *, name: str) -> AnnotationIndex:
    """Open a split of a VOC-style set.

    Images are numbered from 1 in the list's order, or in that of their names where there is no list. In
    sets of Datumaro, which have a labelmap.txt, listed images without an XML file have no objects.

    The classes are those of classes.txt (one name a line) or labelmap.txt in the set's folder where there is
    one; else VOC's 20 where no other name occurs in the split; else the names in the split, sorted.

    Args:
        split: where it lies.
        name: what messages call the set.

    Raises:
        DataError: a folder, an XML file or an image is absent, or an XML file is not what the format says.
    """
    for folder in (split.annotations, split.images):
        if not is_folder(folder):
            raise DataError(f"{name}: there is no folder {folder}")
    ids, bare = read_ids(split)
    _refuse_absent(split, ids, bare)
    index = _open(split, ids, bare, name)
    try:
        check_images_present(index)
    except DataError:
        with contextlib.suppress(OSError):
            index.cache_path.unlink()  # it may be of pictures that had other endings
        index = _open(split, ids, bare, name)
        check_images_present(index)
    for warning in index.warnings:
        logger.warning("%s", warning)
    return index


def _refuse_absent(split: VocSplit, ids: Sequence[str], bare: Sequence[str]) -> None:
    is_datumaro = split.classes is not None and split.classes.name == "labelmap.txt"
    if bare and not (is_datumaro and len(bare) < len(ids)):
        raise DataError(
            f"{split.list_path} lists {plain(bare[0])}, but there is no "
            f"{split.annotations / plain(bare[0])}.xml"
        )


def _open(split: VocSplit, ids: Sequence[str], bare: Sequence[str], name: str) -> AnnotationIndex:
    source = split.list_path or split.annotations
    xml = [split.annotations / f"{image_id}.xml" for image_id in ids if image_id not in set(bare)]
    unlabelled = [
        split.images / file_name for file_name in find_pictures(split.images, bare, [""] * len(bare))
    ]

    def describe() -> str:
        if not split.list_path:
            return "\n".join(ids)
        return "\n".join(
            f"{image_id} {read_size(path)}" for image_id, path in zip(bare, unlabelled, strict=True)
        )

    cache_path = cached_columns(
        source,
        lambda content_hash: _parse(split, ids, dict(zip(bare, unlabelled, strict=True)), content_hash),
        parts=[*(path for path in (split.classes,) if path is not None), *xml],
        max_part_bytes=MAX_XML_BYTES,
        pictures=unlabelled,
        describe=describe,
    )
    return AnnotationIndex(
        cache_path, name=name, json_path=source, image_dir=split.images, layout=split.layout
    )


def _parse(split: VocSplit, ids: Sequence[str], bare: Mapping[str, Path], content_hash: str) -> Columns:
    files = [
        VocFile(bare[image_id], "", *read_size(bare[image_id]), objects=())
        if image_id in bare
        else read_voc_xml(split.annotations / f"{image_id}.xml")
        for image_id in follow(ids, f"{split.spec}: labels", len(ids))
    ]
    files, corner_remarks = corners_from_zero(files)
    class_names, class_remarks = _choose_classes(split, files)
    file_names = find_pictures(split.images, ids, [file.file_name for file in files])
    images = [
        _parse_image(file, file_name, class_names, split.classes)
        for file_name, file in zip(file_names, files, strict=True)
    ]
    columns, more = columns_of_images(images, split.list_path or split.annotations)
    remarks = [*class_remarks, *corner_remarks, *more]
    if bare:
        text = f"{counted(len(bare), 'listed picture')} without an XML file, taken as without objects"
        named = name_some(list(bare), plain, at_most=3)
        remarks.append(Remark("pictures_without_labels", len(bare), f"{text}: {named}"))
    metadata = {
        "kind": "voc",
        "content_hash": content_hash,
        "class_names": class_names,
        "category_ids": list(range(1, len(class_names) + 1)),
        "has_annotations": True,
        "remarks": [to_metadata(remarks)],
    }
    return columns, metadata


def _choose_classes(split: VocSplit, files: Sequence[VocFile]) -> tuple[list[str], list[Remark]]:
    """The classes in the order of their labels, and a remark where they hang on the split alone."""
    if split.classes is not None:
        return _read_classes(split.classes), []
    found = sorted({each.name for file in files for each in file.objects})
    if set(found) <= set(CLASS_NAMES):
        return list(CLASS_NAMES), []
    warning = (
        f"other classes than VOC's 20, so those of this split ({len(found)}) are taken in sorted order; "
        "to fix them for all splits write them to classes.txt in the set's folder, one a line"
    )
    return found, [Remark("classes_of_this_split", len(found), warning)]


def _read_classes(path: Path) -> list[str]:
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if path.name == "labelmap.txt":  # name:colour:parts:actions, of the background too
        names = [name.partition(":")[0] for name in names if not name.startswith("#")]
        names = [name for name in names if name != "background"]
    if not names or len(set(names)) < len(names) or not all(map(is_name, names)):
        raise DataError(f"{path} is empty, names a class twice, or has what is no name")
    return names


def _parse_image(
    file: VocFile, file_name: str, class_names: Sequence[str], classes: Path | None
) -> ParsedImage:
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
