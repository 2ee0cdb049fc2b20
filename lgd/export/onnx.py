"""ONNX files, by torch's exporter for programs of torch.export.

Legend: B images, T candidates of each, K groups.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from lgd.export.detector import INPUTS, OUTPUTS


def write_onnx(program: torch.export.ExportedProgram, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a program as an ONNX file.

    Args:
        program: from `lgd.export.detector.export_program`.
        path: the file.
        metadata: what is put beside the graph; values that are no strings are written as JSON.

    Raises:
        ImportError: onnx or onnxscript is not there.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("ONNX files need the packages of an extra: pip install 'lgd[onnx]'") from error
    num_outputs = len(program.graph_signature.user_outputs)
    written = torch.onnx.export(
        program,
        dynamo=True,
        input_names=list(INPUTS),
        output_names=list(OUTPUTS[:num_outputs]),
        custom_translation_table={torch.ops.lgd.find_survivors.default: _make_suppression()},
        verbose=False,
    )
    assert written is not None
    for name, value in metadata.items():
        written.model.metadata_props[name] = value if isinstance(value, str) else json.dumps(value)
    written.save(path)


def _make_suppression() -> Callable[..., Any]:
    """`lgd.ops.nms.find_survivors` by ONNX's own suppression, which works by image and class."""
    import onnxscript

    op: Any = onnxscript.opset20

    def find_survivors(boxes: Any, scores: Any, groups: Any, num_groups: int, iou_threshold: float) -> Any:
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
            op.Constant(value_floats=[-1.0]),
        )
        places = op.Gather(kept, op.Constant(value_ints=[0, 2]), axis=1)
        ones = op.Expand(
            op.Constant(value_ints=[1]),
            op.Slice(op.Shape(places), op.Constant(value_ints=[0]), op.Constant(value_ints=[1])),
        )
        found = op.ScatterND(op.Expand(op.Constant(value_ints=[0]), shape), places, ones)
        return op.Cast(found, to=9)

    return find_survivors
