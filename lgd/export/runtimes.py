"""Exported files in the runtimes that run them.

Legend: B images on a canvas H x W, D slots of each for detections, M the side of a mask.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lgd.config.values import ConfigError
from lgd.data.errors import DataError
from lgd.export.about import About
from lgd.export.detector import INPUTS, METADATA_FILE
from lgd.files import read_file
from lgd.inference.model import Backend
from lgd.structures import Batch, Detections, PaddedDetections
from lgd.weights.report import WeightsError

Function = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""A file as a function of `INPUTS`, which gives `OUTPUTS`; on the CPU."""

_SHOWN = 300
"""Characters of a runtime's complaint."""


def open_with_onnxruntime(path: Path, device: torch.device) -> tuple[Function, Mapping[str, str]]:
    """Open an ONNX file; returns it and what it says of itself.

    Raises:
        ImportError: onnxruntime is not there.
        ConfigError: it cannot use the device.
        WeightsError: it cannot read the file.
        OSError: nobody can.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("ONNX files need onnxruntime: pip install 'lgd[onnx]'") from error
    provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise ConfigError(f"this onnxruntime has no {provider}; pip install onnxruntime-gpu, or give cpu")
    content = read_file(path)
    options: Any = (provider, {"device_id": device.index or 0}) if device.type == "cuda" else provider
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait busily take the cores from calls beside theirs (see `lgd.inference.side_by_side`).
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(content, settings, providers=[options])
    except Exception as error:  # its errors have no class of their own
        raise WeightsError(f"{path}: onnxruntime cannot run it: {_shorten(error)}") from error

    def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        named = {name: x.contiguous().numpy() for name, x in zip(INPUTS, inputs, strict=True)}
        return _as_tensors(session.run(None, named))

    return run, session.get_modelmeta().custom_metadata_map


def open_with_openvino(path: Path, device: torch.device) -> tuple[Function, Mapping[str, str]]:
    """Open an ONNX file; returns it and what it says of itself.

    Raises:
        ImportError: OpenVINO or onnx is not there.
        ConfigError: the device is not the CPU.
        WeightsError: OpenVINO cannot read or run it.
        OSError: nobody can.
    """
    try:
        import onnx
        import openvino
    except ImportError as error:
        raise ImportError("OpenVINO is not there: pip install 'lgd[openvino]'") from error
    _require_cpu(path, device)
    content = read_file(path)
    try:
        graph = onnx.load_from_string(content)
        _require_no_deformed(path, graph)
        core = openvino.Core()
        model = core.read_model(content)
        # Else its plugins compute in bfloat16 where the processor can.
        how = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = core.compile_model(model, "CPU", how)
    except WeightsError:
        raise
    except Exception as error:  # its errors are RuntimeErrors of many lines, onnx has some of its own
        raise WeightsError(f"{path}: OpenVINO cannot run it: {_shorten(error)}") from error

    def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        named = {name: x.contiguous().numpy() for name, x in zip(INPUTS, inputs, strict=True)}
        found = compiled(named)
        return _as_tensors([found[output] for output in compiled.outputs])

    return run, {each.key: each.value for each in graph.metadata_props}


def open_with_torch(path: Path, device: torch.device) -> tuple[Function, Mapping[str, str]]:
    """Open a program of torch.export; returns it and what it says of itself.

    Raises:
        ConfigError: the device is not the CPU.
        WeightsError: it is no such file.
        OSError: it cannot be read.
    """
    _require_cpu(path, device)
    texts = {METADATA_FILE: ""}
    try:
        program = torch.export.load(path, extra_files=texts)
        said = json.loads(texts[METADATA_FILE] or "{}")
    except OSError:
        raise
    except Exception as error:  # what a damaged or a foreign archive raises is without limit
        reason = "it is no archive" if not zipfile.is_zipfile(path) else _shorten(error)
        raise WeightsError(f"{path}: torch.export cannot load it: {reason}") from error
    # Its guards refuse canvases on which a level has a single cell, for which it is as good as for others.
    module = program.module(check_guards=False)

    def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():
            found: Sequence[Tensor] = module(*inputs)
        return found

    return run, said


def run_exported(run: Function, about: About, path: Path) -> Backend:
    """An exported file as what runs a model, for batches of any number of images."""

    def detect(batch: Batch) -> list[Detections]:
        canvas = tuple(batch.images.shape[2:])
        if about.rule.canvas is not None and canvas != about.rule.canvas:
            raise DataError(
                f"{path}: takes pictures on {_times(about.rule.canvas)} pixels, and these come to "
                f"{_times(canvas)}; export it with --size dynamic"
            )
        inputs = (batch.images, batch.sizes, batch.original_sizes)
        count = about.num_images or len(batch.images)
        found: list[Detections] = []
        for start in range(0, len(batch.images), count):
            part = [_take(x, start, count) for x in inputs]
            found += PaddedDetections(*run(part)).cut()
        return found[: len(batch.images)]

    return detect


def _take(x: Tensor, start: int, count: int) -> Tensor:
    """So many images, the last one again where there are no more."""
    places = torch.arange(start, start + count).clamp(max=len(x) - 1)
    return x[places]


def _as_tensors(arrays: Sequence[NDArray[Any]]) -> list[Tensor]:
    return [torch.from_numpy(np.array(array)) for array in arrays]


def _require_cpu(path: Path, device: torch.device) -> None:
    if device.type != "cpu":
        raise ConfigError(f"{path}: runs on the CPU here, not on {device}; give cpu")


def _require_no_deformed(path: Path, model: Any) -> None:
    """Refuse what OpenVINO has no rule for, before it says so in many lines."""
    graphs = [model.graph, *model.functions]
    if any(node.op_type == "DeformConv" for graph in graphs for node in graph.node):
        raise WeightsError(f"{path}: has deformable convolutions, which OpenVINO cannot run; give onnx")


def _times(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split())[:_SHOWN]
