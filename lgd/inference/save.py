"""Results as files in a folder: drawings, COCO's JSON, a table, YOLO's labels, cut-out objects.

Each way of saving takes one result after the other, and keeps a few at most.
"""

from __future__ import annotations

import csv
import json
import re
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any, Protocol

import numpy as np
from PIL import Image

from lgd.data.errors import DataError
from lgd.files import replacing
from lgd.inference.model import TrainedModel
from lgd.inference.pictures import PIXELS_AHEAD
from lgd.inference.result import Result
from lgd.words import counted

_KEPT_FORMATS = (".jpg", ".jpeg", ".png", ".webp")
_MOST_WAITING = 8


class Saver(Protocol):
    """One way of saving."""

    def add(self, result: Result) -> None:
        """Save what belongs to one picture."""
        ...

    def close(self) -> None:
        """Finish what belongs to all."""
        ...

    def abandon(self) -> None:
        """Leave what belongs to all, because something went wrong."""
        ...


class _NothingToAbandon:
    """What is written stays, whatever happens."""

    def abandon(self) -> None:
        """Leave it as it is."""


class SaveImages:
    """FOLDER/images/NAME: the drawings, of a video one of the same name that plays.

    Pictures are drawn and written in a thread, beside the detector; only a few wait for it.
    """

    def __init__(self, folder: Path) -> None:
        """Write below `folder`."""
        self._folder = folder / "images"
        self._video: _Video | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="drawings")
        self._waiting: deque[tuple[int, Future[None]]] = deque()

    def add(self, result: Result) -> None:
        """Draw; a format that cannot take colours well becomes PNG."""
        if result.frame is not None:
            if self._video is None or self._video.name != result.name:
                self._finish_video()
                self._video = _Video(self._folder, result)
            self._video.add(result.draw())
            return
        name = result.name
        if PurePosixPath(name).suffix.lower() not in _KEPT_FORMATS:
            name += ".png"
        self._waiting.append(
            (result.size[0] * result.size[1], self._writer.submit(_draw, result, self._folder / name))
        )
        while len(self._waiting) > _MOST_WAITING or sum(n for n, _ in self._waiting) > PIXELS_AHEAD:
            self._wait_for_one()

    def close(self) -> None:
        """Finish what is being written."""
        while self._waiting:
            self._wait_for_one()
        self._writer.shutdown()
        self._finish_video()

    def abandon(self) -> None:
        """Leave what waits."""
        self._writer.shutdown(cancel_futures=True)

    def _wait_for_one(self) -> None:
        _, written = self._waiting.popleft()
        written.result()

    def _finish_video(self) -> None:
        if self._video is not None:
            self._video.close()
        self._video = None


def _draw(result: Result, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    result.draw().save(path, quality=92)


class _Video:
    """A video that is written frame by frame."""

    def __init__(self, folder: Path, first: Result) -> None:
        import av  # is there: the frames came from it

        self.name = first.name
        path = folder / PurePosixPath(first.name).with_suffix(".mp4")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = av.open(str(path), "w")
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        rate = Fraction(first.rate or 25).limit_denominator(1001)
        stream = self._file.add_stream(codec, rate=rate)
        assert isinstance(stream, av.VideoStream), "as the codec is"
        self._stream = stream
        height, width = first.size
        self._size = (max(2, width - width % 2), max(2, height - height % 2))  # the codec wants even sides
        self._stream.width, self._stream.height = self._size
        self._stream.pix_fmt = "yuv420p"

    def add(self, picture: Image.Image) -> None:
        import av

        pixels = np.asarray(picture.crop((0, 0, *self._size)))
        self._file.mux(self._stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))

    def close(self) -> None:
        self._file.mux(self._stream.encode())
        self._file.close()


class SaveCoco:
    """FOLDER/predictions.json: a whole COCO file, whose annotations have scores, as COCO's results do."""

    def __init__(self, folder: Path, model: TrainedModel, image_ids: Mapping[str, int] | None = None) -> None:
        """Write to `folder`.

        Args:
            folder: where.
            model: with the classes.
            image_ids: of the pictures by name; None numbers them from 1.
        """
        categories = [
            {"id": number, "name": name}
            for number, name in zip(model.category_ids, model.class_names, strict=True)
        ]
        self._image_ids = image_ids
        self._count = self._objects = 0
        self._images: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (until close)
        self._open = ExitStack()
        self._file = self._open.enter_context(replacing(folder / "predictions.json"))
        self._write(f'{{"categories": {json.dumps(categories)},\n"annotations": [')

    def add(self, result: Result) -> None:
        """Write the objects; the picture waits in a file of its own."""
        self._count += 1
        number = self._count if self._image_ids is None else self._image_ids[result.label]
        height, width = result.size
        image = {"id": number, "file_name": result.label, "width": width, "height": height}
        self._images.write((",\n" if self._count > 1 else "\n") + json.dumps(image))
        for each in result.to_coco(number):
            self._objects += 1
            area = each["bbox"][2] * each["bbox"][3]
            entry = {"id": self._objects, **each, "area": area, "iscrowd": 0}
            self._write((",\n" if self._objects > 1 else "\n") + json.dumps(entry))

    def close(self) -> None:
        """Put the pictures behind the objects; the file takes its place."""
        self._write('\n],\n"images": [')
        self._images.seek(0)
        while text := self._images.read(2**20):
            self._write(text)
        self._images.close()
        self._write("\n]}\n")
        self._open.close()

    def abandon(self) -> None:
        """Leave the file that was there before."""
        with suppress(InterruptedError):
            self._open.__exit__(InterruptedError, InterruptedError(), None)

    def _write(self, text: str) -> None:
        self._file.write(text.encode())


class SaveCsv(_NothingToAbandon):
    """FOLDER/predictions.csv: a row for each object."""

    def __init__(self, folder: Path) -> None:
        """Write to `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "predictions.csv").open("w", newline="", encoding="utf-8")
        self._table = csv.writer(self._file)
        self._table.writerow(["file", "frame", "class", "score", "x1", "y1", "x2", "y2"])

    def add(self, result: Result) -> None:
        """Write the rows of one picture."""
        frame = "" if result.frame is None else result.frame
        for name, score, box in zip(result.names, result.scores.tolist(), result.boxes.tolist(), strict=True):
            numbers = [f"{side:.2f}" for side in box]
            self._table.writerow([result.name, frame, name, f"{score:.4f}", *numbers])

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class SaveYolo(_NothingToAbandon):
    """FOLDER/labels/NAME.txt: class, centre, width and height in shares of the picture, score."""

    def __init__(self, folder: Path, model: TrainedModel) -> None:
        """Write below `folder`."""
        self._folder = folder / "labels"
        self._taken: dict[str, str] = {}
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "classes.txt").write_text("".join(f"{name}\n" for name in model.class_names), "utf-8")

    def add(self, result: Result) -> None:
        """Write one picture's file, empty where nothing was found."""
        height, width = result.size
        lines = []
        rows = zip(result.labels.tolist(), result.boxes.tolist(), result.scores.tolist(), strict=True)
        for label, (x1, y1, x2, y2), score in rows:
            numbers = (
                (x1 + x2) / 2 / width,
                (y1 + y2) / 2 / height,
                (x2 - x1) / width,
                (y2 - y1) / height,
                score,
            )
            lines.append(" ".join([str(label), *(f"{number:.6f}" for number in numbers)]) + "\n")
        path = self._folder / self._name(result)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines))

    def close(self) -> None:
        """Nothing is left to do."""

    def _name(self, result: Result) -> str:
        """a.txt for a.jpg; a.png.txt for an a.png beside it."""
        stem = str(PurePosixPath(result.name).with_suffix(""))
        if self._taken.setdefault(stem, result.name) != result.name or stem == "classes":
            stem = result.name
        return f"{stem}.txt" if result.frame is None else f"{stem}_{result.frame:06d}.txt"


class SaveCrops(_NothingToAbandon):
    """FOLDER/crops/CLASS/NAME_NUMBER.jpg: each object by itself."""

    def __init__(self, folder: Path) -> None:
        """Write below `folder`."""
        self._folder = folder / "crops"

    def add(self, result: Result) -> None:
        """Cut out the objects of one picture."""
        frame = "" if result.frame is None else f"_{result.frame:06d}"
        for number, (crop, name) in enumerate(zip(result.crop(), result.names, strict=True)):
            kind = re.sub(r"[^\w.-]+", "_", name).strip("._") or "class"
            path = self._folder / kind / f"{result.name}{frame}_{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            crop.save(path, quality=92)

    def close(self) -> None:
        """Nothing is left to do."""


_KINDS: Mapping[str, Callable[[Path, TrainedModel, Mapping[str, int] | None], Saver]] = {
    "images": lambda folder, model, image_ids: SaveImages(folder),
    "coco": SaveCoco,
    "csv": lambda folder, model, image_ids: SaveCsv(folder),
    "yolo": lambda folder, model, image_ids: SaveYolo(folder, model),
    "crops": lambda folder, model, image_ids: SaveCrops(folder),
}
KINDS = tuple(_KINDS)
"""Ways of saving by their names."""

SHOWS_PIXELS = frozenset(("images", "crops"))
"""Those of them that need the picture."""


class Savers:
    """Several ways of saving at once; a context, at whose end in peace the files are finished."""

    def __init__(
        self,
        kinds: Sequence[str],
        folder: Path,
        model: TrainedModel,
        image_ids: Mapping[str, int] | None = None,
    ) -> None:
        """Open what `kinds`, some of `KINDS`, need in `folder`."""
        self._savers = [_KINDS[kind](folder, model, image_ids) for kind in dict.fromkeys(kinds)]

    def add(self, result: Result) -> None:
        """Save one result in every way."""
        for saver in self._savers:
            saver.add(result)

    def __enter__(self) -> Savers:
        """Nothing is left to open."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the files."""
        for saver in self._savers:
            saver.close() if error is None else saver.abandon()


def read_image_ids(path: Path, names: Sequence[str]) -> dict[str, int]:
    """The ids that a COCO annotation file has for pictures.

    Args:
        path: of the file.
        names: of the pictures, as `file_name` has them.

    Raises:
        DataError: the file cannot be read, or does not know one of the pictures.
    """
    try:
        content: Any = json.loads(path.read_bytes())
        known = {str(image["file_name"]): int(image["id"]) for image in content["images"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no COCO file with images"
        raise DataError(f"{path}: cannot be read: {reason}") from None
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataError(
            f"{path}: has no image {unknown[0]} ({counted(len(unknown), 'picture is', 'pictures are')} "
            "not in it)"
        )
    return {name: known[name] for name in names}
