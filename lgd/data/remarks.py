"""What a reader of annotations dropped, repaired or doubts: counted, and said in a line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Remark:
    """One kind of thing that is not as it should be in one annotation file.

    Attributes:
        kind: a short name for programs, words joined by "_": "boxes_without_size".
        count: how many annotations, images or classes are of this kind.
        text: the line for people; it has the count and names the first of them.
    """

    kind: str
    count: int
    text: str


def to_metadata(remarks: Iterable[Remark]) -> list[dict[str, Any]]:
    """Write remarks as what JSON can hold."""
    return [asdict(remark) for remark in remarks]


def from_metadata(content: Sequence[Mapping[str, Any]]) -> tuple[Remark, ...]:
    """Read what `to_metadata` wrote; raises TypeError or KeyError on anything else."""
    return tuple(Remark(each["kind"], each["count"], each["text"]) for each in content)


def are_remarks(content: Any) -> bool:
    """Whether this is what `to_metadata` writes."""
    return isinstance(content, list) and all(
        isinstance(each, dict)
        and each.keys() == {"kind", "count", "text"}
        and isinstance(each["kind"], str)
        and type(each["count"]) is int
        and isinstance(each["text"], str)
        for each in content
    )
