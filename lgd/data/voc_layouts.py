"""Where the tools that write Pascal VOC's XML put it: with lists or without, beside the pictures or not."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lgd.data.errors import DataError
from lgd.data.folder import open_regular
from lgd.data.limits import is_printable, leads_outside, plain, read_text
from lgd.data.presence import names_in
from lgd.data.splits import WHOLE, Split, usual_name
from lgd.data.walking import files_below, files_in, folders_in, is_picture

_LISTS = ("ImageSets/Main", "ImageSets", ".")
_ANNOTATIONS = ("Annotations", "annotations", "Annotation", "annotation", "xmls", "xml", "labels")
_PICTURES = ("JPEGImages", "images", "Images", "JPEGImage", "imgs", "img", "image")
_CLASSES = ("classes.txt", "labelmap.txt")

_MAX_FOLDERS = 100
_HEAD = 2**12
"""Bytes at the beginning of a file that say whether it is VOC's."""

_SECOND_COLUMN = re.compile(r"(.*\S)\s+(-1|0|1)")
"""A line of the list of a class: the second column says whether the image has it."""


@dataclass(frozen=True)
class VocSplit(Split):
    """A split of a VOC-style set.

    Attributes:
        list_path: lists its images; None where all XML files are meant.
        annotations: the folder of the XML files.
        images: the folder of the pictures.
        classes: names the classes, where there is such a file.
    """

    list_path: Path | None
    annotations: Path
    images: Path
    classes: Path | None


def find_voc(root: Path, wanted: str | None = None) -> list[VocSplit]:
    """Find the splits below a folder.

    Args:
        root: the folder.
        wanted: the split that is looked for, which may be the list of a single class; those are not found
            otherwise.

    Raises:
        DataError: a folder cannot be listed.
    """
    if root.is_file():
        return []
    return list(_of_lists(root, wanted)) or list(_without_lists(root))


def _of_lists(root: Path, wanted: str | None) -> Iterator[VocSplit]:
    for folder in _LISTS:
        stems = {Path(name).stem for name in files_in(root / folder, ".txt")}
        if folder == ".":  # where there are other texts, too
            stems = {stem for stem in stems if stem == usual_name(stem) and _has_xml(_annotations(root))}
        for stem in sorted(stems):
            if stem != wanted and stem.rpartition("_")[2] in stems - {stem}:
                continue  # cat_train beside train: of a single class
            annotations, list_path = _annotations(root), root / folder / f"{stem}.txt"
            layout = f"VOC ({list_path.relative_to(root)}, {annotations.name}/)"
            images = _images(root, annotations, "")
            yield VocSplit(
                "voc", stem, f"voc:{root}:{stem}", layout, list_path, annotations, images, _classes(root)
            )
        if stems:
            return


def _without_lists(root: Path) -> Iterator[VocSplit]:
    """Splits that are all XML files of a folder."""
    annotations = next((root / name for name in _ANNOTATIONS if _has_xml(root / name)), None)
    if annotations is not None:
        folders = folders_in(annotations)
        if folders and all(usual_name(name) == name for name in folders):
            for name in folders:
                yield _all_of(root, name, annotations / name, _images(root, annotations / name, name))
        else:
            yield _all_of(root, WHOLE, annotations, _images(root, annotations, ""))
        return
    if _has_xml(root, deep=False):
        yield _all_of(root, WHOLE, root, _images(root, root, ""))
        return
    for name in folders_in(root)[:_MAX_FOLDERS]:
        inner = root / name
        if (inner / "ImageSets").is_dir():
            continue  # a set of its own, as VOC2007 in VOCdevkit
        below = next((inner / each for each in _ANNOTATIONS if _has_xml(inner / each)), None)
        if below is not None:
            yield _all_of(root, name, below, _images(inner, below, ""))
        elif _has_xml(inner, deep=False):
            yield _all_of(root, name, inner, _images(root, inner, name))


def _all_of(root: Path, name: str, annotations: Path, images: Path) -> VocSplit:
    spec = f"voc:{root}" if name == WHOLE else f"voc:{root}:{name}"
    folder = "" if annotations == root else f"{annotations.relative_to(root)}/"
    beside = "beside the pictures" if images == annotations else f"pictures in {images.relative_to(root)}/"
    layout = f"VOC (all of {folder}*.xml, {beside})"
    return VocSplit("voc", name, spec, layout, None, annotations, images, _classes(root))


def _images(root: Path, annotations: Path, split: str) -> Path:
    """The folder of the pictures: where the first of them is; else the first that is there."""
    folders = [folder for name in _PICTURES for folder in (root / name / split, root / name)]
    present = [folder for folder in [*folders, annotations, root / split, root] if folder.is_dir()]
    first = next(files_below(annotations, _is_xml), None)
    if first is not None:
        stem = Path(first).relative_to(annotations).with_suffix("")
        for folder in present:
            beside = names_in(folder / stem.parent)
            if any(Path(name).stem == stem.name and is_picture(name) for name in beside):
                return folder
    return present[0] if present and present[0] in folders else root / _PICTURES[0]


def _classes(root: Path) -> Path | None:
    return next((root / name for name in _CLASSES if (root / name).is_file()), None)


def _annotations(root: Path) -> Path:
    return next((root / name for name in _ANNOTATIONS if (root / name).is_dir()), root / _ANNOTATIONS[0])


def _has_xml(folder: Path, *, deep: bool = True) -> bool:
    """Whether the first XML file of a folder is VOC's (CVAT's own begins with <annotations>)."""
    first = next(files_below(folder, _is_xml, deep=deep), None)
    if first is None:
        return False
    try:
        with open_regular(Path(first)) as file:
            return re.search(rb"<annotation[\s>]", file.read(_HEAD)) is not None
    except (OSError, ValueError):
        return False


def _is_xml(name: str) -> bool:
    return name.lower().endswith(".xml")


def read_ids(split: VocSplit) -> tuple[list[str], list[str]]:
    """Return the images' ids, and those of them that have no XML file.

    An id is the path of the XML file below `annotations`, without its ending.

    Raises:
        DataError: the list is empty, or names one twice.
    """
    if split.list_path is None:
        files = files_below(split.annotations, _is_xml)
        return [_checked(_own_id(Path(path), split.annotations), split.annotations) for path in files], []
    listed: dict[str, set[str]] = {}

    def has_xml(image_id: str) -> bool:
        folder, _, stem = image_id.rpartition("/")
        if folder not in listed:
            listed[folder] = names_in(split.annotations / folder)
        return f"{stem}.xml" in listed[folder]

    lines = [line.strip() for line in read_text(split.list_path).splitlines() if line.strip()]
    ids = [_id_of(_checked(line, split.list_path), has_xml) for line in lines]
    if not ids:
        raise DataError(f"{split.list_path} is empty")
    if len(set(ids)) < len(ids):
        twice, _ = Counter(ids).most_common(1)[0]
        raise DataError(f"{split.list_path} lists {plain(twice)} more than once")
    return ids, [image_id for image_id in ids if not has_xml(image_id)]


def _own_id(path: Path, annotations: Path) -> str:
    if path.suffix != ".xml":
        raise DataError(f"{path}: rename it so that it ends in .xml")
    return path.relative_to(annotations).as_posix().removesuffix(".xml")


def _checked(image_id: str, path: Path) -> str:
    if leads_outside(image_id) or not is_printable(image_id):
        raise DataError(f"{path} lists {plain(image_id)}, which is no name below the folder of XML files")
    return image_id


def _id_of(line: str, has_xml: Callable[[str], bool]) -> str:
    """The id that a line is or has: it may have blanks, quotes, a second column, or be a picture's path."""
    quoted = re.match(r'"([^"]+)"', line)
    column = _SECOND_COLUMN.fullmatch(line)
    readings = [line, *(match[1] for match in (quoted, column) if match)]
    readings += [reading.replace("\\", "/") for reading in readings]
    pictures = [reading.rpartition(".")[0] for reading in readings if is_picture(reading)]
    pictures += [reading.rpartition("/")[2] for reading in pictures]
    return next((reading for reading in (*readings, *pictures) if has_xml(reading)), readings[-1])


def find_pictures(images: Path, ids: Sequence[str], named: Sequence[str]) -> list[str]:
    """Return the paths of the pictures below their folder.

    Args:
        images: the folder.
        ids: of the images; a picture is called like its XML file.
        named: what the XML files call their pictures, which counts where several fit or none does.
    """
    listed: dict[str, dict[str, list[str]]] = {}
    file_names = []
    for image_id, name in zip(ids, named, strict=True):
        folder, _, stem = image_id.rpartition("/")
        if folder not in listed:
            listed[folder] = _by_stem(images / folder)
        own = re.split(r"[\\/]", name)[-1]
        fitting = listed[folder].get(stem) or [
            each for each in listed[folder].get(Path(own).stem, ()) if each == own
        ]
        if fitting:
            chosen = own if own in fitting else fitting[-1]
            file_names.append(f"{folder}/{chosen}" if folder else chosen)
        else:
            file_names.append(_elsewhere(images, name) or f"{image_id}.jpg")
    return file_names


def _by_stem(folder: Path) -> dict[str, list[str]]:
    """The pictures of a folder by name without ending; of several, a JPEG comes last."""
    names = [name for name in names_in(folder) if is_printable(name) and is_picture(name)]
    by_stem: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: (name.endswith(".jpg"), name)):
        by_stem.setdefault(Path(name).stem, []).append(name)
    return by_stem


def _elsewhere(images: Path, name: str) -> str | None:
    """What an XML file calls its picture, where that is below the folder."""
    slashed = name.replace("\\", "/")
    for written in (slashed, slashed.rpartition("/")[2]):
        if written and not leads_outside(written) and is_printable(written):
            with contextlib.suppress(OSError, ValueError):
                if (images / written).is_file():
                    return written
    return None
