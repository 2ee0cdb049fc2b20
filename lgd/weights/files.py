"""Read weights files and tell what they are by what they hold, never by their names."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from lgd.files import at_home, open_file
from lgd.weights.kind import Content
from lgd.weights.kinds import KINDS, recognise
from lgd.weights.limits import check_archive, check_values
from lgd.weights.own import says_ours
from lgd.weights.pickles import read_numeric_pickle
from lgd.weights.report import WeightsError
from lgd.words import say_type, with_article

EMPTY_PATH = "the path of the weights is empty; give a file, or the folder of a run"
"""What is said of one, as of a variable that is not set."""

_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_JSON_METADATA = ("config", "classes")
_COMPLEX = (torch.complex32, torch.complex64, torch.complex128)


@dataclass(frozen=True)
class LoadedWeights:
    """The tensors of a file under the names that the file gives them.

    Attributes:
        kind: what the file is: the name of one of `lgd.weights.kinds.KINDS`.
        tensors: tensors by name, on the CPU.
        metadata: the rest of the file's top level (iteration, config, class names, author, ...).
    """

    kind: str
    tensors: dict[str, Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)


def read_checkpoint_file(path: str | Path) -> LoadedWeights:
    """Read a weights file of any known kind.

    Args:
        path: what torch.save wrote (`.pth`, read with `weights_only=True`), safetensors, or a pickle of
            numpy arrays (`.pkl`).

    Raises:
        WeightsError: no such file, a damaged file, one that holds more than numbers or is too large, or none
            we know.
    """
    file = local_file(path)
    content = _read_content(file)
    if not isinstance(content, Mapping):
        raise WeightsError(f"{file}: holds {say_type(content)}, not weights by name")
    state, metadata = _split_content(content)
    for name, value in state.items():
        _require_numbers(file, name, value)
    check_values(file, state.values())
    tensors = {_without_ddp_prefix(name): _to_tensor(value) for name, value in state.items()}
    if len(tensors) < len(state):
        raise WeightsError(f"{file}: holds several tensors of one name; this is not a weights file")
    if not says_ours(metadata):
        tensors = _without_path_to_backbone(tensors)
    return LoadedWeights(_recognise(file, Content(tensors, metadata)), tensors, metadata)


def local_file(path: str | Path) -> Path:
    """The path with `~` resolved; raises WeightsError where there is no such file."""
    if not os.fspath(path):
        raise WeightsError(EMPTY_PATH)
    try:
        file = at_home(path)
        with open_file(file):
            return file
    except (FileNotFoundError, NotADirectoryError):
        raise WeightsError(f"{path}: no such weights file") from None
    except IsADirectoryError:
        raise WeightsError(f"{path}: a folder, where a weights file is needed") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise WeightsError(f"{path}: cannot be read: {reason}") from None


def _read_content(file: Path) -> Any:
    try:
        with file.open("rb") as stream:
            head = stream.read(len(_LEGACY_TORCH_MAGIC))
    except OSError as error:
        raise WeightsError(f"{file}: cannot be read: {error.strerror}") from None
    if head.startswith(_ZIP_MAGIC):
        check_archive(file)
    if head.startswith((_ZIP_MAGIC, _LEGACY_TORCH_MAGIC)):
        return _read_torch(file)
    return _read_safetensors(file) if head[8:9] == b"{" else read_numeric_pickle(file)


def _read_safetensors(file: Path) -> dict[str, Any]:
    """A `model` entry and the file's metadata beside it."""
    try:
        with safe_open(file, framework="pt") as content:
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
            metadata = content.metadata() or {}
        decoded = {key: json.loads(metadata[key]) for key in _JSON_METADATA if key in metadata}
    except Exception as error:  # the bytes are anybody's
        raise WeightsError(f"{file}: not a readable safetensors file ({error})") from None
    return {**metadata, **decoded, "model": tensors}


def _read_torch(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = _refused_global(str(error))
        raise WeightsError(
            f"{file}: refused, it holds more than tensors and plain values ({reason}); "
            "save its 'model' entry alone"
        ) from None
    except Exception as error:  # the bytes are anybody's: a damaged archive fails in any way it likes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{file}: not a readable torch file ({reason})") from None


def _refused_global(message: str) -> str:
    """The class that torch refused, out of its long advice."""
    marker = "Unsupported global: GLOBAL "
    if marker in message:
        return message.split(marker, 1)[1].split()[0]
    return message.splitlines()[0]


def _split_content(content: Mapping[Any, Any]) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The weights, and everything beside them."""
    for key in ("model", "blobs", "state_dict"):
        if isinstance(content.get(key), Mapping):
            return content[key], {name: value for name, value in content.items() if name != key}
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor | np.ndarray)}
    return tensors, {name: value for name, value in content.items() if name not in tensors}


def _without_ddp_prefix(name: object) -> str:
    return str(name).removeprefix("module.")


def _without_path_to_backbone(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take away what stands before every name of a backbone, as conversions for detectors leave it."""
    for mark in [kind.mark for kind in KINDS.values() if kind.mark]:
        for prefix in [name.removesuffix(mark) for name in tensors if name.endswith("." + mark)]:
            if all(name.startswith(prefix) for name in tensors):
                return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _require_numbers(file: Path, name: object, value: object) -> None:
    """Refuse what is no dense tensor, or array, of real numbers."""
    if isinstance(value, Tensor):
        if value.is_nested or value.layout is not torch.strided or value.is_quantized or value.is_meta:
            kind = "tensor that is not dense"
        elif value.dtype in (torch.bool, *_COMPLEX):
            kind = f"tensor of {str(value.dtype).removeprefix('torch.')}"
        else:
            return
    elif isinstance(value, np.ndarray):
        if value.dtype.kind in "iuf" and value.dtype.itemsize <= 8:
            return
        kind = f"array of {value.dtype}"
    else:
        kind = type(value).__name__
    raise WeightsError(
        f"{file}: {name!r} is {with_article(kind)}, not a tensor of real numbers; this is not a weights file"
    )


def _to_tensor(value: Tensor | np.ndarray[Any, Any]) -> Tensor:
    if isinstance(value, Tensor):
        return value
    native = value.astype(value.dtype.newbyteorder("="))  # also a copy: torch wants writable memory
    return torch.from_numpy(np.ascontiguousarray(native)).reshape(value.shape)


def _recognise(file: Path, content: Content) -> str:
    kind = recognise(content)
    if kind is None:
        names = ", ".join(list(content.tensors)[:3])
        raise WeightsError(
            f"{file}: weights of an unknown kind (first names: {names or 'none'}); known: "
            + ", ".join(kind.words for kind in KINDS.values())
        )
    return kind.name
