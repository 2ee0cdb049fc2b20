"""One annotation file of Pascal VOC: the size of an image and its objects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

from lgd.data.errors import DataError
from lgd.data.limits import (
    MAX_COORDINATE,
    MAX_SIDE,
    MAX_XML_BYTES,
    as_flag,
    check_size,
    is_name,
    name_some,
    read_bytes,
    shown,
)
from lgd.data.remarks import Remark
from lgd.words import counted

_MAX_DIGITS = 20
"""Of a number of pixels: more take long to convert."""


@dataclass(frozen=True)
class VocObject:
    """An object as the file has it.

    Attributes:
        name: its class.
        box: x1, y1, x2, y2, edges in pixels of the upright picture.
        difficult: hard to recognise: not counted in the evaluation.
    """

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True)
class VocFile:
    """What an annotation file says of its image.

    Attributes:
        path: the file.
        file_name: of the picture, as the file has it; "" where it has none.
        height: pixels.
        width: pixels.
        objects: in the file's order.
    """

    path: Path
    file_name: str
    height: int
    width: int
    objects: tuple[VocObject, ...]


class _TreeBuilder(ElementTree.TreeBuilder):
    """Refuses document type definitions.

    Entities are declared nowhere else, so none can grow beyond bounds ("billion laughs") or name another
    file; without them the standard parser has nothing that a stranger's XML could abuse.
    """

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """End the parsing; called before anything in the definition is read."""
        raise ValueError("it has a document type definition (<!DOCTYPE ...>); remove it")


def read_voc_xml(path: Path) -> VocFile:
    """Read an annotation file.

    Raises:
        DataError: it is too large or no XML, lacks a size that can be, or an object lacks a name or a box of
            four numbers.
    """
    content = read_bytes(path, MAX_XML_BYTES)
    try:
        tree = ElementTree.fromstring(content, parser=ElementTree.XMLParser(target=_TreeBuilder()))
        height, width = (_side(tree, side) for side in ("height", "width"))
        if wrong := check_size(height, width):
            raise ValueError(f"the image's size, {width} x {height}, {wrong}")
        objects = tuple(_object(number, node) for number, node in enumerate(tree.findall("object")))
    except (ValueError, LookupError, ElementTree.ParseError) as error:
        prefix = "not whole XML: " if isinstance(error, ElementTree.ParseError) else ""
        raise DataError(f"{path}: {prefix}{error}") from error
    file_name = (tree.findtext("filename") or "").strip()
    return VocFile(path, file_name, height, width, objects)


def corners_from_zero(files: Sequence[VocFile]) -> tuple[list[VocFile], list[Remark]]:
    """Find out whether a set counts pixels from 0, which an xmin or ymin of 0 tells, and take them so.

    Tools that do so write edges: from xmin, ymin to xmax, ymax. All files of a set are of one tool.

    Returns:
        The files, and a remark where the set counts from 0.
    """
    telling = [file for file in files if any(-1 <= min(each.box[:2]) < 0 for each in file.objects)]
    if not telling:
        return list(files), []
    text = (
        f"xmin or ymin is 0 in {counted(len(telling), 'file')}, so this set counts pixels from 0 and not "
        "from 1 as VOC does: nothing is subtracted from its corners "
        f"({name_some([file.path.name for file in telling])})"
    )
    return [_count_from_zero(file) for file in files], [Remark("corners_from_zero", len(telling), text)]


def _count_from_zero(file: VocFile) -> VocFile:
    boxes = [(each.box[0] + 1, each.box[1] + 1, each.box[2], each.box[3]) for each in file.objects]
    objects = zip(file.objects, boxes, strict=True)
    return replace(file, objects=tuple(replace(each, box=box) for each, box in objects))


def _side(tree: ElementTree.Element, side: str) -> int:
    text = tree.findtext(f"size/{side}")
    if text is None:
        raise ValueError(f"it has no size ({side}) of the image")
    digits = text.strip()
    if not digits.isdecimal() or not digits.strip("0"):
        raise ValueError(f"the image's {side} is {shown(text)}, not a positive whole number")
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"the image's {side} is {shown(text)}, beyond {MAX_SIDE} pixels")
    return int(digits)


def _object(number: int, node: ElementTree.Element) -> VocObject:
    name = (node.findtext("name") or "").strip()
    if not name:
        raise ValueError(f"object {number} has no name")
    if not is_name(name):
        raise ValueError(f"the name of object {number} is {shown(name)}, which is no name")
    x1, y1, x2, y2 = (_coordinate(number, node, key) for key in ("xmin", "ymin", "xmax", "ymax"))
    text = (node.findtext("difficult") or "").strip()
    difficult = as_flag(text or "0")
    if difficult is None:
        raise ValueError(f"object {number} ({name}) has difficult {shown(text)}, neither 0 nor 1")
    return VocObject(name, (x1 - 1, y1 - 1, x2, y2), difficult)


def _coordinate(number: int, node: ElementTree.Element, key: str) -> float:
    text = node.findtext(f"bndbox/{key}")
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not abs(value) <= MAX_COORDINATE:
        limit = "" if not math.isfinite(value) else f" of at most {MAX_COORDINATE}"
        name = (node.findtext("name") or "").strip()
        raise ValueError(f"object {number} ({name}) has {key} {shown(text)}, not a number{limit}")
    return value
