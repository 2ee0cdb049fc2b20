"""Several data sets as one."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

import numpy as np

from lgd.data.cache import Columns, derived_columns
from lgd.data.classes import ClassOptions, agree
from lgd.data.columns import Array
from lgd.data.index import AnnotationIndex, Integers

logger = logging.getLogger(__name__)


def concatenate(indices: Sequence[AnnotationIndex]) -> AnnotationIndex:
    """Join data sets, their images one after the other, their classes by name in the order of the first.

    The columns are cached beside the first set's JSON, which is also the `json_path` of the result, and so
    are its category ids. Where ids of images or annotations occur twice, all of them are numbered anew.

    Raises:
        DataError: one does not list a class that another has.
    """
    indices, _ = agree(indices, (), ClassOptions())
    first = indices[0]
    content_hash = hashlib.sha256("\n".join(index.content_hash for index in indices).encode()).hexdigest()
    path = derived_columns(first.json_path, "joined", content_hash, lambda: _join(indices, content_hash))
    sources = [source for index in indices for source in index.sources]
    return AnnotationIndex(
        path,
        name=" + ".join(index.name for index in indices),
        json_path=first.json_path,
        image_dir=first.image_dir,
        layout=sources[0].layout,
        more=sources[1:],
    )


def _join(indices: Sequence[AnnotationIndex], content_hash: str) -> Columns:
    parts = [index.columns for index in indices]
    columns = {name: _join_column(name, parts) for name in parts[0]}
    for name in ("image_ids", "annotation_ids"):
        columns[name] = _distinct([part[name] for part in parts], name)
    metadata = {
        "kind": indices[0].kind,
        "content_hash": content_hash,
        "class_names": indices[0].class_names,
        "category_ids": indices[0].category_ids,
        "has_annotations": any(index.has_annotations for index in indices),
        "remarks": [remarks for index in indices for remarks in index.metadata["remarks"]],
    }
    return columns, metadata


def _join_column(name: str, parts: Sequence[dict[str, Array]]) -> Array:
    if not name.endswith("_offsets"):
        return np.concatenate([part[name] for part in parts])
    shift, joined = 0, [np.zeros(1, dtype=np.int64)]
    for part in parts:
        joined.append(part[name][1:] + shift)
        shift += int(part[name][-1])
    return np.concatenate(joined)


def _distinct(parts: Sequence[Integers], what: str) -> Integers:
    """The parts' ids one after the other, numbered anew from 1 where two are equal."""
    joined = np.concatenate(parts)
    if len(np.unique(joined)) == len(joined):
        return joined
    logger.info("%s occur in more than one of the joined data sets: numbered anew", what)
    return np.arange(1, len(joined) + 1)
