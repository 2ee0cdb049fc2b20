"""ONNX files, by torch's exporter for programs of torch.export.

Legend: B images, T candidates of each, K groups.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import lgd.ops.nms  # noqa: F401 (its operator is written as another)
from lgd.export.detector import INPUTS, OUTPUTS
from lgd.export.winograd import make_translation
from lgd.files import replacing

_LOWEST = -3.0e38
"""Below every score and logit that counts, above -inf."""


def write_onnx(program: torch.export.ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a program as an ONNX file.

    Args:
        program: from `lgd.export.detector.export_program`.
        path: the file.
        metadata: what is put beside the graph.

    Raises:
        ImportError: onnx or onnxscript is not there.
        OSError: the disk is full or the folder read-only.
    """
    require_onnx()
    num_outputs = len(program.graph_signature.user_outputs)
    with _quietly():
        written = torch.onnx.export(
            program,
            dynamo=True,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS[:num_outputs]),
            custom_translation_table={
                torch.ops.lgd.find_survivors.default: _make_suppression(),
                **make_translation(),
            },
            verbose=False,
        )
    assert written is not None
    model = written.model_proto
    for name, value in metadata.items():
        model.metadata_props.add(key=name, value=value)
    with replacing(path) as file:
        file.write(model.SerializeToString())


def require_onnx() -> None:
    """See that the packages are there that write ONNX.

    Raises:
        ImportError: onnx or onnxscript is not.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("ONNX files need the packages of an extra: pip install 'lgd[onnx]'") from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the exporter's advice to its authors off the terminal."""
    names = ("torch.onnx", "onnxscript", "onnx_ir")
    before = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)


def _make_suppression() -> Callable[..., Any]:
    """`lgd.ops.nms.find_survivors` by ONNX's own suppression, which works by image and class."""
    import onnxscript

    op: Any = onnxscript.opset20

    def find_survivors(
        boxes: Any, scores: Any, groups: Any, num_groups: int, iou_threshold: float, limit: int
    ) -> Any:
        shape = op.Shape(scores)
        depth = op.Constant(value_ints=[num_groups])
        lowest = op.CastLike(op.Constant(value_float=-float("inf")), scores)
        mine = op.Cast(op.OneHot(groups, depth, op.Constant(value_ints=[0, 1]), axis=1), to=9)
        apart = op.Where(mine, op.Unsqueeze(scores, op.Constant(value_ints=[1])), lowest)
        kept = op.NonMaxSuppression(
            boxes,
            apart,
            op.Slice(shape, op.Constant(value_ints=[1]), op.Constant(value_ints=[2])),
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[_LOWEST]),
        )
        places = op.Gather(kept, op.Constant(value_ints=[0, 2]), axis=1)
        ones = op.Expand(
            op.Constant(value_ints=[1]),
            op.Slice(op.Shape(places), op.Constant(value_ints=[0]), op.Constant(value_ints=[1])),
        )
        found = op.ScatterND(op.Expand(op.Constant(value_ints=[0]), shape), places, ones)
        return op.Cast(found, to=9)

    return find_survivors
