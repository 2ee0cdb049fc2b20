"""YOLO sets: the YAML that names classes and splits, the pictures it leads to, and their label files.

What tools write there leads to many places: below `path`, which may be a folder of another machine; below the
YAML's folder, with `../` before it that is not meant; to folders, or to lists of pictures. Tools that write
classes alone leave the pictures in folders called after the splits.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from lgd.data.errors import DataError
from lgd.data.limits import is_name, name_some, plain, read_text, shown
from lgd.data.presence import names_in
from lgd.data.splits import WHOLE, Split, alike
from lgd.data.walking import files_below, files_in, folders_in, is_picture
from lgd.words import say_type

_YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_CLASS_LISTS = ("classes.txt", "obj.names")
"""What LabelImg, Label Studio and Darknet write in place of a YAML."""

_SPLITS = (*alike("train"), *alike("val"), *alike("test"))
_MAX_YAML_BYTES = 2**20
_MAX_CLASSES = 2**16


@dataclass(frozen=True)
class YoloSplit(Split):
    """A split of a YOLO set.

    Attributes:
        path: the YAML, or the list of classes.
        class_names: by the number that label files have.
        num_keypoints: numbers of a line behind the box: of poses.
        places: the folders and lists of its pictures.
        bases: the folders that names in lists may be relative to, and must stay in.
        absent: what the YAML names for this split and is not there, if anything.
    """

    path: Path
    class_names: Mapping[int, str]
    num_keypoints: int
    places: tuple[Path, ...]
    bases: tuple[Path, ...]
    absent: str | None


def find_yolo(place: Path, wanted: str | None = None) -> list[YoloSplit]:
    """Find the splits of a YAML, or of a folder that has one.

    Args:
        place: a folder, a YAML, or a list of classes.
        wanted: the split that is looked for, which is found even where its pictures are absent.

    Raises:
        DataError: the YAML cannot be read, or is not what the format says.
    """
    if place.is_file() and place.suffix.lower() not in (".yaml", ".yml") and place.name not in _CLASS_LISTS:
        return []
    path = place if place.is_file() else _find_file(place)
    if path is None:
        return []
    path = path.absolute()
    document = _read(path)
    class_names, number = _class_names(document, path), _num_keypoints(document, path)
    bases = tuple(_bases(path, document.get("path")))
    entries = {name: _entries(document[name], name, path) for name in _SPLITS if document.get(name)}
    found = []
    for name, written in (entries or _usual_entries(path.parent)).items():
        places = [_resolve(entry, bases) for entry in written]
        absent = next((entry for entry, where in zip(written, places, strict=True) if where is None), None)
        if absent is not None and wanted not in alike(name):
            continue
        found.append(
            YoloSplit(
                kind="yolo",
                name=name,
                spec=f"yolo:{place}" if name == WHOLE else f"yolo:{place}:{name}",
                layout=f"YOLO ({path.name}, pictures of {name_some(written, plain, at_most=2)})",
                path=path,
                class_names=class_names,
                num_keypoints=number,
                places=tuple(where for where in places if where is not None),
                bases=bases,
                absent=absent,
            )
        )
    return found


def _find_file(folder: Path) -> Path | None:
    """The YAML of a folder, or its list of classes."""
    names = [*files_in(folder, ".yaml"), *files_in(folder, ".yml")]
    named = sorted((name for name in names), key=lambda name: (name not in _YAML_NAMES, name))
    path = next((folder / name for name in named if _has_names(folder / name)), None)
    if path is not None:
        return path
    lists = [folder / name for name in _CLASS_LISTS if (folder / name).is_file()]
    return next((path for path in lists if (folder / "obj.data").is_file() or _usual_entries(folder)), None)


def _has_names(path: Path) -> bool:
    try:
        return re.search(r"""(^|[{,\s])["']?names["']?\s*:""", _text(path)) is not None
    except DataError:
        if path.name in _YAML_NAMES:
            raise
        return False


def _text(path: Path) -> str:
    return read_text(path, _MAX_YAML_BYTES).removeprefix("\ufeff")


def _read(path: Path) -> dict[str, Any]:
    if path.name in _CLASS_LISTS:
        names = [line.strip() for line in _text(path).splitlines() if line.strip()]
        return {"names": names} | _darknet_lists(path.parent / "obj.data")
    try:
        document = yaml.safe_load(_text(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or plain(str(error).partition("\n")[0])
        raise DataError(f"{path} is not whole YAML: {problem}{where}") from error
    if not isinstance(document, dict):
        raise DataError(f'{path} holds {say_type(document)}, not keys such as "names" and "train"')
    return document


def _darknet_lists(path: Path) -> dict[str, str]:
    """What Darknet's obj.data says of the splits: `train = data/train.txt`, where data is this folder."""
    if not path.is_file():
        return {}
    pairs = (line.partition("=") for line in _text(path).splitlines())
    return {
        key.strip(): value.strip().removeprefix("data/") for key, _, value in pairs if key.strip() in _SPLITS
    }


def _class_names(document: Mapping[Any, Any], path: Path) -> dict[int, str]:
    names = document.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not 0 < len(names) <= _MAX_CLASSES:
        has = "has no names" if names is None else f"has {shown(document['names'])} for names"
        raise DataError(f"{path} {has}; write names: [first, second] or names: {{0: first, 1: second}}")
    numbers = {_class_number(key, path): value for key, value in names.items()}
    if len(numbers) < len(names):
        raise DataError(f"{path}: names has the number of a class twice")
    for number, value in numbers.items():
        text = str(value) if type(value) in (int, float) else value
        if not is_name(text):
            raise DataError(f"{path}: the name of class {number} is {shown(value)}, not a name")
        numbers[number] = text
    count = document.get("nc")
    if count is not None and (type(count) is not int or count != len(numbers)):
        raise DataError(f"{path}: nc is {shown(count)}, but names has {len(numbers)}")
    if len(set(numbers.values())) < len(numbers):
        raise DataError(f"{path}: names has a class twice; give each class a name of its own")
    return dict(sorted(numbers.items()))


def _class_number(key: Any, path: Path) -> int:
    number = int(key) if isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 10 else key
    if type(number) is not int or not 0 <= number < 2**31:
        raise DataError(f"{path}: names has the key {shown(key)}, not the number of a class")
    return number


def _num_keypoints(document: Mapping[Any, Any], path: Path) -> int:
    shape = document.get("kpt_shape")
    if shape is None:
        return 0
    if not isinstance(shape, list) or [type(each) for each in shape] != [int, int] or min(shape) < 1:
        raise DataError(f"{path}: kpt_shape is {shown(shape)}, not two numbers")
    return int(shape[0] * shape[1])


def _entries(value: Any, name: str, path: Path) -> list[str]:
    entries = value if isinstance(value, list) else [value]
    wrong = next((entry for entry in entries if not isinstance(entry, str) or not entry.strip()), None)
    if not entries or wrong is not None:
        raise DataError(f"{path}: {name} is {shown(value)}, not a folder, a list, or several of these")
    return [entry.strip().replace("\\", "/") for entry in entries]


def _usual_entries(root: Path) -> dict[str, list[str]]:
    """The folders of the pictures of each split where nothing names them, with label files to them."""
    folders = folders_in(root)
    candidates = {
        **{name: (f"{name}/images", f"{name}/labels") for name in folders},
        **{name: (f"images/{name}", f"labels/{name}") for name in folders_in(root / "images")},
    }
    of_splits = {
        name: [pictures]
        for name, (pictures, labels) in candidates.items()
        if (root / pictures).is_dir() and _has_texts(root / labels)
    }
    if of_splits:
        return of_splits
    whole = (("images", "labels"), ("obj_train_data", "obj_train_data"))
    pictures = next(
        (pictures for pictures, labels in whole if pictures in folders and _has_texts(root / labels)), None
    )
    return {WHOLE: [pictures]} if pictures else {}


def _has_texts(folder: Path) -> bool:
    return any(True for _ in files_below(folder, lambda name: name.endswith(".txt")))


def _bases(yaml_path: Path, value: Any) -> Iterator[Path]:
    """The folders that entries may be relative to: `path` where it is there, and that of the YAML."""
    here = yaml_path.parent
    if value is not None:
        if not isinstance(value, str):
            raise DataError(f"{yaml_path}: path is {shown(value)}, not a folder")
        written = value.strip().replace("\\", "/")
        candidates = (here / written, *(here / tail for tail in _tails(written)))  # the first may be absolute
        yield from itertools.islice(
            (Path(os.path.normpath(each)) for each in candidates if _is_folder(each)), 1
        )
    yield here


def _tails(written: str) -> Iterator[str]:
    """A path without its first parts, longest first; of a relative one two parts stay at least."""
    parts = [part for part in PurePosixPath(written).parts if part not in ("/", "..", ".")]
    is_absolute = written.startswith("/") or ":" in written
    yield from ("/".join(parts[k:]) for k in range(len(parts) if is_absolute else max(len(parts) - 1, 1)))


def _resolve(entry: str, bases: tuple[Path, ...]) -> Path | None:
    """The folder or list that an entry means, if it is there."""
    own = entry
    while own.startswith(("../", "./")):
        own = own.partition("/")[2]
    candidates = [base / own for base in bases] if not entry.startswith("/") else [Path(entry)]
    candidates += [base / entry for base in bases]
    candidates += [base / tail for tail in _tails(entry) for base in bases]
    return next((Path(os.path.normpath(each)) for each in candidates if _exists(each)), None)


def _exists(path: Path) -> bool:
    return _ask(path.exists)


def _is_folder(path: Path) -> bool:
    return _ask(path.is_dir)


def _ask(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except (OSError, ValueError):  # of what can be no name
        return False


def find_pictures(split: YoloSplit) -> list[str]:
    """Return the paths of the pictures of a split: of folders by name, of lists in their order.

    Raises:
        DataError: there are none, one occurs twice, or a folder or a picture of a list is absent.
    """
    if split.absent is not None:
        raise DataError(
            f"{split.path}: {split.name} leads to {plain(split.absent)}, which is not there; looked for "
            f"below {name_some(split.bases, at_most=3)}"
        )
    pictures: list[str] = []
    for place in split.places:
        if place.is_dir():
            pictures += files_below(place, is_picture)
        elif place.suffix.lower() in (".txt", ".lst"):
            pictures += _of_list(place, (place.parent, *split.bases))
        else:
            raise DataError(f"{split.path}: {place} is neither a folder nor a list of pictures (.txt)")
    if not pictures:
        raise DataError(f"{split.path}: there are no pictures in {name_some(split.places)}")
    if len(set(pictures)) < len(pictures):
        twice, _ = Counter(pictures).most_common(1)[0]
        raise DataError(f"{split.path}: {plain(twice)} is in {split.name} more than once")
    return pictures


def _of_list(path: Path, bases: tuple[Path, ...]) -> list[str]:
    lines = [
        (number, line.strip().replace("\\", "/"))
        for number, line in enumerate(read_text(path).splitlines(), start=1)
        if line.strip()
    ]
    known: dict[str, tuple[str, set[str]]] = {}
    pictures = []
    for number, line in lines:
        folder, _, name = line.rpartition("/")
        if folder not in known or name not in known[folder][1]:
            picture = next((each for each in _places_of(line, bases) if _exists(each)), None)
            if picture is None:
                raise DataError(
                    f"{path}, line {number}: {plain(line)} is not there; looked for below "
                    f"{name_some(list(dict.fromkeys(bases)), at_most=3)}"
                )
            known[folder] = str(picture.parent), names_in(picture.parent)
        pictures.append(f"{known[folder][0]}/{name}")
    return pictures


def _places_of(line: str, bases: tuple[Path, ...]) -> Iterator[Path]:
    """Where a listed picture may be, never outside the bases."""
    for written in (line, *_tails(line)):
        for base in bases:
            path = Path(os.path.normpath(base / written))
            if any(path.is_relative_to(os.path.normpath(each)) for each in bases):
                yield path


def find_labels(pictures: list[str]) -> list[str | None]:
    """Return the label file of each picture: in `labels` where it is in `images`, else beside; or none."""
    listed: dict[str, list[tuple[str, set[str]]]] = {}
    labels = []
    for picture in pictures:
        folder, _, name = picture.rpartition("/")
        if folder not in listed:
            listed[folder] = [(place, names_in(Path(place))) for place in _label_folders(folder)]
        own = name.rpartition(".")[0] + ".txt"
        labels.append(next((f"{place}/{own}" for place, names in listed[folder] if own in names), None))
    return labels


def _label_folders(folder: str) -> list[str]:
    parts = folder.split("/")
    places = [k for k, part in enumerate(parts) if part.lower() == "images"]
    if not places:
        return [folder]
    parts[places[-1]] = "Labels" if parts[places[-1]] == "Images" else "labels"
    return ["/".join(parts), folder]
