"""Where the tools that write COCO's JSON put it, and the pictures that go with it.

A split's JSON is known by its name and place; which folder its pictures are in is told by looking for the
first of them.
"""

from __future__ import annotations

import filecmp
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from lgd.data.errors import DataError
from lgd.data.folder import open_regular
from lgd.data.limits import leads_outside, plain
from lgd.data.splits import WHOLE, Split, alike, usual_name
from lgd.data.walking import files_in, folders_in

_WHOLE_NAMES = {"_annotations.coco.json", "labels.json", "result.json"}
"""What Roboflow, FiftyOne and Label Studio call the JSON of a split, or of a set that is not divided."""

_OTHER_TASKS = ("captions_", "panoptic_", "stuff_")
"""Beginnings of the names of COCO's files that have no objects."""

_PREFIXES = ("instances_", "person_keypoints_", "image_info_")
"""What stands before a split's name; of two files of one split the first of these counts."""

_MAX_FILES = 100
"""JSONs of a folder that are looked into: more are no sets, but labels of single pictures."""

_HEAD = 2**16
"""Bytes at the beginning of a file that say whether it is COCO's."""

_CHUNK = 2**24
_SAMPLE = 20
"""Names of pictures that are looked for."""

_IMAGES = re.compile(rb'"images"\s*:\s*\[')
_OTHERS = re.compile(rb'"(annotations|categories)"\s*:\s*\[')
"""What COCO's JSON has; the images may come after all else, beyond the beginning of a large file."""

_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.){1,4000}")')


@dataclass(frozen=True)
class CocoSplit(Split):
    """A split in COCO's JSON.

    Attributes:
        json_path: the annotation file.
        root: the folder of the whole set.
    """

    json_path: Path
    root: Path


def find_coco(place: Path, wanted: str | None = None) -> list[CocoSplit]:
    """Find the splits below a folder, or the one of a JSON; all, whichever is wanted.

    Raises:
        DataError: a folder or file cannot be read.
    """
    if place.is_file():
        if place.suffix.lower() != ".json":
            return []
        root = place.parent.parent if place.parent.name == "annotations" else place.parent
        return [_split(_name_of(place), place, root, f"coco:{place}")]
    files = _distinct(_find_files(place))
    names = [name for name, _ in files]
    if len(files) == 1 and usual_name(names[0]) is None:
        return [_split(names[0], files[0][1], place, f"coco:{place}")]
    specs = [f"coco:{path}" if names.count(name) > 1 else f"coco:{place}:{name}" for name, path in files]
    return [_split(name, path, place, spec) for (name, path), spec in zip(files, specs, strict=True)]


def _split(name: str, json_path: Path, root: Path, spec: str) -> CocoSplit:
    shown = json_path.relative_to(root)
    tools = {
        "_annotations.coco.json": f"Roboflow ({shown} beside the pictures)",
        "labels.json": f"FiftyOne ({shown})",
        "result.json": f"Label Studio ({shown})",
    }
    return CocoSplit("coco", name, spec, tools.get(json_path.name, f"COCO ({shown})"), json_path, root)


def _distinct(files: Iterator[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """The files without those that are there a second time."""
    distinct: list[tuple[str, Path]] = []
    for name, path in files:
        if not any(name == other and _is_same(path, first) for other, first in distinct):
            distinct.append((name, path))
    return distinct


def _is_same(first: Path, second: Path) -> bool:
    return filecmp.cmp(first, second) and filecmp.cmp(first, second, shallow=False)


def _find_files(root: Path) -> Iterator[tuple[str, Path]]:
    """The JSONs of a set with the names of their splits."""
    folders = folders_in(root)[:_MAX_FILES]
    found = [*_of_annotations(root / "annotations"), *_of_folder(root, files_in(root, ".json"))]
    for folder in folders:
        found += [
            (folder, root / folder / name)
            for name in sorted(_WHOLE_NAMES)
            if _is_coco(root / folder / name, certain=name.startswith("_"))
        ]
    yield from found
    for folder in () if found else folders:
        inner = root / folder
        below = [*_of_annotations(inner / "annotations"), *_of_folder(inner, files_in(inner, ".json"))]
        if len(below) == 1:
            yield folder, below[0][1]


def _of_annotations(folder: Path) -> Iterator[tuple[str, Path]]:
    """The JSONs of a folder `annotations`: one a split, that of the objects."""
    files = [name for name in files_in(folder, ".json") if not name.startswith(_OTHER_TASKS)]
    prefixes = {prefix: [name for name in files if name.startswith(prefix)] for prefix in _PREFIXES}
    seen = set()
    for prefix, names in prefixes.items():
        for name in names:
            split = name.removeprefix(prefix).removesuffix(".json")
            if split and split not in seen and _is_coco(folder / name, certain=prefix == _PREFIXES[0]):
                seen.add(split)
                yield split, folder / name
    yield from _of_folder(folder, [name for name in files if not name.startswith(_PREFIXES)])


def _of_folder(folder: Path, files: Sequence[str]) -> Iterator[tuple[str, Path]]:
    if len(files) > _MAX_FILES:
        files = [name for name in files if name in _WHOLE_NAMES or usual_name(name)]
    for name in files[:_MAX_FILES]:
        if _is_coco(folder / name, certain=name.startswith("_annotations.coco")):
            yield _name_of(folder / name), folder / name


def _name_of(json_path: Path) -> str:
    """What the split of a JSON is called."""
    if json_path.name in _WHOLE_NAMES:
        usual = usual_name(json_path.parent.name)
        return usual if usual == json_path.parent.name else WHOLE
    prefix = next((prefix for prefix in _PREFIXES if json_path.name.startswith(prefix)), "")
    stem = json_path.stem.removeprefix(prefix)
    return (stem if prefix else usual_name(stem)) or stem or WHOLE


def _is_coco(path: Path, *, certain: bool) -> bool:
    """Whether a file is COCO's JSON by its beginning; by its name alone where that is `certain`."""
    try:
        if certain:
            return path.is_file()
        with open_regular(path) as file:
            head = file.read(_HEAD)
    except (OSError, ValueError):
        return False
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    has_keys = _IMAGES.search(start) or (len(head) == _HEAD and _OTHERS.search(start))
    return start.startswith(b"{") and bool(has_keys) and b'"segments_info"' not in start


def find_image_dir(split: CocoSplit) -> Path:
    """Find the folder that a split's pictures are in, or are named from.

    Raises:
        DataError: several folders have other pictures of the same names, or the JSON cannot be read.
    """
    names = _first_names(split.json_path)
    likely, others = _candidates(split)
    folders = [*likely, *others]
    scores = [_score(folder, names) for folder in folders]
    best = max(scores, default=(0, 0))
    if best == (0, 0):
        _refuse_paths(split, names)
        return likely[0] if likely else split.root / split.name
    first, *others = [folder for folder, score in zip(folders, scores, strict=True) if score == best]
    # Splits often number their pictures alike: a folder called after another one has that one's.
    others = [folder for folder in others if usual_name(folder.name) in (None, *alike(split.name))]
    other = next((folder for folder in others if not _has_same(first, folder, names)), None)
    if other is not None:
        raise DataError(
            f"{split.spec}: the pictures of {split.json_path} may be those in {first} or in {other}; write "
            f"coco:{split.json_path}:{first} or coco:{split.json_path}:{other}"
        )
    return first


def _candidates(split: CocoSplit) -> tuple[list[Path], list[Path]]:
    """The folders that are there and may have the pictures, the likeliest first; and those that hardly do."""
    root, beside = split.root, split.json_path.parent
    above = beside.parent if beside.name == "annotations" else beside
    bases = dict.fromkeys((above, root / split.name, root))
    names = (*alike(split.name), _name_of(split.json_path), split.json_path.stem)
    near = [] if beside.name == "annotations" else [beside]
    near += [folder / name for base in bases for name in names for folder in (base, base / "images")]
    near += [base / name for base in bases for name in ("images", "data", "JPEGImages")]
    likely = [folder for folder in dict.fromkeys(near) if folder.is_dir()]
    rest = [*bases, *(root / name for name in folders_in(root)[:_MAX_FILES])]
    return likely, [folder for folder in dict.fromkeys(rest) if folder.is_dir() and folder not in likely]


def _refuse_paths(split: CocoSplit, names: Sequence[str]) -> None:
    """Say what to write where the pictures are elsewhere on this machine."""
    for name in names:
        if Path(name).is_absolute() and _is_there(Path(name)):
            raise DataError(
                f"{split.spec}: the pictures of {split.json_path} are not below {split.root}; write "
                f"coco:{split.json_path}:{plain(str(Path(name).parent))}"
            )


def _first_names(json_path: Path) -> list[str]:
    """The first names of pictures in a JSON, without parsing all of it."""
    try:
        with open_regular(json_path) as file:
            before = b""
            while chunk := file.read(_CHUNK if before else _HEAD):
                matches = _FILE_NAME.findall(before + chunk)
                if matches:
                    return [_decode(match) for match in matches[:_SAMPLE]]
                before = chunk[-_HEAD:]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"cannot read {json_path}: {reason}") from error
    return []


def _decode(match: bytes) -> str:
    try:
        return str(json.loads(match))
    except ValueError:
        return ""


def _score(folder: Path, names: Sequence[str]) -> tuple[int, int]:
    """How many pictures are in a folder as they are named, and how many by the last part of their name."""
    found = [
        next((k for k, path in enumerate(_paths(folder, name)) if _is_there(path)), None) for name in names
    ]
    return sum(k == 0 for k in found), sum(k is not None for k in found)


def _paths(folder: Path, name: str) -> list[Path]:
    """Where a picture of this name may be in a folder: as it is named, or by the last part of its name."""
    slashed = name.replace("\\", "/")
    bare = slashed.rpartition("/")[2]
    as_named = folder / (slashed if not leads_outside(slashed) else bare)
    return [as_named, folder / bare, folder / unquote(bare).rpartition("/")[2]]


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # of what can be no name
        return False


def _has_same(first: Path, second: Path, names: Sequence[str]) -> bool:
    """Whether the pictures that both folders have are equal."""
    pairs = [
        [next(filter(_is_there, _paths(folder, name)), None) for folder in (first, second)] for name in names
    ]
    return all(_is_same(one, other) for one, other in pairs if one is not None and other is not None)


def describe(split: CocoSplit, image_dir: Path) -> str:
    """Say how a split lies, its pictures included."""
    if "beside the pictures" in split.layout:
        return split.layout
    if image_dir == split.json_path.parent:
        has_folders = any("/" in name or "\\" in name for name in _first_names(split.json_path))
        where = ", pictures named from its folder" if has_folders else " beside the pictures"
        return f"{split.layout[:-1]}{where})"
    is_below = image_dir.is_relative_to(split.root)
    folder = image_dir.relative_to(split.root) if is_below else image_dir
    tool = "CVAT or Datumaro" if folder.parts[:1] == ("images",) and "instances_" in split.layout else ""
    layout = split.layout.replace("COCO (", f"{tool} (") if tool else split.layout
    return f"{layout[:-1]}, pictures in {folder}/)"
