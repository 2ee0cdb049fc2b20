"""One annotation file of Pascal VOC: the size of an image and its objects."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from lgd.data.errors import DataError


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
        height: pixels.
        width: pixels.
        objects: in the file's order.
    """

    path: Path
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
        DataError: it is no XML, lacks a size, or an object lacks a name or a box of four numbers.
    """
    try:
        tree = ElementTree.fromstring(path.read_bytes(), parser=ElementTree.XMLParser(target=_TreeBuilder()))
        height, width = (_side(tree, side) for side in ("height", "width"))
        objects = tuple(_object(number, node) for number, node in enumerate(tree.findall("object")))
    except (ValueError, LookupError, ElementTree.ParseError) as error:
        prefix = "not whole XML: " if isinstance(error, ElementTree.ParseError) else ""
        raise DataError(f"{path}: {prefix}{error}") from error
    return VocFile(path, height, width, objects)


def _side(tree: ElementTree.Element, side: str) -> int:
    text = tree.findtext(f"size/{side}")
    if text is None:
        raise ValueError(f"it has no size ({side}) of the image")
    if not text.strip().isdecimal() or int(text) == 0:
        raise ValueError(f"the image's {side} is {text!r}, not a positive whole number")
    return int(text)


def _object(number: int, node: ElementTree.Element) -> VocObject:
    name = (node.findtext("name") or "").strip()
    if not name:
        raise ValueError(f"object {number} has no name")
    x1, y1, x2, y2 = (_coordinate(number, node, key) for key in ("xmin", "ymin", "xmax", "ymax"))
    difficult = (node.findtext("difficult") or "0").strip() not in ("", "0")
    return VocObject(name, (x1 - 1, y1 - 1, x2, y2), difficult)


def _coordinate(number: int, node: ElementTree.Element, key: str) -> float:
    text = node.findtext(f"bndbox/{key}")
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"object {number} ({node.findtext('name')}) has {key} {text!r}, not a number")
    return value
